"""Flask on gunicorn: `gunicorn -w 2 benchmarks.peers.flask_app:app`."""

from __future__ import annotations

import orjson
from flask import Flask, Response, request

from benchmarks.peers.kernels import kernel

app = Flask(__name__)
ask = kernel()


@app.post("/")
def predict() -> Response:
    [answer] = ask([request.get_data()])
    return Response(orjson.dumps(answer), mimetype="application/json")

"""Flask on gunicorn: `gunicorn -w 2 benchmarks.peers.flask_app:app`."""

from __future__ import annotations

from flask import Flask, Response, jsonify, request

from benchmarks.peers.kernels import kernel

app = Flask(__name__)
ask = kernel()


@app.post("/")
def predict() -> Response:
    return jsonify(ask([request.get_data()])[0])

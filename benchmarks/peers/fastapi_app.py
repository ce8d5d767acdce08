"""FastAPI on uvicorn: `uvicorn --workers 2 benchmarks.peers.fastapi_app:app`."""

from __future__ import annotations

import orjson
from fastapi import FastAPI, Request, Response

from benchmarks.peers.kernels import kernel

app = FastAPI()
ask = kernel()


@app.post("/")
async def predict(request: Request) -> Response:
    # In the event loop, since a thread would cost more than the image.
    [answer] = ask([await request.body()])
    return Response(orjson.dumps(answer), media_type="application/json")

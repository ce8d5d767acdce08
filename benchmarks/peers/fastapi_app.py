"""FastAPI on uvicorn: `uvicorn --workers 2 benchmarks.peers.fastapi_app:app`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request

from benchmarks.peers.kernels import kernel

app = FastAPI()
ask = kernel()


@app.post("/")
async def predict(request: Request) -> Any:
    # In the event loop: a thread for each image would cost more than the image.
    return ask([await request.body()])[0]

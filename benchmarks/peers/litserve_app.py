"""LitServe, with its batching: `python -m benchmarks.peers.litserve_app PORT`."""

import sys
from collections.abc import Sequence
from typing import Any

import litserve
from fastapi import Request

from benchmarks.peers.kernels import BATCH, WORKERS, kernel


class Cells(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.ask = kernel()

    # LitServe reads this annotation, so this file cannot postpone annotations.
    def decode_request(self, request: Request) -> bytes:
        image: bytes = request["image"].file.read()
        return image

    def batch(self, inputs: Sequence[bytes]) -> Sequence[bytes]:
        return inputs

    def predict(self, x: Sequence[bytes]) -> list[dict[str, Any]]:
        return self.ask(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> Any:
        return output


if __name__ == "__main__":
    api = Cells(max_batch_size=BATCH, batch_timeout=0.0005, api_path="/")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )

"""Ray Serve, with its batching: `python -m benchmarks.peers.ray_app PORT`."""

from __future__ import annotations

import signal
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.kernels import BATCH, WORKERS, kernel


@serve.deployment(
    num_replicas=WORKERS, max_ongoing_requests=2 * BATCH, ray_actor_options={"num_cpus": 0.5}
)
class Cells:
    def __init__(self) -> None:
        self.ask = kernel()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.0005)
    async def answer(self, images: list[bytes]) -> list[dict[str, Any]]:
        return self.ask(images)

    async def __call__(self, request: Request) -> Any:
        return await self.answer(await request.body())


if __name__ == "__main__":
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Cells.bind())  # type: ignore[attr-defined]
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    serve.shutdown()
    ray.shutdown()

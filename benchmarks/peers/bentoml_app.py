"""BentoML: `bentoml serve benchmarks.peers.bentoml_app:Cells`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml

from benchmarks.peers.kernels import WORKERS, kernel


@bentoml.service(workers=WORKERS, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Cells:
    def __init__(self) -> None:
        self.ask = kernel()

    @bentoml.api(route="/predict")
    def predict(self, image: Path) -> dict[str, Any]:
        return self.ask([image.read_bytes()])[0]

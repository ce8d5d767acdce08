"""Two ways to compute an answer, for the servers that `make bench` compares.

`Plain` is what documentation shows: Pillow decodes the whole image, torch runs the network eagerly.
`Ours` is the handler: its decoding, engine and verdict.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "models" / "1.0"
# The largest batch of a server with batching, as in this deployment.
BATCH = 16
# A server has one process for each core that it may use.
CORES = WORKERS = len(os.sched_getaffinity(0))


class Kernel(Protocol):
    """Returns the answers to N images, like this deployment."""

    def __call__(self, images: Sequence[bytes], /) -> list[dict[str, Any]]: ...


class Plain:
    """Pillow and eager torch."""

    def __init__(self) -> None:
        import numpy as np
        import torch
        from PIL import Image

        from training.networks import load_networks

        self._np, self._torch, self._image = np, torch, Image
        torch.set_num_threads(1)
        self._card = json.loads((FOLDER / "card.json").read_text())
        self._network = load_networks(FOLDER, self._card)["network"]

    def __call__(self, images: Sequence[bytes]) -> list[dict[str, Any]]:
        pixels = [self._decode(data) for data in images]
        with self._torch.inference_mode():
            inputs = self._torch.from_numpy(self._np.stack(pixels)).permute(0, 3, 1, 2) / 255
            shares = (self._network(inputs) / self._card["temperature"]).softmax(1).tolist()
        return [self._say(each) for each in shares]

    def _decode(self, data: bytes) -> Any:
        image = self._image.open(io.BytesIO(data)).convert("RGB")
        return self._np.asarray(image.resize((80, 60), self._image.Resampling.BOX))

    def _say(self, shares: Sequence[float]) -> dict[str, Any]:
        return {
            "model": "bloodcells",
            "version": self._card["version"],
            "label": self._card["classes"][shares.index(max(shares))],
            "probabilities": dict(zip(self._card["classes"], shares, strict=True)),
        }


class Ours:
    """The handler without TorchServe."""

    def __init__(self) -> None:
        from handler.pipelines import load
        from handler.preprocessing import decode
        from handler.verdict import answer

        self._decode, self._answer = decode, answer
        self._card = json.loads((FOLDER / "card.json").read_text())
        self._version = load(FOLDER, self._card, BATCH)
        self._version.warm_up()

    def __call__(self, images: Sequence[bytes]) -> list[dict[str, Any]]:
        pictures = [self._decode(data, self._version.fit) for data in images]
        return [
            self._answer("bloodcells", self._card, prediction)
            for prediction in self._version.predict(pictures)
        ]


KERNELS: dict[str, Callable[[], Kernel]] = {"plain": Plain, "ours": Ours}


def kernel() -> Kernel:
    """Return the kernel that KERNEL names."""
    return KERNELS[os.environ["KERNEL"]]()

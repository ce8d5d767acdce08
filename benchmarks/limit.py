"""What the machine could do at most: the work on an image in a loop on all cores, and no server.

`python -m benchmarks.limit FOLDER SECONDS` prints images a second, of the images in a folder, in
batches as the service has them: `work` is to decode, to scale and to run the network; `answers` is
all that the handler does, with its gate and the answer in JSON; and each step of it alone.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.peers.kernels import BATCH, CORES, FOLDER, Ours
from handler.engine import Engine
from handler.preprocessing import Pixels, decode

Batch = tuple[bytes, ...]
Answer = Callable[[Batch], object]

_barrier: Any = None


def decoded(images: Batch) -> Pixels:
    """Decode images and scale them: (N, 60, 80, 3)."""
    return np.stack([decode(data).pixels for data in images])


def work() -> Answer:
    """Return what decodes, scales and runs the network."""
    engine = Engine((FOLDER / "network.onnx").read_bytes(), 1, None)
    return lambda images: engine(decoded(images)).tolist()


def answers() -> Answer:
    """Return what does all that the handler does."""
    kernel = Ours()
    return lambda images: [orjson.dumps(answer) for answer in kernel(images)]


def alone(name: str) -> Answer:
    """Return what runs one graph, on images that were decoded before."""
    engine, once = Engine((FOLDER / f"{name}.onnx").read_bytes(), 1, None), cache(decoded)
    return lambda images: engine(once(images)).tolist()


KINDS: dict[str, Callable[[], Answer]] = {
    "work": work,
    "answers": answers,
    "decode": lambda: decoded,
    "network": lambda: alone("network"),
    "gate": lambda: alone("gate"),
}


def together(barrier: Any) -> None:
    """Let this process begin its loops when the others do."""
    global _barrier
    _barrier = barrier


def loop(kind: str, folder: Path, seconds: float) -> float:
    """Answer images for so long; return how many a second."""
    images = [path.read_bytes() for path in sorted(folder.iterdir())]
    answer = KINDS[kind]()
    starts = range(0, len(images) - BATCH + 1, BATCH)
    batches = [tuple(images[at : at + BATCH]) for at in starts]
    for batch in batches:
        answer(batch)
    if _barrier:
        # If one of them fails, the others must not wait for it.
        _barrier.wait(60)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        answer(batches[done % len(batches)])
        done += 1
    return BATCH * done / (time.perf_counter() - started)


def measure(folder: Path, seconds: float) -> dict[str, float]:
    """Return images a second on all cores, for each kind."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(CORES, together, [spawn.Barrier(CORES)]) as pool:
        return {
            kind: round(sum(pool.starmap(loop, [(kind, folder, seconds)] * CORES, 1)), 1)
            for kind in KINDS
        }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), float(sys.argv[2]))))

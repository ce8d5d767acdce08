"""The limit of the machine: the work on an image in a loop on all cores, without a server.

`work` is to decode, to scale and to run the network; `answers` is all that the handler does, with
the JSON; `decode` and `network` are single steps.
"""

from __future__ import annotations

import multiprocessing
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


def network(pixels: Callable[[Batch], Pixels]) -> Answer:
    """Return what runs the network."""
    engine = Engine((FOLDER / "network.onnx").read_bytes(), 1, None)
    return lambda images: engine(pixels(images)).tolist()


def answers() -> Answer:
    """Return what does all that the handler does."""
    kernel = Ours()
    return lambda images: [orjson.dumps(answer) for answer in kernel(images)]


# A cache leaves the time of the network alone.
KINDS: dict[str, Callable[[], Answer]] = {
    "work": lambda: network(decoded),
    "answers": answers,
    "decode": lambda: decoded,
    "network": lambda: network(cache(decoded)),
}


def together(barrier: Any) -> None:
    """Make this process start its loops with the others."""
    global _barrier
    _barrier = barrier


def loop(kind: str, folder: Path, seconds: float) -> float:
    """Answer the images of a folder for some seconds; return images a second."""
    images = [path.read_bytes() for path in sorted(folder.iterdir())]
    answer = KINDS[kind]()
    starts = range(0, len(images) - BATCH + 1, BATCH)
    batches = [tuple(images[at : at + BATCH]) for at in starts]
    for batch in batches:
        answer(batch)
    if _barrier:
        # If one process fails, the others must not wait for it.
        _barrier.wait(60)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        answer(batches[done % len(batches)])
        done += 1
    return BATCH * done / (time.perf_counter() - started)


def measure(folder: Path, seconds: float) -> dict[str, float]:
    """Return images a second on all cores, by kind."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(CORES, together, [spawn.Barrier(CORES)]) as pool:
        return {
            kind: round(sum(pool.starmap(loop, [(kind, folder, seconds)] * CORES, 1)), 1)
            for kind in KINDS
        }

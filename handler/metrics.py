"""What a worker counts, for Prometheus: answers, rejects, sizes of batches, seconds.

Workers come and go, so each writes its numbers to files of its own in PROMETHEUS_MULTIPROC_DIR,
from which serving/supervisor/exporter.py adds them up: what a killed worker had counted is not
lost. Without that variable nothing is counted.

The files are those of prometheus_client's multiprocess mode, which reads them. They are written
without it: it would take ten times as long, and 5 MB of each worker.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from handler.preprocessing import InputError
from handler.verdict import CLASSES

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SAID = [(label, verdict) for label in CLASSES for verdict in ("confident", "uncertain")]
SAID.append(("none", "rejected"))
# All types of InputError in this package.
REFUSED = (
    "BadRequest",
    "CorruptImage",
    "EmptyImage",
    "ExplanationFailed",
    "ImageTooLarge",
    "TooManyImages",
    "UnsupportedImage",
)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# Several times what all of a worker's numbers take.
ROOM = 1 << 14
# The number of bytes in use stands at the start; each number behind its name, at a multiple of 8.
START = 8
_INT = struct.Struct("i")


class Metrics(Protocol):
    """What becomes of a batch, told in the order in which it does."""

    def decoded(self, requests: int, seconds: float) -> None:
        """Count a batch of so many requests, whose images took so long to decode."""

    def examined(self, seconds: float) -> None:
        """Count how long the networks took for a batch."""

    def answered(self, answers: Iterable[Mapping[str, Any] | InputError]) -> None:
        """Count the answers to a batch, and the errors in the place of some."""


def start(version: str) -> Metrics:
    """Return what counts for this worker; where it can't, nothing does, but answers are given."""
    if folder := os.environ.get(FOLDER):
        try:
            return Counted(Path(folder), version)
        except OSError as error:
            logging.error("Nothing is counted: %s", error)
    return Uncounted()


class Uncounted:
    """Counts nothing."""

    def decoded(self, requests: int, seconds: float) -> None: ...

    def examined(self, seconds: float) -> None: ...

    def answered(self, answers: Iterable[Mapping[str, Any] | InputError]) -> None: ...


class Counted:
    """Counts into files of this process."""

    def __init__(self, folder: Path, version: str) -> None:
        counters, histograms = Numbers(folder, "counter"), Numbers(folder, "histogram")
        self._version, self._counters, self._values = version, counters, counters.values
        self._size = Histogram(
            histograms, "bloodcells_batch_size", "Requests in a batch.", version, SIZES
        )
        self._decode = Histogram(
            histograms,
            "bloodcells_decode_seconds",
            "Time to decode the images of a batch.",
            version,
            SECONDS,
        )
        self._network = Histogram(
            histograms,
            "bloodcells_network_seconds",
            "Time of the networks for a batch.",
            version,
            SECONDS,
        )
        # All from the start: a rate needs to see them at 0.
        self._said = {
            (label, verdict): self._counter(
                "predictions", "Images answered.", version=version, label=label, verdict=verdict
            )
            for label, verdict in SAID
        }
        self._refused: dict[str, int] = {}
        for kind in REFUSED:
            self._refusal(kind)
        self._explained = self._counter("explanations", "Images explained by a heat map.")
        self._values[self._counter("worker_starts", "Workers started.", version=version)] = 1

    def decoded(self, requests: int, seconds: float) -> None:
        self._size.observe(requests)
        self._decode.observe(seconds)

    def examined(self, seconds: float) -> None:
        self._network.observe(seconds)

    def answered(self, answers: Iterable[Mapping[str, Any] | InputError]) -> None:
        values, said = self._values, self._said
        for answer in answers:
            if isinstance(answer, InputError):
                values[self._refusal(answer.type)] += 1
                continue
            values[said[answer["label"] or "none", answer["verdict"]]] += 1
            if "heat_map" in answer:
                values[self._explained] += 1

    def _refusal(self, kind: str) -> int:
        # One that was forgotten above must not cost the answer.
        if kind not in self._refused:
            self._refused[kind] = self._counter(
                "rejects", "Images answered by an error.", version=self._version, type=kind
            )
        return self._refused[kind]

    def _counter(self, name: str, text: str, **labels: str) -> int:
        name = f"bloodcells_{name}"
        return self._counters.add(name, f"{name}_total", labels, text)


class Histogram:
    """How often a value lay within each bound, and the sum of all."""

    def __init__(
        self, numbers: Numbers, name: str, text: str, version: str, bounds: tuple[float, ...]
    ) -> None:
        self._values, self._bounds = numbers.values, bounds
        self._sum = numbers.add(name, f"{name}_sum", {"version": version}, text)
        self._counts = [
            numbers.add(name, f"{name}_bucket", {"version": version, "le": bound}, text)
            for bound in (*map(str, bounds), "+Inf")
        ]

    def observe(self, value: float) -> None:
        self._values[self._sum] += value
        self._values[self._counts[bisect_left(self._bounds, value)]] += 1


def reserve(file: BinaryIO, size: int) -> None:
    """Give an empty file its size, and room for it on the disk; raise OSError.

    It will be mapped to memory: on a disk that is full by then, to write where no room was made
    would kill the process.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    file.truncate(size)


class Numbers:
    """Numbers in a file that others may read at any time; each has a name and an index."""

    def __init__(self, folder: Path, kind: str) -> None:
        """Make the file, with room on the disk; raise OSError."""
        # Not named by the process alone: a dead one's number may come again, its counts must stay.
        path = folder / f"{kind}_{os.getpid()}.{time.time_ns()}"
        with path.open("x+b") as file:
            reserve(file, ROOM)
            self._memory = mmap.mmap(file.fileno(), ROOM)
        self.values = memoryview(self._memory).cast("d")
        self._end = START
        self._memory[: _INT.size] = _INT.pack(START)
        # Read from now on.
        path.rename(f"{path}.db")

    def add(self, metric: str, name: str, labels: Mapping[str, str], text: str) -> int:
        """Add a number, 0 as yet, and return its index; IndexError if there is no room."""
        key = json.dumps([metric, name, labels, text], sort_keys=True).encode()
        # At least one space, and a multiple of 8 with the length before.
        padded = key + b" " * (8 - (len(key) + _INT.size) % 8)
        entry = _INT.pack(len(key)) + padded + bytes(16)
        start, end = self._end, self._end + len(entry)
        if end > ROOM:
            raise IndexError(f"There is no room for {name}.")
        self._memory[start:end] = entry
        # Last, so that nobody reads half an entry.
        self._memory[: _INT.size] = _INT.pack(end)
        self._end = end
        # A time, which is not used, stands behind the number.
        return (end - 16) // 8

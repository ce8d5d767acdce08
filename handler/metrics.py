"""Count a worker's answers, bad inputs, batches and seconds, for Prometheus.

Workers are processes that come and go, so prometheus_client runs in its multiprocess mode: each
worker counts in its own files in PROMETHEUS_MULTIPROC_DIR, and serving/supervisor/exporter.py
adds them up. Without that variable nothing is exported.

Counting takes 7 µs per request, and the library 9 MB of memory per worker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, values

from handler.bounds import InputError

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# All types of InputError in this package.
INPUT_ERRORS = (
    "BadRequest",
    "CorruptImage",
    "EmptyImage",
    "ImageTooLarge",
    "TooManyCells",
    "TooManyImages",
    "UnsupportedImage",
)
SIZES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# Twice what all counts of a worker take.
ROOM = 1 << 14


def start(version: str, classes: Sequence[str]) -> Metrics:
    """Return the metrics of this worker; where they can't be exported, it counts in memory."""
    if folder := os.environ.get(FOLDER):
        try:
            for kind in ("counter", "histogram"):
                make_room(Path(folder), kind, ROOM)
        except OSError as error:
            logging.error("No metrics are exported: %s", error)
            values.ValueClass = values.MutexValue
    return Metrics(version, classes)


def make_room(folder: Path, kind: str, size: int, owner: str | int = "") -> None:
    """Create the file for one kind of this process's metrics, unless it exists; raise OSError.

    prometheus_client maps it to memory. If the disk were full by the first write, that would kill
    the process, so the room is allocated before.
    """
    path = folder / f"{kind}_{owner or os.getpid()}.db"
    # It may exist from an ended process with the same id, whose counts must stay.
    if path.exists():
        return
    # The exporter can't read an empty file, so it gets its name when it is complete.
    partial_file = path.with_suffix(".partial")
    try:
        with partial_file.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
        partial_file.rename(path)
    except OSError:
        partial_file.unlink(missing_ok=True)
        raise


class Stopwatch:
    """Adds up the seconds of its contexts."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += perf_counter() - self._started


class Metrics:
    """The metrics of one worker."""

    def __init__(self, version: str, classes: Sequence[str]) -> None:
        self._version = version
        registry = CollectorRegistry()
        counter = partial(Counter, namespace="bloodcells", registry=registry)

        def histogram(name: str, text: str, bounds: Sequence[float]) -> Histogram:
            name = f"bloodcells_{name}"
            made = Histogram(name, text, ["version"], registry=registry, buckets=bounds)
            return made.labels(version)

        self._batch_size = histogram("batch_size", "Requests in a batch.", SIZES)
        self._decode = histogram("decode_seconds", "Time to decode a batch's images.", SECONDS)
        self._network = histogram("network_seconds", "Time of the networks for a batch.", SECONDS)
        self._predictions = counter(
            "predictions", "Images answered.", ["version", "label", "verdict"]
        )
        self._input_errors = counter(
            "input_errors", "Images answered by an error.", ["version", "type"]
        )
        self._put_off = counter("put_off", "Requests put off.", ["version"]).labels(version)
        self._explanations = counter("explanations", "Images explained by a heat map.")
        # `rate` sees an increase only from a value that was scraped, so all series start at 0.
        self._predictions.labels(version, "none", "rejected")
        for label, verdict in product(classes, ("confident", "uncertain")):
            self._predictions.labels(version, label, verdict)
        for kind in INPUT_ERRORS:
            self._input_errors.labels(version, kind)
        counter("worker_starts", "Workers started.", ["version"]).labels(version).inc()

    def decoded(self, requests: int, seconds: float) -> None:
        """Count a batch, and how long its images took to decode."""
        self._batch_size.observe(requests)
        self._decode.observe(seconds)

    def examined(self, seconds: float) -> None:
        """Count how long the networks took for a batch."""
        self._network.observe(seconds)

    def answered(self, answers: Iterable[Mapping[str, Any] | InputError]) -> None:
        """Count the answers to a batch, errors included."""
        for answer in answers:
            if isinstance(answer, InputError) and answer.type == "ServiceBusy":
                self._put_off.inc()
                continue
            if isinstance(answer, InputError):
                self._input_errors.labels(self._version, answer.type).inc()
                continue
            label, verdict = answer["label"] or "none", answer["verdict"]
            self._predictions.labels(self._version, label, verdict).inc()
            if "heat_map" in answer:
                self._explanations.inc()

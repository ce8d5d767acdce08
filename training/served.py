"""Measure a version through the running service, compared with its weights: served.json.

Each TEST image is sent to the REST endpoint, one request at a time, and to the weights in this
process, on one core. served.json holds the accuracy through the service, how many answers differ,
and the milliseconds from an image's bytes to the answer, both ways.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from handler.preprocessing import decode
from handler.verdict import Answer, answer
from serving.client import InferenceClient
from serving.deployment.known_answers import agree
from serving.settings import MODEL, Settings
from training import data, version_files
from training.predict import most_probable

Ask = Callable[[bytes], Answer]
WARM_UP = 20


def measure_served(version: str) -> None:
    """Write a version's served.json; raise DataError or ServiceError."""
    images = data.list_images(data.data_root(), "TEST")
    files = [image.path.read_bytes() for image in images]
    labels = np.array([image.label for image in images])
    measured = measure(files, labels, by_weights(version), by_service(version))
    version_files.write_json(version_files.folder(version) / "served.json", measured)
    print(json.dumps(measured, indent=2))


def measure(
    files: Sequence[bytes], labels: np.ndarray, weights: Ask, served: Ask
) -> dict[str, Any]:
    """Query the weights and the service in turn, so that both have the same load."""
    for file in files[:WARM_UP]:
        weights(file)
        served(file)
    here, there = [], []
    for file in tqdm(files, desc="asking both", unit="image", mininterval=1):
        here.append(_timed(weights, file))
        there.append(_timed(served, file))
    differ = sum(
        not agree(one["probabilities"], other["probabilities"])
        for (one, _), (other, _) in zip(here, there, strict=True)
    )
    predicted = np.array([most_probable(said) for said, _ in there])
    return {
        "images": len(files),
        "cores": os.cpu_count(),
        "image_accuracy": round(float((predicted == labels).mean()), 4),
        "answers_that_differ": differ,
        "milliseconds": {
            "one_core": _spread([seconds for _, seconds in here]),
            "service": _spread([seconds for _, seconds in there]),
        },
    }


def by_weights(version: str) -> Ask:
    """Return a function that answers in this process, as the archive's handler does."""
    card, pipeline = version_files.load(version, 1)

    def ask(file: bytes) -> Answer:
        [prediction] = pipeline.predict([decode(file, pipeline.fit)])
        return answer(MODEL, card, prediction)

    return ask


def by_service(version: str) -> Ask:
    """Return a function that queries the running service; it raises ServiceError."""
    client = InferenceClient(Settings.from_environment())
    return lambda file: client.predict(file, version)


def _timed(ask: Ask, file: bytes) -> tuple[Answer, float]:
    start = time.perf_counter()
    said = ask(file)
    return said, time.perf_counter() - start


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    median, late = np.percentile(np.array(seconds) * 1000, (50, 95))
    return {"median": round(float(median), 2), "95th percentile": round(float(late), 2)}

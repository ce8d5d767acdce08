"""Ask a running service of every TEST image: `make run`, then `make served VERSION=2.0`.

The archive that serves must say what was measured of its weights, so each image is asked twice: of
the weights, in this process and on one core, and through the REST endpoint, one request at a time.

Writes served.json to models/<version>/: TEST's accuracy through the service, how many answers
differ, and the milliseconds that an image takes, from its bytes to the answer, either way. The
report shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from handler.pipelines import load
from handler.preprocessing import decode
from handler.verdict import CLASSES, Answer, answer
from serving.client import InferenceClient, ServiceError
from serving.deployment.known_answers import agree
from serving.settings import MODEL, Settings
from training import data, report, version_files

Ask = Callable[[bytes], Answer]
WARM_UP = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one version as it is served; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.served")
    parser.add_argument("--version", required=True)
    version = parser.parse_args(arguments).version
    folder = version_files.folder(version)
    path = folder / "served.json"
    try:
        report.read(folder).metrics["test"]
        images = data.list_images(data.data_root(), "TEST")
        files = [image.path.read_bytes() for image in images]
        labels = np.array([image.label for image in images])
        measured = measure(files, labels, of_weights(version), through_rest(version))
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, KeyError, RuntimeError) as error:
        print(f"error: {error}\nRun `make evaluate VERSION={version}` first.", file=sys.stderr)
        return 1
    except ServiceError as error:
        print(f"error: {error} Is {version} served? `make run` does.", file=sys.stderr)
        return 1
    version_files.write_json(path, measured)
    report.write(version)
    print(path.read_text(), end="")
    return 0


def measure(
    files: Sequence[bytes], labels: np.ndarray, weights: Ask, served: Ask
) -> dict[str, Any]:
    """Ask the weights and the service in turn, so that both meet the same load.

    Of N files and their labels (N,). Raises what the two raise.
    """
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
    shares = [[said["probabilities"][name] for name in CLASSES] for said, _ in there]
    return {
        "images": len(files),
        "cores": os.cpu_count(),
        "image_accuracy": round(float((np.argmax(shares, 1) == labels).mean()), 4),
        "answers_that_differ": differ,
        "milliseconds": {
            "one_core": _spread([seconds for _, seconds in here]),
            "service": _spread([seconds for _, seconds in there]),
        },
    }


def of_weights(version: str) -> Ask:
    """Return what answers in this process, as the archive's handler does."""
    folder = version_files.folder(version)
    card = json.loads((folder / "card.json").read_text())
    loaded = load(folder, card, 1)

    def ask(file: bytes) -> Answer:
        [prediction] = loaded.predict([decode(file, loaded.fit)])
        return answer(MODEL, card, prediction)

    return ask


def through_rest(version: str) -> Ask:
    """Return what asks the service that runs; it raises ServiceError."""
    client = InferenceClient(Settings.from_environment())
    return lambda file: client.predict(file, version)


def _timed(ask: Ask, file: bytes) -> tuple[Answer, float]:
    start = time.perf_counter()
    said = ask(file)
    return said, time.perf_counter() - start


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    median, late = np.percentile(np.array(seconds) * 1000, (50, 95))
    return {"median": round(float(median), 2), "95th percentile": round(float(late), 2)}


if __name__ == "__main__":
    sys.exit(main())

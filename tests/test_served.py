"""Measuring a version through its service: the real one, and made-up ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import CARDS, SERVED

from serving.client import InferenceClient
from serving.deployment.known_answers import SAMPLES
from serving.settings import ROOT, Settings
from testing.service import Service, environment_of
from training import data, served
from training.__main__ import main
from training.protocol import CLASSES

DRAWN = sorted(SAMPLES.glob("*.png"))
FILES = [path.read_bytes() for path in DRAWN]
LABELS = np.array([CLASSES.index(path.stem.upper()) for path in DRAWN])


@pytest.mark.live
@pytest.mark.parametrize("version", SERVED)
def test_the_service_answers_as_its_weights_do(
    service: Service, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    for name, value in environment_of(service.settings).items():
        monkeypatch.setenv(name, value)
    measured = served.measure(FILES, LABELS, served.by_weights(version), served.by_service(version))
    golden = json.loads((ROOT / "models" / version / "golden.json").read_text())
    names = CARDS[version]["classes"]
    known = np.array([[golden[path.name][name] for name in names] for path in DRAWN])
    assert measured["images"] == len(FILES)
    assert measured["answers_that_differ"] == 0
    assert measured["image_accuracy"] == np.mean(known.argmax(1) == LABELS)


def test_accuracy_differences_and_times_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only requests advance: 2 ms for the weights, 1 to 4 ms for the service."""
    now = 0.0

    def taking(label: str, *milliseconds: float) -> Callable[[bytes], served.Answer]:
        waits = itertools.cycle(milliseconds)

        def ask(file: bytes) -> served.Answer:
            nonlocal now
            now += next(waits) / 1000
            return {"probabilities": {name: float(name == label) for name in CLASSES}}

        return ask

    monkeypatch.setattr(served.time, "perf_counter", lambda: now)
    measured = served.measure(
        FILES, LABELS, taking("NEUTROPHIL", 2), taking("MONOCYTE", 1, 2, 3, 4)
    )
    assert measured["image_accuracy"] == 1 / len(FILES)
    assert measured["answers_that_differ"] == len(FILES) == 4
    spreads = measured["milliseconds"]
    assert spreads["one_core"] == {"median": 2.0, "95th percentile": 2.0}
    assert spreads["service"] == {"median": 2.5, "95th percentile": 3.85}


def test_without_a_service_the_message_says_what_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = [
        data.Image(path, int(label), "", "") for path, label in zip(DRAWN, LABELS, strict=True)
    ]
    monkeypatch.setattr(data, "data_root", Path)
    monkeypatch.setattr(data, "list_images", lambda root, split: images)
    monkeypatch.setattr(Settings, "from_environment", lambda: Settings(run_dir=tmp_path))
    monkeypatch.setattr(served, "InferenceClient", partial(InferenceClient, patience=0))
    result = CliRunner().invoke(main, ["served", "--version", SERVED[0]])
    assert result.exit_code == 1
    assert f"Start {SERVED[0]} with `make run`." in result.output


def test_a_version_that_is_not_evaluated_is_refused() -> None:
    result = CliRunner().invoke(main, ["served", "--version", "0.0"])
    assert result.exit_code == 1
    assert "make evaluate VERSION=0.0" in result.output

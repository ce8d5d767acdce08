"""Measuring a version through its service: the real one, and made-up ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import SERVED

from handler.verdict import CLASSES
from serving.deployment.known_answers import SAMPLES
from serving.settings import ROOT, Settings
from testing.service import Service, environment_of
from training import data, served
from training.__main__ import main

DRAWN = sorted(SAMPLES.glob("*.png"))
FILES = [path.read_bytes() for path in DRAWN]
LABELS = np.array([CLASSES.index(path.stem.upper()) for path in DRAWN])


def saying(label: str) -> Callable[[bytes], served.Answer]:
    """Return a service that gives every cell the same label."""
    return lambda file: {"probabilities": {name: float(name == label) for name in CLASSES}}


@pytest.mark.live
@pytest.mark.parametrize("version", SERVED)
def test_the_service_answers_as_its_weights_do(
    service: Service, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    for name, value in environment_of(service.settings).items():
        monkeypatch.setenv(name, value)
    measured = served.measure(FILES, LABELS, served.by_weights(version), served.by_service(version))
    golden = json.loads((ROOT / "models" / version / "golden.json").read_text())
    known = np.array([[golden[path.name][name] for name in CLASSES] for path in DRAWN])
    assert measured["images"] == len(FILES)
    assert measured["answers_that_differ"] == 0
    assert measured["image_accuracy"] == np.mean(known.argmax(1) == LABELS)


def test_the_answers_of_the_service_are_measured() -> None:
    measured = served.measure(FILES, LABELS, saying("NEUTROPHIL"), saying("MONOCYTE"))
    assert measured["image_accuracy"] == 1 / len(CLASSES)
    assert measured["answers_that_differ"] == len(FILES)


def test_each_is_timed_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only requests advance: 2 ms for the weights, 5 ms for the service."""
    now = 0.0

    def taking(seconds: float) -> Callable[[bytes], served.Answer]:
        def ask(file: bytes) -> served.Answer:
            nonlocal now
            now += seconds
            return saying("MONOCYTE")(file)

        return ask

    monkeypatch.setattr(served.time, "perf_counter", lambda: now)
    spreads = served.measure(FILES, LABELS, taking(0.002), taking(0.005))["milliseconds"]
    assert spreads["one_core"] == {"median": 2.0, "95th percentile": 2.0}
    assert spreads["service"] == {"median": 5.0, "95th percentile": 5.0}


def test_the_spread_is_the_median_and_the_95th_percentile() -> None:
    assert served._spread([number / 1000 for number in range(101)]) == {
        "median": 50.0,
        "95th percentile": 95.0,
    }


def test_without_a_service_the_message_says_what_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = [
        data.Image(path, int(label), "", "") for path, label in zip(DRAWN, LABELS, strict=True)
    ]
    monkeypatch.setattr(data, "data_root", Path)
    monkeypatch.setattr(data, "list_images", lambda root, split: images)
    monkeypatch.setattr(Settings, "from_environment", lambda: Settings(run_dir=tmp_path))
    result = CliRunner().invoke(main, ["served", "--version", SERVED[0]])
    assert result.exit_code == 1
    assert f"Start {SERVED[0]} with `make run`." in result.output


def test_a_version_that_is_not_evaluated_is_refused() -> None:
    result = CliRunner().invoke(main, ["served", "--version", "0.0"])
    assert result.exit_code == 1
    assert "make evaluate VERSION=0.0" in result.output

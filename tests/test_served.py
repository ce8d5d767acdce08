"""Measuring a version as it is served: against the real service, and against made-up ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SERVED

from handler.verdict import CLASSES
from serving.deployment.known_answers import SAMPLES
from serving.settings import ROOT, Settings
from testing.service import Service, environment_of
from training import data, served

DRAWN = sorted(SAMPLES.glob("*.png"))
FILES = [path.read_bytes() for path in DRAWN]
LABELS = np.array([CLASSES.index(path.stem.upper()) for path in DRAWN])


def saying(label: str) -> Callable[[bytes], served.Answer]:
    """Return a service that calls every cell the same."""
    return lambda file: {"probabilities": {name: float(name == label) for name in CLASSES}}


@pytest.mark.parametrize("version", SERVED)
def test_the_archive_says_what_its_weights_say(
    service: Service, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    for name, value in environment_of(service.settings).items():
        monkeypatch.setenv(name, value)
    measured = served.measure(
        FILES, LABELS, served.of_weights(version), served.through_rest(version)
    )
    golden = json.loads((ROOT / "models" / version / "golden.json").read_text())
    known = np.array([[golden[path.name][name] for name in CLASSES] for path in DRAWN])
    assert measured["images"] == len(FILES)
    assert measured["answers_that_differ"] == 0
    assert measured["image_accuracy"] == np.mean(known.argmax(1) == LABELS)


def test_what_the_service_says_is_what_counts() -> None:
    measured = served.measure(FILES, LABELS, saying("NEUTROPHIL"), saying("MONOCYTE"))
    assert measured["image_accuracy"] == 1 / len(CLASSES)
    assert measured["answers_that_differ"] == len(FILES)


def test_each_is_timed_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only asking moves: 2 ms for the weights, 5 ms for the service."""
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


def test_the_spread_is_the_median_and_what_19_in_20_keep_to() -> None:
    assert served._spread([number / 1000 for number in range(101)]) == {
        "median": 50.0,
        "95th percentile": 95.0,
    }


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TEST be the drawn cells."""
    images = [
        data.Image(path, int(label), "", "") for path, label in zip(DRAWN, LABELS, strict=True)
    ]
    monkeypatch.setattr(served.data, "data_root", Path)
    monkeypatch.setattr(served.data, "list_images", lambda root, split: images)


@pytest.mark.usefixtures("listed")
def test_without_a_service_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(Settings, "from_environment", lambda: Settings(run_dir=tmp_path))
    assert served.main(["--version", SERVED[0]]) == 1
    assert "`make run` does" in capsys.readouterr().err


@pytest.mark.usefixtures("listed")
def test_a_version_that_was_not_evaluated_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert served.main(["--version", "0.0"]) == 1
    assert "make evaluate VERSION=0.0" in capsys.readouterr().err

"""Measuring a version as it is served: against the real service, and where that answers wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import VERSIONS, Service, environment_of

from handler.network import CLASSES
from serving.golden import SAMPLES
from serving.settings import Settings
from training import served

DRAWN = sorted(path for path in SAMPLES.glob("*.png") if path.stem.upper() in CLASSES)
FILES = [path.read_bytes() for path in DRAWN]
LABELS = np.array([CLASSES.index(path.stem.upper()) for path in DRAWN])


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_archive_says_what_its_weights_say(
    service: Service, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    for name, value in environment_of(service.settings).items():
        monkeypatch.setenv(name, value)
    measured = served.measure(version, FILES, LABELS, served.through_rest(version))
    assert measured["images"] == len(FILES) == len(CLASSES)
    assert measured["answers_that_differ"] == 0
    assert measured["image_accuracy"] == 1
    for spread in measured["milliseconds"].values():
        assert 0 < spread["median"] <= spread["95th percentile"]


def test_wrong_and_differing_answers_are_counted(version: str) -> None:
    """A service that calls all cells monocytes."""
    shares = {name: float(name == "MONOCYTE") for name in CLASSES}
    measured = served.measure(version, FILES, LABELS, lambda file: {"probabilities": shares})
    assert measured["image_accuracy"] == 0.25
    assert measured["answers_that_differ"] >= 3


def test_without_a_service_it_says_what_to_do(
    blood_cells: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    version: str,
) -> None:
    assert blood_cells.is_dir()
    monkeypatch.setattr(Settings, "from_environment", lambda: Settings(run_dir=tmp_path))
    monkeypatch.setattr(served.version_files, "folder", lambda name: tmp_path / name)
    monkeypatch.setattr(served, "on_one_core", lambda name: lambda file: {})
    assert served.main(["--version", version]) == 1
    assert "`make run` does" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

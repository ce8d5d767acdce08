"""What the tests share: the data set, the sample image, and the real service on free ports."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in import StandIn

from benchmarks import service as of_its_own
from benchmarks.service import Service, run_service
from serving import deployment
from serving.settings import ROOT, Settings
from training import data

DEPLOYMENT = deployment.load(ROOT / "deployment.yaml")
# The versions that the service loads: the first answers by default.
SERVED = sorted(DEPLOYMENT.versions, key=lambda version: version != DEPLOYMENT.default)
# Those that are finished.
CARDS = {
    path.parent.name: json.loads((path.parent / "card.json").read_text())
    for path in sorted(ROOT.glob("models/*/golden.json"))
}
# Those of a laboratory's own (`make train FROM=...`) are not this project's to test.
VERSIONS = [version for version, card in CARDS.items() if "adapted_from" not in card]


@pytest.fixture(scope="session")
def blood_cells() -> Path:
    """Return the folder of the data set; without it, skip, but not in CI."""
    try:
        return data.data_root()
    except data.DataError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def sample_image() -> Path:
    return ROOT / "serving" / "samples" / "neutrophil.png"


def free_settings(run_dir: Path) -> Settings:
    """Return settings with free ports, and with a folder and a deployment of their own."""
    return of_its_own.free_settings(run_dir, DEPLOYMENT)


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    """Run what answers in place of TorchServe."""
    with StandIn(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run the whole service for as long as tests need it."""
    running = run_service(free_settings(tmp_path_factory.mktemp("run")))
    yield running
    if running.process.poll() is None:
        running.stop()

"""What the tests share: the data set, the sample image, and the real service on free ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

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


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on; all are held at once, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def free_settings(run_dir: Path) -> Settings:
    """Return settings with free ports, and with a folder and a deployment of their own."""
    names = [name.lower() for name in Settings().ports]
    own = run_dir.with_name(f"{run_dir.name}.deployment.yaml")
    own.parent.mkdir(parents=True, exist_ok=True)
    deployment.save(DEPLOYMENT, own)
    return Settings(
        **dict(zip(names, free_ports(len(names)), strict=True)), run_dir=run_dir, deployment=own
    )


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the environment in which `python -m serving` takes these settings."""
    return (
        os.environ
        | {name: str(port) for name, port in settings.ports.items()}
        | {
            "RUN_DIR": str(settings.run_dir),
            "MODEL_STORE": str(settings.model_store),
            "DEPLOYMENT": str(settings.deployment),
        }
    )


@dataclass
class Service:
    """A running service: its settings, the process that runs it, and where that prints."""

    settings: Settings
    process: subprocess.Popen[bytes]
    printed: Path

    @property
    def frontend_url(self) -> str:
        return self.settings.frontend_url

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Stop it as a person or an init system would; return what it printed."""
        self.process.send_signal(number)
        self.process.wait(timeout=60)
        return self.printed.read_text()


def start(settings: Settings) -> Service:
    """Start `python -m serving run`; do not wait."""
    # Into a file: a pipe that nobody reads would stop the service in the end.
    handle, name = tempfile.mkstemp(dir=settings.run_dir.parent, suffix=".printed")
    with open(handle, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving", "run"],
            cwd=ROOT,
            env=environment_of(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Service(settings, process, Path(name))


def run_service(settings: Settings) -> Service:
    """Start the service and wait until it says that it is ready."""
    service = start(settings)
    while "Ctrl-C stops everything." not in service.printed.read_text():
        if service.process.poll() is not None:
            raise AssertionError(f"the service did not start:\n{service.printed.read_text()}")
        time.sleep(0.1)
    return service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run the whole service for as long as tests need it."""
    running = run_service(free_settings(tmp_path_factory.mktemp("run")))
    yield running
    if running.process.poll() is None:
        running.stop()

"""Readiness: all workers have started, and the answers to the known images are correct.

TorchServe's own /ping is "Healthy" while models load, and without any worker.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from serving.client import InferenceClient, ManagementClient, ServiceError
from serving.deployment import archives, known_answers
from serving.deployment.archives import BadArchive
from serving.settings import MODEL, Settings

PATIENCE = 120.0
Report = Callable[[str], None]


class NotReady(Exception):
    """The service is not ready yet; the message describes why."""


class NeverReady(Exception):
    """The service will not become ready; the message explains why."""


class WorkerLog:
    """The lines that TorchServe logs about workers from now on."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.run_dir / "logs" / "torchserve.log"
        self._start = self._path.stat().st_size if self._path.exists() else 0

    def failure(self, version: str) -> str | None:
        """Return why a worker of a version exits, after two exits in a row, or None.

        TorchServe would restart it for minutes.
        """
        lines = self._lines(version)
        if not any("Auto recovery failed again" in line for line in lines):
            return None
        for mark in ("Failed to load model", "Error: "):
            for line in reversed(lines):
                if mark in line:
                    return line.partition(" - ")[2].strip().rstrip(".")
        return f"it exits without a message (see {self._path})"

    def _lines(self, version: str) -> list[str]:
        try:
            content = self._path.read_bytes()
        except OSError:
            return []
        # A log that is shorter than before is a new one.
        new = content[self._start if self._start <= len(content) else 0 :]
        # Lines about a worker start with its thread's name: W-9000-bloodcells_1.0-stdout.
        own = re.compile(rf"\[W-[0-9]+-{MODEL}_{re.escape(version)}(-stdout|-stderr)?\]")
        return [line for line in new.decode(errors="replace").splitlines() if own.search(line)]


def check_workers(client: ManagementClient, version: str, workers: int) -> None:
    """Check the number of ready workers of a version; raise NotReady or ServiceError."""
    description = client.describe(version)
    ready = sum(worker["status"] == "READY" for worker in description["workers"])
    if ready < workers:
        raise NotReady(f"version {version} has {ready} of {workers} workers ready")


def check_answers(client: InferenceClient, version: str, archive: Path) -> None:
    """Send the known images to a version; raise NeverReady or ServiceError."""
    try:
        answers = known_answers.answers(archive)
    except BadArchive as error:
        raise NeverReady(str(error)) from error
    for name, known in answers.items():
        answer = client.ask_known(name, version)
        if answer["version"] != version or not known_answers.agree(answer["probabilities"], known):
            raise NeverReady(
                f"Version {version} no longer gives the answer to {name} that it gave when it was "
                f"evaluated: run `make evaluate VERSION={version}`."
            )


def wait_until_ready(
    settings: Settings,
    workers: Mapping[str, int],
    hopeless: Callable[[str, Exception], str | None],
    patience: float = PATIENCE,
    report: Report = lambda message: None,
) -> None:
    """Wait until all versions have their workers and answer correctly; raise NeverReady.

    After each failed check, `hopeless` gets the version and the error, and returns a reason to give
    up, or None.
    """
    inference, management = InferenceClient(settings), ManagementClient(settings)
    deadline = time.monotonic() + patience
    try:
        for version, count in workers.items():
            while True:
                try:
                    check_workers(management, version, count)
                    check_answers(inference, version, archives.deployed(settings, version))
                    break
                except (NotReady, ServiceError) as error:
                    if reason := hopeless(version, error):
                        raise NeverReady(reason) from error
                    if time.monotonic() > deadline:
                        raise NeverReady(f"Not ready in time: {error}.") from error
                    report(str(error))
                    time.sleep(0.1)
    finally:
        inference.close()
        management.close()

"""True readiness: the workers stand ready and the known images are answered rightly.

TorchServe's own /ping says "Healthy" while models still load and when there is no worker at all.
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
Say = Callable[[str], None]


class NotReady(Exception):
    """The service does not answer as it should; the message says how."""


class NeverReady(Exception):
    """The service will not be ready, however long one waits; the message says why."""


class WorkerLog:
    """What TorchServe logs of the workers, from now on."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.run_dir / "logs" / "torchserve.log"
        self._start = self._path.stat().st_size if self._path.exists() else 0

    def failure(self, version: str) -> str | None:
        """Return why a worker of a version dies, once it did so twice in a row, or None.

        TorchServe itself would start it again for minutes.
        """
        lines = self._lines(version)
        if not any("Auto recovery failed again" in line for line in lines):
            return None
        for mark in ("Failed to load model", "Error: "):
            for line in reversed(lines):
                if mark in line:
                    return line.partition(" - ")[2].strip().rstrip(".")
        return f"it ends without a word (see {self._path})"

    def _lines(self, version: str) -> list[str]:
        try:
            content = self._path.read_bytes()
        except OSError:
            return []
        # It is shorter than it was if a new one was begun.
        new = content[self._start if self._start <= len(content) else 0 :]
        # Each worker's lines come from threads that bear its name: W-9000-bloodcells_1.0-stdout.
        own = re.compile(rf"\[W-[0-9]+-{MODEL}_{re.escape(version)}(-stdout|-stderr)?\]")
        return [line for line in new.decode(errors="replace").splitlines() if own.search(line)]


def check_workers(client: ManagementClient, version: str, workers: int) -> None:
    """Ask for the workers of one version; raise NotReady or ServiceError."""
    description = client.describe(version)
    ready = sum(worker["status"] == "READY" for worker in description["workers"])
    if ready < workers:
        raise NotReady(f"version {version} has {ready} of {workers} workers ready")


def check_answers(client: InferenceClient, version: str, archive: Path) -> None:
    """Send the known images to one version; raise NeverReady or ServiceError."""
    try:
        answers = known_answers.answers(archive)
    except BadArchive as error:
        raise NeverReady(str(error)) from error
    for name, known in answers.items():
        answer = client.ask_known(name, version)
        if answer["version"] != version or not known_answers.agree(answer["probabilities"], known):
            # Waiting does not change that.
            raise NeverReady(
                f"Version {version} answers {name} otherwise than when it was evaluated: "
                f"run `make evaluate VERSION={version}`."
            )


def wait_until_ready(
    settings: Settings,
    workers: Mapping[str, int],
    hopeless: Callable[[str, Exception], str | None],
    patience: float = PATIENCE,
    say: Say = lambda message: None,
) -> None:
    """Return when each version has its workers, and answers rightly; raise NeverReady.

    `hopeless` is asked at each failure, with the version and the error, why to wait no longer.
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
                        raise NeverReady(f"It is not ready in time: {error}.") from error
                    say(str(error))
                    time.sleep(0.1)
    finally:
        inference.close()
        management.close()

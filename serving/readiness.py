"""True readiness: the workers stand ready and the known images are answered rightly.

TorchServe's own /ping says "Healthy" while models still load and when there is no worker at all.
"""

from __future__ import annotations

import time
from pathlib import Path

from serving import golden
from serving.client import InferenceClient, ManagementClient, ServiceError
from serving.torchserve import StartError, TorchServe


class NotReady(Exception):
    """The service does not answer as it should; the message says how."""


def check_answers(
    client: InferenceClient, version: str, answers: dict[str, golden.Probabilities]
) -> None:
    """Send the known images to one version; raise StartError or ServiceError."""
    for name, known in answers.items():
        answer = client.predict((golden.SAMPLES / name).read_bytes(), version)
        if answer["version"] != version or not golden.agree(answer["probabilities"], known):
            # Waiting does not change that.
            raise StartError(
                f"Version {version} answers {name} otherwise than when it was evaluated: "
                f"run `make evaluate VERSION={version}`."
            )


def check_workers(client: ManagementClient, version: str) -> None:
    """Ask for the workers of one version; raise NotReady or ServiceError."""
    description = client.describe(version)
    ready = sum(worker["status"] == "READY" for worker in description["workers"])
    if ready < max(1, description["minWorkers"]):
        wanted = description["minWorkers"]
        raise NotReady(f"version {version} has {ready} of {wanted} workers ready")


def wait_until_ready(server: TorchServe, patience: float = 120) -> None:
    """Return when each version is ready; raise StartError, with the reason, if one can't be."""
    inference = InferenceClient(server.settings)
    management = ManagementClient(server.settings)
    deadline = time.monotonic() + patience
    for version, archive in server.archives.items():
        answers = _known_answers(archive)
        while True:
            try:
                check_workers(management, version)
                check_answers(inference, version, answers)
                break
            except (NotReady, ServiceError) as error:
                _give_up_if_hopeless(server, error, deadline)
                time.sleep(0.1)


def _known_answers(archive: Path) -> dict[str, golden.Probabilities]:
    try:
        return golden.answers(archive)
    except golden.UnknownAnswers as error:
        raise StartError(str(error)) from error


def _give_up_if_hopeless(server: TorchServe, error: Exception, deadline: float) -> None:
    where = f"See {server.log.parent}."
    if server.exit_code() is not None:
        raise StartError(f"TorchServe ended with exit code {server.exit_code()}. {where}")
    if reason := _worker_failure(server.log):
        raise StartError(f"A worker can't start: {reason}. {where}")
    if time.monotonic() > deadline:
        raise StartError(f"The service is not ready in time: {error}. {where}")


def _worker_failure(log: Path) -> str | None:
    """Return why workers die, once they did so twice; TorchServe itself would try for minutes."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return None
    if sum("Backend worker process died" in line for line in lines) < 2:
        return None
    for mark in ("Failed to load model", "Error: "):
        for line in reversed(lines):
            if mark in line:
                return line.partition(" - ")[2].strip().rstrip(".")
    return "it ends without a word"

"""Checks of the installation and the service.

The checks change nothing, and no finding shows a token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from serving.client import ServiceError
from serving.deployment import DeploymentError
from serving.deployment.archives import BadArchive
from serving.doctor import configuration, machine, running
from serving.doctor.findings import (
    NOT_CHECKED,
    OK,
    PROBLEM,
    WARNING,
    Check,
    Context,
    Finding,
    NotChecked,
)
from serving.rollout.readiness import NeverReady
from serving.settings import Settings
from serving.torchserve import StartError
from serving.torchserve.tokens import KEY_FILE, TokenError

__all__ = ["CHECKS", "NOT_CHECKED", "OK", "PROBLEM", "WARNING", "Context", "Finding", "examine"]

# Both in the order of the report.
SETUP_CHECKS: dict[str, Check] = {
    "Python": machine.check_python,
    "packages": machine.check_packages,
    "Java": machine.check_java,
    "kill": machine.check_kill,
    "disk": machine.check_disk,
    "memory": machine.check_memory,
    "folder": configuration.check_folder,
    "deployment": configuration.check_deployment,
    "config": configuration.check_config,
    "archives": configuration.check_archives,
    "ports": configuration.check_ports,
}
SERVICE_CHECKS: dict[str, Check] = {
    "ready": running.check_ready,
    "TorchServe": running.check_torchserve,
    "page": running.check_page,
    "tokens": running.check_tokens,
    "workers": running.check_workers,
    "in sync": running.check_in_sync,
    "settings": running.check_settings,
    "answers": running.check_answers,
    "queue": running.check_queue,
    "log": running.check_log,
    "edge": running.check_edge,
}
CHECKS = SETUP_CHECKS | SERVICE_CHECKS


def examine(settings: Settings) -> list[Finding]:
    """Run all checks; return their findings."""
    context = Context(settings)
    secrets = _secrets(settings.run_dir)
    return [
        replace(
            finding,
            check=name,
            found=_redact(finding.found, secrets),
            advice=_redact(finding.advice, secrets),
        )
        for name in CHECKS
        for finding in run_check(name, context)
    ]


def run_check(name: str, context: Context) -> Iterator[Finding]:
    """Run one check; yield its findings, also if it raises an error."""
    if name in SERVICE_CHECKS and context.pid is None:
        yield Finding(NOT_CHECKED, "the service does not run")
        return
    try:
        yield from CHECKS[name](context)
    except NotChecked as reason:
        yield Finding(NOT_CHECKED, str(reason))
    except (BadArchive, DeploymentError, StartError, ServiceError, NeverReady, TokenError) as error:
        # Their messages say what to do.
        yield Finding(PROBLEM, str(error))
    except Exception as error:
        yield Finding(PROBLEM, f"the check failed: {type(error).__name__}: {error}")


def _secrets(run_dir: Path) -> list[str]:
    try:
        keys = json.loads((run_dir / KEY_FILE).read_text())
        return [each["key"] for each in keys.values() if each["key"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _redact(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "[token]")
    return text

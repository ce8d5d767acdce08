"""What a check reports, and what the checks share."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from serving import deployment
from serving.client import ManagementClient, ServiceError
from serving.deployment import Deployment, DeploymentError
from serving.settings import Settings
from serving.supervisor import service as supervisor

OK, WARNING, PROBLEM, NOT_CHECKED = "ok", "warning", "problem", "not checked"

# A service that hangs must not make the doctor hang.
TIMEOUT = (2.0, 10.0)


@dataclass(frozen=True)
class Finding:
    """The state of one thing, and what to do about it."""

    state: str
    found: str
    advice: str = ""
    check: str = ""

    @classmethod
    def judge(cls, ok: bool, found: str, advice: str) -> Finding:
        """Return what was found as ok, or as a problem with advice."""
        return cls(OK, found) if ok else cls(PROBLEM, found, advice)


class NotChecked(Exception):
    """A check is not possible, but this is not a problem; the message gives the reason."""


class Context:
    """The settings, deployment.yaml and TorchServe's description, each read once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pid = supervisor.running(settings.run_dir)

    @cached_property
    def deployment(self) -> Deployment:
        """The content of deployment.yaml; raise NotChecked if it is invalid."""
        try:
            return deployment.load(self.settings.deployment)
        except DeploymentError as error:
            raise NotChecked(f"{self.settings.deployment.name} is not valid") from error

    @cached_property
    def response(self) -> dict[str, dict[str, Any]] | ServiceError:
        """TorchServe's description of each version, or why there is none."""
        with closing(ManagementClient(self.settings, timeout=TIMEOUT)) as client:
            try:
                return client.versions()
            except ServiceError as error:
                return error

    @property
    def versions(self) -> dict[str, dict[str, Any]]:
        """TorchServe's description of each version; raise NotChecked if there is none."""
        if isinstance(self.response, ServiceError):
            raise NotChecked("TorchServe does not answer")
        return self.response

    @property
    def log(self) -> Path:
        return self.settings.run_dir / "logs" / "torchserve.log"


Check = Callable[[Context], Iterator[Finding]]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; raise NotChecked if it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise NotChecked(f"cannot read {path} ({error.strerror})") from error


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to an address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback

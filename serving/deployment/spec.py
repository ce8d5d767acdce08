"""The desired state of the service, in deployment.yaml.

Each start, and `apply`, brings the service to this state. The other commands change the service,
and then the file.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from serving.deployment import round_trip
from serving.files import atomic_write
from serving.settings import VERSION_NAME

MAX_WORKERS = 64
HEADER = """\
# The versions that the service serves. `make run` and `python -m serving apply` read this file;
# the other commands (promote, canary, scale, ...) write their changes to it and keep comments.
#
# `sha256` is optional: an archive with another SHA-256 is refused.
"""


class DeploymentError(Exception):
    """deployment.yaml can't be used; the message explains why and what to do."""


@dataclass(frozen=True)
class VersionSpec:
    """A version to serve: its number of workers, and the SHA-256 of its archive."""

    workers: int
    sha256: str | None = None


@dataclass(frozen=True)
class Canary:
    """A version that serves a share of the clients, and the limits for its automatic rollback."""

    version: str
    # Of the clients, not of the requests: a client stays with its version.
    percent: float
    # The error rate in percent, less the default version's.
    max_errors: float = 2.0
    # The 95th percentile of the response times in milliseconds.
    max_p95: float = 1000.0


@dataclass(frozen=True)
class Deployment:
    """The versions to serve, the default among them, and the canary."""

    default: str
    versions: dict[str, VersionSpec] = field(default_factory=dict)
    canary: Canary | None = None

    def __post_init__(self) -> None:
        """Validate it; raise DeploymentError."""
        for name, version in self.versions.items():
            if not VERSION_NAME.fullmatch(name):
                raise DeploymentError(f"{name!r} is not a valid version name, such as 3.0.")
            if type(version.workers) is not int or not 1 <= version.workers <= MAX_WORKERS:
                raise DeploymentError(
                    f"Version {name} must have 1 to {MAX_WORKERS} workers, not {version.workers}."
                )
            if version.sha256 is not None and not _is_digest(version.sha256):
                raise DeploymentError(f"The sha256 of version {name} must be 64 hex digits.")
        if self.default not in self.versions:
            raise DeploymentError(f"The default, {self.default}, is not one of the versions.")
        if self.canary:
            self._check_canary(self.canary)

    def _check_canary(self, canary: Canary) -> None:
        if canary.version not in self.versions or canary.version == self.default:
            raise DeploymentError(
                f"The canary, {canary.version}, must be a version other than the default."
            )
        if not 0 < canary.percent < 100:
            raise DeploymentError(
                f"The percent of a canary must be between 0 and 100, not {canary.percent:g}."
            )
        # Each comparison with nan is false.
        if not (canary.max_errors >= 0 and canary.max_p95 > 0):
            raise DeploymentError("The limits of a canary must be positive.")

    def with_version(self, name: str, version: VersionSpec) -> Deployment:
        return replace(self, versions=self.versions | {name: version})

    def without_version(self, name: str) -> Deployment:
        return replace(self, versions={k: v for k, v in self.versions.items() if k != name})


def load(path: Path) -> Deployment:
    """Read deployment.yaml; raise DeploymentError."""
    try:
        return from_document(YAML(typ="safe", pure=True).load(path.read_text()))
    except OSError as error:
        raise DeploymentError(f"{path} can't be read: {error.strerror}.") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise DeploymentError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    except DeploymentError as error:
        raise DeploymentError(f"{path}: {error}") from error


def save(deployment: Deployment, path: Path) -> None:
    """Write deployment.yaml. What does not change stays as the user wrote it, also comments."""
    document = to_document(deployment)
    if path.exists():
        text = round_trip.edited(path.read_text(), to_document(load(path)), document)
    else:
        text = HEADER + round_trip.dumped(document)
    with atomic_write(path) as file:
        file.write(text.encode())


def from_document(document: Any) -> Deployment:
    """Return the deployment that a YAML or JSON document describes; raise DeploymentError."""
    try:
        if unknown := document.keys() - {"default", "versions", "canary"}:
            raise DeploymentError(f"Unknown keys: {', '.join(sorted(map(repr, unknown)))}.")
        versions = {_name(name): VersionSpec(**each) for name, each in document["versions"].items()}
        canary = document.get("canary")
        return Deployment(
            default=_name(document["default"]),
            versions=versions,
            canary=Canary(**{**canary, "version": _name(canary["version"])}) if canary else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DeploymentError(
            "It must have `default`, `versions` with `workers` for each, and optionally `canary` "
            f"with `version` and `percent` ({error})."
        ) from error


def to_document(deployment: Deployment) -> dict[str, Any]:
    """Return a deployment as a YAML or JSON document."""
    return {
        "default": deployment.default,
        "versions": {
            name: {key: value for key, value in asdict(version).items() if value is not None}
            for name, version in sorted(deployment.versions.items())
        },
        "canary": asdict(deployment.canary) if deployment.canary else None,
    }


def _name(version: object) -> str:
    """Return the name of a version; raise DeploymentError if YAML read it as a number."""
    if version is None:
        raise TypeError("a version has no name")
    if not isinstance(version, str):
        # YAML reads 1.10 as 1.1.
        raise DeploymentError(f"Put the name of a version in quotes: '{version}'.")
    return version


def _is_digest(sha256: object) -> bool:
    return isinstance(sha256, str) and re.fullmatch("[0-9a-fA-F]{64}", sha256) is not None

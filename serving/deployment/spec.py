"""What the service is to serve: deployment.yaml, and the history of its changes beside it.

The file is the state: at each start, and on `apply`, the service is brought to it; each change that
succeeds is written to it. Who changes it holds a lock, so that changes come one after another.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from serving.files import atomic_write
from serving.settings import VERSION_NAME

MAX_WORKERS = 64
HEADER = """\
# What the service serves. At each start, and by `python -m serving apply`, it is brought to this;
# the other commands (promote, canary, scale, ...) write here what they have done.
#
# A version's `sha256`, where it stands, is that of its archive: another one is refused.
"""


class DeploymentError(Exception):
    """deployment.yaml can't be used; the message says why and what to do."""


@dataclass(frozen=True)
class VersionSpec:
    """A version that is to be served: its number of workers, and what its archive must be."""

    workers: int
    sha256: str | None = None


@dataclass(frozen=True)
class Canary:
    """A version that gets some of the default's work, within bounds that it must keep."""

    version: str
    # Of the clients, not of the requests: each stays with its version.
    percent: float
    # Requests that fail, in percent above the default version's.
    max_errors: float = 2.0
    # Of the answers, 19 in 20 must take at most so many milliseconds.
    max_p95: float = 1000.0


@dataclass(frozen=True)
class Deployment:
    """The versions that are to be served, and who answers by default."""

    default: str
    versions: dict[str, VersionSpec] = field(default_factory=dict)
    canary: Canary | None = None

    def __post_init__(self) -> None:
        """Check that it is possible; raise DeploymentError."""
        for name, version in self.versions.items():
            if not VERSION_NAME.fullmatch(name):
                raise DeploymentError(f"{name!r} is not the name of a version, as 2.0 is.")
            if type(version.workers) is not int or not 1 <= version.workers <= MAX_WORKERS:
                raise DeploymentError(
                    f"Version {name} must have 1 to {MAX_WORKERS} workers, not {version.workers}."
                )
            if version.sha256 is not None and not _is_digest(version.sha256):
                raise DeploymentError(f"The sha256 of version {name} must be 64 hex digits.")
        if self.default not in self.versions:
            raise DeploymentError(f"The default, {self.default}, is none of the versions.")
        if self.canary:
            self._check_canary(self.canary)

    def _check_canary(self, canary: Canary) -> None:
        if canary.version not in self.versions or canary.version == self.default:
            raise DeploymentError(
                f"The canary, {canary.version}, must be a version beside the default."
            )
        if not 0 < canary.percent < 100:
            raise DeploymentError(f"A canary gets 0 to 100 percent, not {canary.percent:g}.")
        # Written so that nan, with which nothing compares, is refused.
        if not (canary.max_errors >= 0 and canary.max_p95 > 0):
            raise DeploymentError("The bounds of a canary must be positive.")

    def with_version(self, name: str, version: VersionSpec) -> Deployment:
        """Return this with a version added or changed."""
        return replace(self, versions=self.versions | {name: version})

    def without_version(self, name: str) -> Deployment:
        """Return this with a version taken out."""
        return replace(self, versions={k: v for k, v in self.versions.items() if k != name})


def load(path: Path) -> Deployment:
    """Read deployment.yaml; raise DeploymentError."""
    try:
        return from_document(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise DeploymentError(f"{path} can't be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DeploymentError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    except DeploymentError as error:
        raise DeploymentError(f"{path}: {error}") from error


def save(deployment: Deployment, path: Path) -> None:
    """Write deployment.yaml, whole or not at all."""
    text = HEADER + yaml.safe_dump(to_document(deployment), sort_keys=False)
    with atomic_write(path) as file:
        file.write(text.encode())


def from_document(document: Any) -> Deployment:
    """Read a deployment from what YAML or JSON gave; raise DeploymentError."""
    try:
        if unknown := document.keys() - {"default", "versions", "canary"}:
            raise DeploymentError(f"It must not hold {', '.join(sorted(map(repr, unknown)))}.")
        versions = {_name(name): VersionSpec(**each) for name, each in document["versions"].items()}
        canary = document.get("canary")
        return Deployment(
            default=_name(document["default"]),
            versions=versions,
            canary=Canary(**{**canary, "version": _name(canary["version"])}) if canary else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DeploymentError(
            "It must hold `default`, `versions` with the `workers` of each, and maybe a `canary` "
            f"with `version` and `percent` ({error})."
        ) from error


def to_document(deployment: Deployment) -> dict[str, Any]:
    """Return a deployment as YAML and JSON hold it."""
    return {
        "default": deployment.default,
        "versions": {
            name: {key: value for key, value in asdict(version).items() if value is not None}
            for name, version in sorted(deployment.versions.items())
        },
        "canary": asdict(deployment.canary) if deployment.canary else None,
    }


def _name(version: object) -> str:
    """Return the name of a version; raise DeploymentError if YAML took it for a number."""
    if version is None:
        raise TypeError("a version has no name")
    if not isinstance(version, str):
        # 1.10 would have become 1.1.
        raise DeploymentError(f"A version is named in quotes: '{version}'.")
    return version


def _is_digest(sha256: object) -> bool:
    return isinstance(sha256, str) and re.fullmatch("[0-9a-fA-F]{64}", sha256) is not None

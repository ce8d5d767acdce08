"""Which version answers which client: a file that changes write and every client reads.

The file exists only while the service is ready. Clients wait while it is missing, or while their
version is paused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from serving.deployment import Deployment
from serving.files import atomic_write

FILE = "routing.json"
# Seconds; a pause ends by itself if the process that began it is killed.
LONGEST_PAUSE = 15.0


@dataclass(frozen=True)
class Routing:
    """The deployed versions, and the share of the clients that the canary gets."""

    default: str
    versions: tuple[str, ...]
    canary: str | None = None
    percent: float = 0.0
    # By version: the end of its pause, in seconds since the epoch.
    paused: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, deployment: Deployment) -> Routing:
        canary = deployment.canary
        return cls(
            deployment.default,
            tuple(sorted(deployment.versions)),
            canary.version if canary else None,
            canary.percent if canary else 0.0,
        )

    def choose(self, client: str) -> str:
        """Return the version that answers a client: the same one until the deployment changes."""
        if self.canary and _place(self.canary, client) < self.percent:
            return self.canary
        return self.default

    def share(self, version: str) -> float:
        """Return the percentage of clients that a version answers."""
        if version == self.canary:
            return self.percent
        return 100.0 - self.percent if version == self.default else 0.0

    def is_paused(self, version: str) -> bool:
        """Return whether clients must not send to a version now."""
        # A longer pause means that the clock was set back.
        return 0 < self.paused.get(version, 0.0) - time.time() <= LONGEST_PAUSE


class RoutingFile:
    """The routing of a running service; safe to share between threads."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE
        self._read: tuple[str, Routing] | None = None

    def read(self) -> Routing | None:
        """Return the routing, or None while the service is not ready."""
        try:
            # Always the content: two files of one moment may share time and inode number.
            text = self._path.read_text()
        except FileNotFoundError:
            return None
        read = self._read
        if read is None or read[0] != text:
            read = self._read = (text, _parse(text))
        return read[1]

    def publish(self, routing: Routing) -> None:
        """Replace the routing that all clients read."""
        with atomic_write(self._path) as file:
            file.write(json.dumps(asdict(routing)).encode())

    def withdraw(self) -> None:
        """Remove the routing: the service is not ready."""
        self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def pause(self, version: str) -> Iterator[None]:
        """Make all clients wait before they send to a version."""
        routing = self.read()
        if routing is None:
            yield
            return
        until = time.time() + LONGEST_PAUSE
        self.publish(replace(routing, paused={**routing.paused, version: until}))
        try:
            yield
        finally:
            # Only this pause: the service may have stopped or restarted meanwhile.
            now = self.read()
            if now and now.paused.get(version) == until:
                others = {name: end for name, end in now.paused.items() if name != version}
                self.publish(replace(now, paused=others))


def _parse(text: str) -> Routing:
    document = json.loads(text)
    return Routing(**{**document, "versions": tuple(document["versions"])})


def _place(canary: str, client: str) -> float:
    """Return a client's place from 0 to 100, a different one for each canary."""
    first = hashlib.sha256(f"{canary} {client}".encode()).digest()[:8]
    return int.from_bytes(first, "big") / 2**64 * 100

"""The API keys of the edge's clients: a file of their hashes, outside git, that nginx reads.

A key is shown once, when it is made. The file holds, by the SHA-256 of a key, whose it is and what
it may ask; deploy/nginx/edge.js reads it at each request.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from serving.files import Locked, atomic_write, lock

MAY = ("predict", "explain")
CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class KeyFileError(Exception):
    """The keys can't be read or changed; the message says why."""


@dataclass(frozen=True)
class Key:
    """Whose a key is, and what it may ask."""

    client: str
    allow: tuple[str, ...]
    # When, or None.
    revoked: str | None = None


class KeyFile:
    """The keys by their hashes, in a file that only its owner reads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Key]:
        """Return the keys by their hashes; raise KeyFileError."""
        try:
            document = json.loads(self._path.read_text())
            return {
                hashed: Key(each["client"], tuple(each["allow"]), each.get("revoked"))
                for hashed, each in document.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise KeyFileError(f"{self._path} can't be read as keys: {error!r}.") from error

    def add(self, client: str, allow: Iterable[str] = MAY) -> str:
        """Make a key for a client, and return it; raise KeyFileError."""
        if not CLIENT_NAME.fullmatch(client):
            raise KeyFileError(
                f"{client!r} is no name: letters, digits, '.', '_' and '-' make one."
            )
        key = secrets.token_urlsafe(32)
        with self._changed() as keys:
            keys[hashlib.sha256(key.encode()).hexdigest()] = Key(client, tuple(allow))
        return key

    def revoke(self, which: str) -> list[str]:
        """Revoke a client's keys, or the one whose hash begins so; return their hashes.

        Raises KeyFileError if there is none.
        """
        with self._changed() as keys:
            found = [
                hashed
                for hashed, key in keys.items()
                if not key.revoked and (key.client == which or _names(which, hashed))
            ]
            if not found:
                raise KeyFileError(f"No valid key is {which}'s, nor is one called so.")
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            keys.update({hashed: replace(keys[hashed], revoked=now) for hashed in found})
        return found

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, Key]]:
        """Yield the keys to be changed, then write them, whole; raise KeyFileError."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with lock(self._path.with_suffix(".lock"), "a key is changed", patience=10):
                keys = self.read()
                yield keys
                document = {hashed: _document(key) for hashed, key in keys.items()}
                with atomic_write(self._path, 0o600) as file:
                    file.write(json.dumps(document).encode())
        except Locked as error:
            raise KeyFileError(f"{self._path} is being changed by another: try again.") from error
        except OSError as error:
            raise KeyFileError(f"{self._path} can't be written: {error.strerror}.") from error


def _names(which: str, hashed: str) -> bool:
    return len(which) >= 8 and hashed.startswith(which)


def _document(key: Key) -> dict[str, object]:
    return {name: value for name, value in asdict(key).items() if value is not None}

"""The API keys of the edge's clients.

A key is shown once. The file has its SHA-256, its client and what it allows; deploy/nginx/edge.js
reads it for every request.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from serving.files import Locked, atomic_write, lock

MAY = ("predict", "explain")
CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
Permission = Annotated[str, Field(pattern=f"^({'|'.join(MAY)})$")]
ClientName = Annotated[str, Field(pattern=f"^{CLIENT_NAME.pattern}$")]


class KeyFileError(Exception):
    """The keys cannot be read or changed; the message explains why."""


@dataclass(frozen=True)
class Key:
    """The client of a key, and what it allows."""

    client: ClientName
    allow: tuple[Permission, ...]
    # An ISO 8601 time.
    revoked: Annotated[str, Field(min_length=1)] | None = None


_DOCUMENT = TypeAdapter(dict[str, Key])


class KeyFile:
    """A file of keys that only its owner can read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Key]:
        """Return the keys by their hashes; raise KeyFileError."""
        try:
            return _DOCUMENT.validate_json(self._path.read_text())
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            first = error.errors()[0]
            why = ": ".join(map(str, (*first["loc"], first["msg"])))
            raise KeyFileError(f"{self._path} is not a valid file of keys: {why}.") from error
        except (OSError, ValueError) as error:
            raise KeyFileError(f"{self._path} is not a valid file of keys: {error!r}.") from error

    def add(self, client: str, allow: Iterable[str] = MAY) -> str:
        """Create a key for a client, and return it; raise KeyFileError."""
        if not CLIENT_NAME.fullmatch(client):
            raise KeyFileError(
                f"{client!r} is not a valid name: use letters, digits, '.', '_' and '-'."
            )
        key = secrets.token_urlsafe(32)
        with self._changed() as keys:
            keys[hashlib.sha256(key.encode()).hexdigest()] = Key(client, tuple(allow))
        return key

    def revoke(self, which: str) -> list[str]:
        """Revoke all keys of a client, or one by the start of its hash; return their hashes.

        Raises KeyFileError if there is none.
        """
        with self._changed() as keys:
            found = [
                hashed
                for hashed, key in keys.items()
                if not key.revoked and (key.client == which or _names(which, hashed))
            ]
            if not found:
                raise KeyFileError(f"{which} has no active key, and no active key starts with it.")
            now = datetime.now(UTC).isoformat(timespec="seconds")
            keys.update({hashed: replace(keys[hashed], revoked=now) for hashed in found})
        return found

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, Key]]:
        """Yield the keys for changes, then write them; raise KeyFileError."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with lock(self._path.with_suffix(".lock"), "A key is being changed", patience=10):
                keys = self.read()
                yield keys
                document = {hashed: _document(key) for hashed, key in keys.items()}
                with atomic_write(self._path, 0o600) as file:
                    file.write(json.dumps(document).encode())
        except Locked as error:
            raise KeyFileError(f"Another process is changing {self._path}: try again.") from error
        except OSError as error:
            raise KeyFileError(f"{self._path} cannot be written: {error.strerror}.") from error


def _names(which: str, hashed: str) -> bool:
    return len(which) >= 8 and hashed.startswith(which)


def _document(key: Key) -> dict[str, object]:
    return {name: value for name, value in asdict(key).items() if value is not None}

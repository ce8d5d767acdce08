"""Read TorchServe's tokens from the file that it writes, and renew them before they expire.

TorchServe creates three keys at each start and writes them to key_file.json in its working
directory: one for inference, one for management, and one ("API") that only renews the others. A
renewed key replaces the old one at once, so a client that gets "invalid" reads the file again and
retries.
"""

from __future__ import annotations

import contextlib
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from serving.files import atomic_write
from serving.http import local_session
from serving.settings import Settings

KEY_FILE = "key_file.json"
HEADER_FILE = "inference.header"
Kind = Literal["inference", "management"]
KINDS: tuple[Kind, ...] = ("inference", "management")


class TokenError(Exception):
    """There is no token: TorchServe has not started yet, or another user runs it."""


class Tokens:
    """The current tokens of one service; safe to share between threads."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / KEY_FILE
        self._keys: dict[str, Any] = {}

    def header(self, kind: Kind | Literal["API"]) -> dict[str, str]:
        """Return the header that authorizes a request of this kind; raise TokenError."""
        return {"Authorization": f"Bearer {self._read()[kind]['key']}"}

    def expires(self, kind: Kind) -> datetime:
        """Return when the token expires, in UTC; raise TokenError."""
        return datetime.fromisoformat(self._read()[kind]["expiration time"])

    def _read(self) -> dict[str, Any]:
        try:
            self._keys = json.loads(self._path.read_text())
        except (OSError, ValueError) as error:
            # TorchServe writes in place. Until it has finished, use the last keys.
            if not self._keys:
                raise TokenError(f"{self._path} can't be read: is the service up?") from error
        return self._keys


def renew(settings: Settings, tokens: Tokens, kind: Kind) -> None:
    """Make TorchServe replace one token; raise requests.RequestException or TokenError."""
    with local_session() as session:
        response = session.get(
            f"{settings.management_url}/token",
            params={"type": kind},
            headers=tokens.header("API"),
            timeout=10,
        )
    response.raise_for_status()


def renew_if_due(settings: Settings, tokens: Tokens, kind: Kind, life: float) -> None:
    """Renew a token when less than a fifth of its life (in seconds) is left.

    Does nothing before TorchServe has written its tokens; raises what `renew` raises.
    """
    with contextlib.suppress(TokenError):
        if tokens.expires(kind).timestamp() - time.time() <= life / 5:
            renew(settings, tokens, kind)


def write_header(run_dir: Path, tokens: Tokens) -> None:
    """Write the inference token as a header for `curl -H @file`, which keeps it out of `ps`."""
    with atomic_write(run_dir / HEADER_FILE, 0o600) as file:
        file.write(_header_line(tokens).encode())


def correct_header(run_dir: Path, tokens: Tokens) -> None:
    """Rewrite the header if it holds an old token; do nothing if there is no header yet.

    TorchServe may renew a token without its answer arriving here, or the disk may be full then.
    """
    with contextlib.suppress(FileNotFoundError, TokenError):
        if (run_dir / HEADER_FILE).read_text() != _header_line(tokens):
            write_header(run_dir, tokens)


def _header_line(tokens: Tokens) -> str:
    return f"Authorization: {tokens.header('inference')['Authorization']}\n"

"""TorchServe's tokens: read from the file that it writes, and renewed before they expire.

TorchServe makes three keys at each start and writes them to key_file.json in its working directory:
one for inference, one for management, one ("API") that only renews the others. A renewed key
replaces the old one at once, so whoever is answered "invalid" reads the file again and retries.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

import requests

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
        return _time(self._read()[kind]["expiration time"])

    def _read(self) -> dict[str, Any]:
        try:
            self._keys = json.loads(self._path.read_text())
        except (OSError, ValueError) as error:
            # TorchServe writes in place: while it does, the last keys are still the best.
            if not self._keys:
                raise TokenError(f"{self._path} can't be read: is the service up?") from error
        return self._keys


def renew(settings: Settings, tokens: Tokens, kind: Kind) -> None:
    """Have TorchServe replace one token; raise requests.RequestException or TokenError."""
    with local_session() as session:
        response = session.get(
            f"{settings.management_url}/token",
            params={"type": kind},
            headers=tokens.header("API"),
            timeout=10,
        )
    response.raise_for_status()


def write_header(run_dir: Path, tokens: Tokens) -> None:
    """Write the inference token as a header, so that `curl -H @file` shows it to nobody."""
    with atomic_write(run_dir / HEADER_FILE, 0o600) as file:
        file.write(_header_line(tokens).encode())


def correct_header(run_dir: Path, tokens: Tokens) -> None:
    """Write the header anew if it holds another token; leave it away while the service starts.

    A renewal may come to pass and its answer not arrive, or the disk be full just then.
    """
    with contextlib.suppress(FileNotFoundError):
        if (run_dir / HEADER_FILE).read_text() != _header_line(tokens):
            write_header(run_dir, tokens)


def _header_line(tokens: Tokens) -> str:
    return f"Authorization: {tokens.header('inference')['Authorization']}\n"


def keep_fresh(settings: Settings, tokens: Tokens, life: float, stop: threading.Event) -> None:
    """Renew each token when four fifths of its life (in seconds) are over, until told to stop."""
    steps = [partial(_renew_if_due, settings, tokens, kind, life / 5) for kind in KINDS]
    steps.append(partial(correct_header, settings.run_dir, tokens))
    failing = False
    # Looked at so often, as our clock stands still while the machine sleeps. The tokens' does not.
    while not stop.wait(min(1.0, life / 20)):
        errors = []
        for step in steps:
            try:
                step()
            except TokenError:
                # TorchServe starts, or starts anew.
                break
            except (requests.RequestException, OSError, KeyError, ValueError) as error:
                errors.append(type(error).__name__)
        if errors and not failing:
            print(f"the tokens can't be renewed, trying on: {', '.join(errors)}", flush=True)
        failing = bool(errors)


def _renew_if_due(settings: Settings, tokens: Tokens, kind: Kind, left: float) -> None:
    if tokens.expires(kind).timestamp() - time.time() <= left:
        renew(settings, tokens, kind)


def _time(text: str) -> datetime:
    # fromisoformat knows neither "Z" nor nanoseconds before Python 3.11.
    whole, _, rest = text.rstrip("Z").partition(".")
    fraction = f".{rest[:6]:0<6}" if rest else ""
    return datetime.fromisoformat(whole + fraction).replace(tzinfo=timezone.utc)

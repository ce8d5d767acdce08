"""Files of a version, verified by the SHA-256 in its card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_checked(folder: Path, card: Mapping[str, Any], name: str) -> bytes:
    """Read a file; raise RuntimeError if it is unreadable or differs from its hash in the card."""
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise RuntimeError(f"{name} can't be read: {error.strerror}.") from error
    if hashlib.sha256(content).hexdigest() != card.get("sha256", {}).get(name):
        raise RuntimeError(
            f"{name} does not match its SHA-256 in card.json: build the version again."
        )
    return content

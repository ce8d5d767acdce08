"""The files of a version, held against its card, which names them by their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_checked(folder: Path, card: Mapping[str, Any], name: str) -> bytes:
    """Read a file; raise RuntimeError if it can't be read, or is not the one of the card."""
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise RuntimeError(f"{name} can't be read: {error.strerror}.") from error
    if hashlib.sha256(content).hexdigest() != card.get("sha256", {}).get(name):
        raise RuntimeError(f"{name} is not the file that card.json names: build it anew.")
    return content

"""Bound the size of the edge's log, which nginx writes but does not rotate."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from pathlib import Path

# In bytes. TorchServe's log has the same bounds (serving/torchserve/log4j2.xml).
SIZE = 10_000_000
OLD_FILES = 5


def rotate(log: Path) -> bool:
    """Rename the log if it has reached its size; return whether nginx must reopen it.

    edge.log becomes edge.1.log, and so on; the oldest file is replaced.
    """
    try:
        if log.stat().st_size < SIZE:
            return False
    except FileNotFoundError:
        return False
    files = [log, *(log.with_suffix(f".{number}.log") for number in range(1, OLD_FILES + 1))]
    for newer, older in reversed([*pairwise(files)]):
        with contextlib.suppress(FileNotFoundError):
            newer.replace(older)
    return True

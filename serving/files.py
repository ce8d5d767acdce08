"""Files that one process at a time holds; the hold ends with the process, even by kill -9."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class Locked(Exception):
    """Another process holds the file; the message is what that one wrote into it."""


@contextlib.contextmanager
def lock(path: Path, note: str, patience: float = 0.1) -> Iterator[None]:
    """Hold a file, with a note in it for whom that turns away; raise Locked.

    The patience, in seconds, is never 0: to look who holds a file is to hold it for a moment.
    """
    deadline = time.monotonic() + patience
    with open(path, "a+", opener=_for_its_owner) as file:
        while not _lock(file):
            if time.monotonic() > deadline:
                raise Locked(_note(file))
            time.sleep(0.01)
        file.truncate(0)
        file.write(note)
        file.flush()
        try:
            yield
        finally:
            # Not removed: another may have opened it already, and wait for this lock.
            file.truncate(0)


def lock_holder(path: Path) -> str | None:
    """Return the note of the process that holds the file, or None if none does."""
    try:
        with path.open("r+") as file:
            return None if _lock(file) else _note(file)
    except FileNotFoundError:
        return None


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _note(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Atomic replacement of files, and file locks.

The kernel releases a lock when its process ends, even by kill -9.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path
from typing import IO


class Locked(Exception):
    """Another process holds the lock; the message is the note that it left."""


@contextlib.contextmanager
def atomic_write(path: Path, mode: int | None = None) -> Iterator[BufferedRandom]:
    """Replace a file with what the block writes; keep the old one if the block fails.

    Without a mode, an existing file keeps its own. Readers never see half a file, and neither does
    the next start after a power failure.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
    try:
        with open(handle, "w+b") as file:
            if mode is None and path.exists():
                os.fchmod(handle, path.stat().st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def restored_on_failure(path: Path) -> Iterator[None]:
    """Restore a file, or its absence, if the block fails."""
    content = path.read_bytes() if path.exists() else None
    try:
        yield
    except BaseException:
        if content is None:
            path.unlink(missing_ok=True)
        else:
            with atomic_write(path) as file:
                file.write(content)
        raise


@contextlib.contextmanager
def lock(path: Path, note: str, patience: float = 0.1) -> Iterator[None]:
    """Hold the lock of a file and leave a note in it; raise Locked after the patience, in seconds.

    The patience is never 0, because `lock_holder` takes the lock for a moment.
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
            # Not removed: another process may have opened it already and wait for this lock.
            file.truncate(0)


def lock_holder(path: Path) -> str | None:
    """Return the note of the process that holds the lock, or None if none does."""
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

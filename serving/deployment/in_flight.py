"""Requests in flight to each version, as clients and the edge record them.

A client holds a shared lock on RUN_DIR/in-flight/VERSION.lock, which the kernel releases if the
client dies. The edge keeps a file RUN_DIR/edge/in-flight/VERSION~PID~REQUEST, with the process ID
of its nginx worker. Both record a request before they read the routing: a change that pauses a
version and then finds no request here can stop its workers safely.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from serving import files


@contextlib.contextmanager
def recorded(run_dir: Path, version: str) -> Iterator[None]:
    """Record that a client has a request in flight to a version."""
    with contextlib.ExitStack() as stack:
        # A full disk, or one without locks, costs no answer.
        with contextlib.suppress(OSError):
            file = _open(_lock_file(run_dir, version))
            stack.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def describe(run_dir: Path, version: str) -> str | None:
    """Describe the requests in flight to a version, or return None if there are none."""
    if files.lock_holder(_lock_file(run_dir, version)) is not None:
        return "a client waits for its answer"
    recorded = (run_dir / "edge" / "in-flight").glob(f"{version}~*~*")
    if any(psutil.pid_exists(int(file.name.split("~")[1])) for file in recorded):
        return "the edge waits for its answer"
    return None


def _lock_file(run_dir: Path, version: str) -> Path:
    return run_dir / "in-flight" / f"{version}.lock"


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

"""A wall clock that a test sets, for processes started with its environment (libfaketime).

Clocks that measure durations are left alone, as when an administrator sets the clock.
"""

from __future__ import annotations

from pathlib import Path

# libfaketime before 0.9.11 fails at the absolute monotonic sleep of Python 3.11 (its issue 426).
SLEEP = """import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""
# Seconds until the processes see a new time.
DELAY = 1
MISSING = "libfaketime is missing (Debian: apt install faketime)."


def library() -> Path | None:
    """Return the path of libfaketime for threaded programs, None if it is not installed."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class Clock:
    """The clock of some processes. Raises RuntimeError without libfaketime."""

    def __init__(self, folder: Path) -> None:
        found = library()
        if found is None:
            raise RuntimeError(MISSING)
        self._file = folder / "clock"
        self.set(0)
        (folder / "sitecustomize.py").write_text(SLEEP)
        self.environment = {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "PYTHONPATH": str(folder),
            # In seconds, instead of ten.
            "FAKETIME_CACHE_DURATION": str(DELAY),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """Set the clock ahead of the machine's by some seconds."""
        # Replaced at once, since a process may read it at any time.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n")
        new.replace(self._file)

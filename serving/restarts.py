"""Restart programs that exit: the limit, and the messages."""

from __future__ import annotations

import contextlib
import time
from collections import deque

from serving.torchserve import StartError

# Give up after EXITS exits within WITHIN seconds.
EXITS, WITHIN = 4, 120.0


class Exits:
    """The exits of a program that is restarted."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=EXITS)

    def add(self, why: str) -> None:
        """Count an exit; raise StartError if it is one too many."""
        self._times.append(time.monotonic())
        if len(self._times) == EXITS and self._times[-1] - self._times[0] < WITHIN:
            raise StartError(f"{why} Giving up after {EXITS} exits in {WITHIN:.0f} s.")
        say(f"{why} Restarting ...")

    def forget_last(self) -> None:
        self._times.pop()


def say(message: str) -> None:
    """Print a line and flush it; ignore errors, such as a full disk."""
    with contextlib.suppress(OSError):
        print(message, flush=True)

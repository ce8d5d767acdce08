"""Repeat background work; an error in it is logged and does not stop it."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping

from serving.restarts import say


def repeat(
    steps: Mapping[str, Callable[[], None]], seconds: float, ending: threading.Event
) -> None:
    """Run all steps at an interval in seconds until `ending` is set.

    A step that fails is logged by its name, once until it succeeds, and run again next time.
    """
    failing = set()
    while not ending.wait(seconds):
        for name, step in steps.items():
            try:
                step()
                failing.discard(name)
            except Exception as error:
                if name not in failing:
                    say(f"{name} failed, retrying: {_describe(error)}")
                failing.add(name)


def _describe(error: Exception) -> str:
    """Return an error and where it was raised, in one line."""
    [*_, last] = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"

"""Run a mixed load for half an hour, and measure whether memory grows: `make soak`."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks import engine, rig
from benchmarks.engine import Scenario
from benchmarks.outcome import MEMORY, Result, Step
from benchmarks.report import Document
from benchmarks.rig import Rig

CLIENTS = 4
MINUTES, QUICK_MINUTES = 30, 3
# Growth counts in the last two thirds of a run. In the last third it must be below LEAK, in MB an
# hour; a shorter run than JUDGED minutes still warms up then.
COUNTED, LATE = 2 / 3, 1 / 3
LEAK, JUDGED = 50.0, 15.0


def build(quick: bool) -> Scenario:
    """Return the soak."""
    minutes = QUICK_MINUTES if quick else MINUTES
    return Scenario(
        "soak",
        "The soak",
        f"Written by `make soak`: {CLIENTS} clients of TorchServe and of the page request answers "
        "and explanations, for images of all kinds and several sizes, single, as forms and as "
        "JSON; some images are damaged. Memory (RssAnon) excludes the pages of files, such as "
        "libraries. Growth is a slope with its standard error.",
        partial(rig.started, wanted=rig.DEPLOYED, token_life=60),
        {"mixed": CLIENTS},
        [Step(f"{minutes} minutes", partial(wait, 60 * minutes))],
        calm=0,
        conclude=conclude,
    )


def wait(seconds: float, it: Rig, result: Result) -> None:
    # Ctrl-C ends the soak early, and its report is still written.
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(seconds)


def conclude(it: Rig, samples: Sequence[Document]) -> tuple[Document, list[str]]:
    """Return the growth of memory, and what is a leak."""
    minutes = (samples[-1]["time"] - samples[0]["time"]) / 60
    rows, problems = [], []
    for kind, title in MEMORY.items():
        growth = {part: slope(samples, kind, minutes * (1 - part)) for part in (COUNTED, LATE)}
        first, last = (each["megabytes"].get(kind, 0) for each in (samples[0], samples[-1]))
        texts = [f"{found[0]:+g} ± {found[1]:g}" if found else "" for found in growth.values()]
        rows.append([title, f"{first:.0f}", f"{last:.0f}", *texts])
        late = growth[LATE]
        # Less than two standard errors may be chance.
        if minutes >= JUDGED and late and late[0] - 2 * late[1] > LEAK:
            problems.append(f"{title}: {late[0]:g} MB an hour more in the last third")
    if minutes < JUDGED:
        rows.append(["(too short to judge growth)", "", "", "", ""])
    heads = ["memory", "MB at first", "MB at last", "MB an hour", "in the last third"]
    return {"heads": heads, "rows": rows}, problems


def slope(samples: Sequence[Any], kind: str, first: float) -> tuple[float, float] | None:
    """Return the growth of memory in MB an hour from a minute on, and its standard error.

    A least-squares line through the means of whole minutes, since the samples of one minute depend
    on each other. None for less than three minutes.
    """
    by_minute: dict[int, list[float]] = defaultdict(list)
    for each in samples:
        minute = (each["time"] - samples[0]["time"]) / 60
        if minute >= first:
            by_minute[int(minute)].append(each["megabytes"].get(kind, 0))
    if len(by_minute) < 3:
        return None
    hours = np.array(sorted(by_minute)) / 60
    means = np.array([np.mean(by_minute[minute]) for minute in sorted(by_minute)])
    apart = hours - hours.mean()
    spread = float((apart**2).sum())
    growth = float((apart * means).sum()) / spread
    rest = means - means.mean() - growth * apart
    error = float(np.sqrt((rest**2).sum() / (len(hours) - 2) / spread))
    # Rounding may leave -0; adding zero makes it 0.
    return round(growth, 1) + 0.0, round(error, 1)


if __name__ == "__main__":
    engine.main(build)

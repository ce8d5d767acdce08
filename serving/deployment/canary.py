"""The watch over a canary: what its clients got, and when it must go back.

While a canary runs, each client appends a line for each answer (`outcomes` in RUN_DIR); the service
reads them, and takes the canary back when it breaks the bounds that were set for it.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serving.deployment import Canary

FILE = "outcomes"
# Seconds that an answer counts, and answers without which nothing is judged.
WINDOW = 120.0
ENOUGH = 20
# Failures that may always happen.
PARDONED = 2


@dataclass(frozen=True)
class Outcome:
    """What one request to a version came to."""

    time: float
    version: str
    failed: bool
    milliseconds: float


def note(run_dir: Path, version: str, failed: bool, seconds: float) -> None:
    """Append an outcome. A line this short is written whole, whoever else writes."""
    line = f"{time.time():.3f} {version} {int(failed)} {seconds * 1000:.2f}\n"
    file = os.open(run_dir / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


class Watch:
    """The outcomes of the last minutes, and the judgement on the canary."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE
        self._outcomes: deque[Outcome] = deque()

    def forget(self) -> None:
        """Start anew, as for another canary."""
        self._path.unlink(missing_ok=True)
        self._outcomes.clear()

    def read(self) -> None:
        """Take in what clients wrote since, and drop what is old."""
        taken = self._path.with_suffix(".taken")
        try:
            # So the file never grows. Who opened it before writes into this one.
            self._path.replace(taken)
            lines = taken.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        self._outcomes.extend(_parse(lines))
        while self._outcomes and self._outcomes[0].time < time.time() - WINDOW:
            self._outcomes.popleft()

    def verdict(self, canary: Canary, default: str) -> str | None:
        """Return why the canary must go back, or None if it may stay."""
        outcomes: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in self._outcomes:
            outcomes[outcome.version].append(outcome)
        own = outcomes[canary.version]
        if len(own) < ENOUGH:
            return None
        failures = sum(outcome.failed for outcome in own)
        errors, usual = error_percent(own), error_percent(outcomes[default])
        if failures > PARDONED and errors - usual > canary.max_errors:
            return (
                f"{failures} of its last {len(own)} requests failed ({errors:.1f} %, the default's "
                f"{usual:.1f} %; the bound is {canary.max_errors:g} % more)"
            )
        p95 = percentile(own, 95)
        if p95 > canary.max_p95:
            return (
                f"1 in 20 of its last {len(own)} answers took over {p95:.0f} ms "
                f"(the bound is {canary.max_p95:g} ms)"
            )
        return None


def error_percent(outcomes: Iterable[Outcome]) -> float:
    """Return the share of failures in percent; of nothing, 0."""
    failed = [outcome.failed for outcome in outcomes]
    return 100 * sum(failed) / len(failed) if failed else 0.0


def percentile(outcomes: Iterable[Outcome], percent: float) -> float:
    """Return the time in milliseconds that so many percent of the answers took at most."""
    times = sorted(outcome.milliseconds for outcome in outcomes)
    return times[math.ceil(len(times) * percent / 100) - 1]


def _parse(lines: Iterable[str]) -> Iterable[Outcome]:
    for line in lines:
        try:
            moment, version, failed, milliseconds = line.split()
            yield Outcome(float(moment), version, failed == "1", float(milliseconds))
        except ValueError:
            # Cut off by a full disk: one answer less.
            continue

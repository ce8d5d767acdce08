"""Outcomes of a canary's requests, and the decision when to roll it back.

While a canary runs, clients append a line for each answer to RUN_DIR/outcomes. The service reads
them, and rolls the canary back when it exceeds its limits.
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
# Seconds that an answer counts.
WINDOW = 120.0
# With fewer answers, there is no decision.
MIN_ANSWERS = 20
# So few failures are always tolerated.
TOLERATED = 2
# A canary is slow only if it takes this many times as long as the default version: a busy machine
# or a restart slows both.
SLOWER = 1.5


@dataclass(frozen=True)
class Outcome:
    """The result of one request to a version."""

    time: float
    version: str
    failed: bool
    milliseconds: float


def note(run_dir: Path, version: str, failed: bool, seconds: float) -> None:
    """Append an outcome. Lines this short are atomic, also with several writers."""
    line = f"{time.time():.3f} {version} {int(failed)} {seconds * 1000:.2f}\n"
    file = os.open(run_dir / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


class Watch:
    """The outcomes of the last minutes, and the decision about the canary."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE
        self._outcomes: deque[Outcome] = deque()

    def forget(self) -> None:
        """Forget all outcomes, for a new canary."""
        self._path.unlink(missing_ok=True)
        self._outcomes.clear()

    def read(self) -> None:
        """Read the new outcomes and drop old ones."""
        taken = self._path.with_suffix(".taken")
        try:
            # Keeps the file small. A client that has it open still writes to the renamed one.
            self._path.replace(taken)
            lines = taken.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        self._outcomes.extend(_parse(lines))
        while self._outcomes and self._outcomes[0].time < time.time() - WINDOW:
            self._outcomes.popleft()

    def verdict(self, canary: Canary, default: str) -> str | None:
        """Return why the canary must be rolled back, or None."""
        outcomes: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in self._outcomes:
            outcomes[outcome.version].append(outcome)
        own = outcomes[canary.version]
        if len(own) < MIN_ANSWERS:
            return None
        failures = sum(outcome.failed for outcome in own)
        errors, usual = error_percent(own), error_percent(outcomes[default])
        if failures > TOLERATED and errors - usual > canary.max_errors:
            return (
                f"{failures} of its last {len(own)} requests failed ({errors:.1f} %; the default "
                f"version: {usual:.1f} %; the limit is {canary.max_errors:g} % more)"
            )
        p95 = percentile(own, 95)
        others = outcomes[default]
        usual_p95 = percentile(others, 95) if len(others) >= MIN_ANSWERS else 0.0
        if p95 > max(canary.max_p95, SLOWER * usual_p95):
            return (
                f"the 95th percentile of its last {len(own)} response times is {p95:.0f} ms "
                f"(the limit is {canary.max_p95:g} ms)"
            )
        return None


def error_percent(outcomes: Iterable[Outcome]) -> float:
    """Return the share of failures in percent, or 0 without outcomes."""
    failed = [outcome.failed for outcome in outcomes]
    return 100 * sum(failed) / len(failed) if failed else 0.0


def percentile(outcomes: Iterable[Outcome], percent: float) -> float:
    """Return a percentile of the response times in milliseconds."""
    times = sorted(outcome.milliseconds for outcome in outcomes)
    return times[math.ceil(len(times) * percent / 100) - 1]


def _parse(lines: Iterable[str]) -> Iterable[Outcome]:
    for line in lines:
        try:
            moment, version, failed, milliseconds = line.split()
            yield Outcome(float(moment), version, failed == "1", float(milliseconds))
        except ValueError:
            # Truncated by a full disk.
            continue

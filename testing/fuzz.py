"""Fuzz what reads untrusted bytes: `make fuzz`, or `python -m testing.fuzz --seconds 3600`.

An input is a damaged seed. It runs in a child process with a memory limit. A finding is
- wrong: an exception that the target does not document, or a wrong answer,
- crash or hang: a child that dies, or gives no answer for a minute,
- slow: an input that costs more CPU time than the target's bound (only with a time limit).
Findings are saved in .build/fuzz/; put small ones into tests/corpus/. The command continues where
it was stopped. Without a time limit, each run makes the same inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from handler.contract import MAX_BYTES, kind_of
from serving.settings import ROOT
from testing.fuzz_targets import TARGETS, WRONG, Run, Target
from testing.service import machine

BUILD, RESULTS = ROOT / ".build" / "fuzz", ROOT / "benchmarks" / "results"
FINDINGS = ("wrong", "crash", "hang", "slow")
# Seconds after which an input hangs its child, and bytes that a child may allocate.
PATIENCE, MEMORY = 60, 4 << 30
# Inputs that become parents, besides the seeds.
POOL = 300
# Large inputs take long, so they are rare.
SIZES, OFTEN = (1 << 16, 1 << 20, MAX_BYTES), (90, 9, 1)


@dataclass
class Progress:
    """What was run and found at a target; inputs are names of files."""

    inputs: int = 0
    seconds: float = 0
    memory_mb: int = 0
    # By the kind of image: CPU milliseconds, bytes, outcome, input.
    slowest: dict[str, list[Any]] = field(default_factory=dict)
    findings: dict[str, list[str]] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    pool: list[str] = field(default_factory=list)


class Fuzzer:
    """The search at one target. Inputs that lead to new outcomes, or cost more, become parents."""

    def __init__(
        self, target: Target, build: Path, largest: int = MAX_BYTES, timed: bool = True
    ) -> None:
        self.target, self.progress = target, Progress()
        self._largest, self._timed = largest, timed
        self._folder = build / target.name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._state = self._folder / "progress.json"
        if timed and self._state.exists():
            self.progress = Progress(**json.loads(self._state.read_text()))
        self._seeds = target.seeds()
        self._pool = [(self._folder / name).read_bytes() for name in self.progress.pool]
        self._start()

    def step(self) -> None:
        """Make and run one input."""
        progress, started = self.progress, time.monotonic()
        chance = random.Random(f"{self.target.name} {progress.inputs}")
        if progress.inputs < len(self._seeds):
            body = self._seeds[progress.inputs]
        else:
            [most] = chance.choices(SIZES, OFTEN)
            most = min(most, self._largest)
            parents = [each for each in (*self._seeds, *self._pool) if len(each) <= most]
            body = self.target.mutate(chance.choice(parents), chance, parents, most)
        self._note(body, *self._run(body))
        progress.inputs += 1
        progress.seconds += time.monotonic() - started
        if progress.inputs % 500 == 0:
            self._save()

    def close(self) -> None:
        self._end()
        self._save()

    def _note(self, body: bytes, outcome: str, milliseconds: float, memory: int) -> None:
        progress, kind = self.progress, kind_of(body) or "none"
        slowest = progress.slowest.get(kind, [0])[0]
        finding = next((each for each in FINDINGS if outcome.startswith(each)), "")
        bound = self.target.bound(body)
        if self._timed and not finding and milliseconds > min(slowest, bound):
            # Once more: another process may have slowed it down.
            milliseconds = min(milliseconds, self._run(body)[1])
            finding = "slow" if milliseconds > bound else ""
        is_slow = self._timed and milliseconds > max(2 * slowest, self.target.base_ms / 50)
        is_new = outcome not in progress.outcomes
        progress.outcomes[outcome] = progress.outcomes.get(outcome, 0) + 1
        progress.memory_mb = max(progress.memory_mb, memory)
        if finding and (is_new or finding != WRONG):
            progress.findings.setdefault(finding, []).append(self._saved(body))
        elif is_new or is_slow:
            self._pool = [*self._pool, body][-POOL:]
            progress.pool = [*progress.pool, self._saved(body)][-POOL:]
        if milliseconds > slowest:
            progress.slowest[kind] = [round(milliseconds, 1), len(body), outcome, self._saved(body)]

    def _saved(self, body: bytes) -> str:
        name = hashlib.sha256(body).hexdigest()[:16]
        (self._folder / name).write_bytes(body)
        return name

    def _save(self) -> None:
        self._state.write_text(json.dumps(vars(self.progress)))

    def _run(self, body: bytes) -> tuple[str, float, int]:
        """Return the outcome, the CPU milliseconds, and the child's most memory in MB."""
        try:
            self._connection.send_bytes(body)
            if self._connection.poll(PATIENCE):
                answer: tuple[str, float, int] = self._connection.recv()
                return answer
            outcome = "hang"
        except (EOFError, OSError):
            outcome = "crash"
        self._end()
        self._start()
        return outcome, 0, 0

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._child = context.Process(
            target=_serve, args=(theirs, self.target.prepare), daemon=True
        )
        self._child.start()
        theirs.close()

    def _end(self) -> None:
        self._child.kill()
        # With what it started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid or 0, signal.SIGKILL)
        self._child.join()
        self._connection.close()


def _serve(connection: Connection, prepare: Callable[[], Run]) -> None:
    """Run inputs in a child process."""
    os.setpgid(0, 0)
    # libtiff and the worker report damage there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run = prepare()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with contextlib.suppress(EOFError):
        while True:
            body, milliseconds = connection.recv_bytes(), None
            started = time.process_time()
            try:
                outcome, milliseconds = run(body)
            except Exception:
                outcome = f"{WRONG}: {traceback.format_exc()}"
            if milliseconds is None:
                milliseconds = 1000 * (time.process_time() - started)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            connection.send((outcome, milliseconds, memory))


def main() -> int:
    """Fuzz for some seconds and write the report; return 1 if anything was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=3600, help="with those of earlier runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not shutil.which("node"):
        sys.exit("error: the edge's scripts run in Node, which is not installed.")
    with contextlib.ExitStack() as stack:
        closing = map(contextlib.closing, (Fuzzer(each, BUILD) for each in TARGETS.values()))
        running = [stack.enter_context(each) for each in closing]
        bar = stack.enter_context(tqdm(total=options.seconds, unit="s", disable=None))
        while (spent := sum(each.progress.seconds for each in running)) < options.seconds:
            bar.update(int(spent) - bar.n)
            min(running, key=lambda each: each.progress.seconds / each.target.share).step()
    found = {each.target.name: each.progress for each in running}
    write(options.results, found)
    return int(any(progress.findings for progress in found.values()))


def write(folder: Path, found: dict[str, Progress]) -> None:
    """Write the report."""
    heads = [
        "target",
        "inputs",
        "memory (MB)",
        *FINDINGS,
        "kind",
        "slowest (CPU)",
        "bytes",
        "outcome",
    ]
    rows: list[list[Any]] = [heads, ["---"] * len(heads)]
    targets: dict[str, Any] = {}
    for name, progress in found.items():
        targets[name] = vars(progress) | {"outcomes": len(progress.outcomes)}
        del targets[name]["pool"]
        counts = [progress.memory_mb, *(len(progress.findings.get(each, ())) for each in FINDINGS)]
        for kind, (milliseconds, size, outcome, _) in sorted(progress.slowest.items()):
            slowest = [kind, f"{milliseconds:,.0f} ms", f"{size:,}", outcome.splitlines()[0]]
            rows.append([name, f"{progress.inputs:,}", *counts, *slowest])
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "targets": targets}
    (folder / "fuzz.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "fuzz.md").write_text(f"# Fuzzing\n\nWritten by `make fuzz`.\n\n{table}\n")


if __name__ == "__main__":
    sys.exit(main())

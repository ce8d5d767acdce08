"""Fuzz what reads untrusted bytes: `python -m testing.fuzz --seconds 3600`, or `make fuzz`.

Each input is a damaged seed, and runs in a child process with a memory limit. A finding is
- an exception other than those that the target documents, or a wrong answer,
- a child that dies, or gives no answer for a minute,
- an input that costs more CPU time than its target's bound (only with --seconds).
Findings are saved in .build/fuzz/; small ones belong into tests/corpus/. The same command goes on
where it was stopped. The number of an input, and what the inputs before it led to, determine it.
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
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from handler.contract import MAX_BYTES, kind_of
from serving.settings import ROOT
from testing import fuzz_targets
from testing.fuzz_targets import WRONG, Target
from testing.service import machine

CORPUS = ROOT / "tests" / "corpus"
BUILD = ROOT / ".build" / "fuzz"
RESULTS = ROOT / "benchmarks" / "results"
# Seconds without an answer after which an input hangs its child.
PATIENCE = 60
# Bytes of address space of a child.
MEMORY = 4 << 30
# Inputs that later ones are made of, besides the seeds.
POOL = 300
KINDS = ("wrong", "crash", "hang", "dear")


@dataclass
class Progress:
    """What was found at a target."""

    inputs: int = 0
    seconds: float = 0
    memory_mb: int = 0
    # By the kind of input: CPU time, bytes, outcome, file of the dearest.
    dearest: dict[str, list[Any]] = field(default_factory=dict)
    # By the kind of finding: the files.
    findings: dict[str, list[str]] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    pool: list[str] = field(default_factory=list)


class Child:
    """A process that runs one target, and is started again when it dies or hangs."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._target.name), daemon=True
        )
        self._process.start()
        theirs.close()

    def run(self, body: bytes) -> tuple[str, float, int]:
        """Return the outcome, CPU milliseconds, and the most memory so far in MB."""
        try:
            self._ours.send_bytes(body)
            if self._ours.poll(PATIENCE):
                return self._ours.recv()  # type: ignore[no-any-return]
            outcome = "hang"
        except (EOFError, OSError):
            outcome = "crash"
        self.end()
        self._start()
        return outcome, PATIENCE * 1000, 0

    def end(self) -> None:
        # With what it started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._ours.close()


def _serve(connection: Connection, name: str) -> None:
    """Run inputs in a child."""
    os.setpgid(0, 0)
    # C libraries and the worker report damage there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run = fuzz_targets.TARGETS[name].prepare()
    if name != "edge":
        # Node needs more address space than memory.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with contextlib.suppress(EOFError):
        while True:
            body = connection.recv_bytes()
            started = time.process_time()
            try:
                outcome, milliseconds = run(body)
            except Exception:
                outcome, milliseconds = f"{WRONG}: {traceback.format_exc()}", None
            if milliseconds is None:
                milliseconds = 1000 * (time.process_time() - started)
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            connection.send((outcome, milliseconds, most))


class Fuzzer:
    """The search at one target."""

    def __init__(self, target: Target, build: Path, largest: int, timed: bool) -> None:
        self.target, self.progress = target, Progress()
        self._child = Child(target)
        self._folder, self._largest, self._timed = build / target.name, largest, timed
        self._folder.mkdir(parents=True, exist_ok=True)
        self._state = self._folder / "progress.json"
        if timed and self._state.exists():
            self.progress = Progress(**json.loads(self._state.read_text()))
        corpus = sorted((CORPUS / target.name).glob("*"))
        self._seeds = [*target.seeds(), *(path.read_bytes() for path in corpus)]
        self._pool = [(self._folder / name).read_bytes() for name in self.progress.pool]

    def step(self) -> None:
        """Make and run one input."""
        number, started = self.progress.inputs, time.monotonic()
        chance = random.Random(f"{self.target.name} {number}")
        if number < len(self._seeds):
            body = self._seeds[number]
        else:
            # Few are large: they take long.
            [most] = chance.choices((1 << 16, 1 << 20, MAX_BYTES), (90, 9, 1))
            most = min(most, self._largest)
            known = [each for each in (*self._seeds, *self._pool) if len(each) <= most]
            body = self.target.mutate(chance.choice(known), chance, known, most)
        self._note(body, *self._child.run(body))
        self.progress.inputs += 1
        self.progress.seconds += time.monotonic() - started
        if self.progress.inputs % 500 == 0:
            self._save()

    def _note(self, body: bytes, outcome: str, milliseconds: float, memory: int) -> None:
        progress, kind = self.progress, kind_of(body) or "none"
        progress.memory_mb = max(progress.memory_mb, memory)
        finding = outcome if outcome in ("hang", "crash") else ""
        if outcome.startswith(WRONG):
            finding = "wrong"
        dearest = progress.dearest.get(kind, [0])[0]
        if self._timed and not finding and milliseconds > dearest:
            # Once more: something else may have slowed it down.
            milliseconds = min(milliseconds, self._child.run(body)[1])
            if milliseconds > self.target.bound(body):
                finding = "dear"
        new = outcome not in progress.outcomes
        progress.outcomes[outcome] = progress.outcomes.get(outcome, 0) + 1
        if finding and (new or finding != "wrong"):
            progress.findings.setdefault(finding, []).append(self._saved(body))
        elif new or (self._timed and milliseconds > max(2 * dearest, self.target.base_ms / 50)):
            self._pool = [*self._pool, body][-POOL:]
            progress.pool = [*progress.pool, self._saved(body)][-POOL:]
        if milliseconds > dearest:
            progress.dearest[kind] = [round(milliseconds, 1), len(body), outcome, self._saved(body)]

    def _saved(self, body: bytes) -> str:
        name = hashlib.sha256(body).hexdigest()[:16]
        (self._folder / name).write_bytes(body)
        return name

    def close(self) -> None:
        self._child.end()
        self._save()

    def _save(self) -> None:
        self._state.write_text(json.dumps(vars(self.progress)))


@contextlib.contextmanager
def fuzzers(build: Path, largest: int, timed: bool) -> Iterator[list[Fuzzer]]:
    """Yield one for each target; save their progress at the end."""
    with contextlib.ExitStack() as stack:
        found = []
        for target in fuzz_targets.TARGETS.values():
            found.append(Fuzzer(target, build, largest, timed))
            stack.callback(found[-1].close)
        yield found


def main() -> int:
    """Fuzz for some seconds and write the report; return 1 if anything was found."""
    parser = argparse.ArgumentParser(description="Fuzz the decoder, the payloads and the edge.")
    parser.add_argument("--seconds", type=int, default=3600, help="in all, with earlier runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with fuzzers(BUILD, MAX_BYTES, timed=True) as running:
        done = sum(each.progress.seconds for each in running)
        with tqdm(total=options.seconds, initial=int(done), unit="s", disable=None) as bar:
            while (spent := sum(each.progress.seconds for each in running)) < options.seconds:
                min(running, key=lambda each: each.progress.seconds / each.target.share).step()
                bar.update(int(spent) - bar.n)
        found = {each.target.name: each.progress for each in running}
    write(options.results, found)
    return int(any(progress.findings for progress in found.values()))


def write(folder: Path, found: dict[str, Progress]) -> None:
    """Write the report."""
    rows, document = [], {"machine": machine(), "targets": {}}
    for name, progress in found.items():
        kept = {k: v for k, v in vars(progress).items() if k not in ("pool", "outcomes")}
        document["targets"][name] = kept | {"outcomes": len(progress.outcomes)}
        counts = [len(progress.findings.get(kind, ())) for kind in KINDS]
        for kind, (milliseconds, size, outcome, _) in sorted(progress.dearest.items()):
            cells = [name, f"{progress.inputs:,}", kind, f"{milliseconds:,.0f} ms", f"{size:,}"]
            rows.append([*cells, outcome, *map(str, counts)])
    heads = ["target", "inputs", "kind", "dearest (CPU)", "its bytes", "its outcome", *KINDS]
    table = [heads, ["---"] * len(heads), *rows]
    lines = ["# Fuzzing", "", "Written by `make fuzz`.", ""]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fuzz.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "fuzz.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())

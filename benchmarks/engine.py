"""The scenario engine: start a service, run a load, inject one step after another, report.

`make drill`, `make chaos`, `make soak` and `make nodes` are lists of steps for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from benchmarks import outcome, report
from benchmarks.outcome import Request, Result, Step
from benchmarks.report import RESULTS, Document
from serving.settings import ROOT

# Where services run, and where the logs of all requests stay.
FOLDER = ROOT / ".build" / "scenarios"
# Seconds between two samples of memory.
SAMPLING = 10.0


class Target:
    """The target of a scenario."""

    # The load finds the service by this environment, and writes this log.
    environment: dict[str, str]
    log: Path
    load: subprocess.Popen[bytes] | None = None

    def requests(self) -> list[Request]:
        """Return what the clients have seen so far."""
        return outcome.read_requests(self.log)

    def look(self) -> dict[str, Any]:
        """Return `workers`, their process ids, and `megabytes` by kind of process."""
        return {}


@dataclass(frozen=True)
class Scenario:
    """The service, the loads and the steps of a scenario."""

    name: str
    title: str
    about: str
    start: Callable[[Path], contextlib.AbstractContextManager[Any]]
    # The number of clients of each load (benchmarks/load.py).
    loads: Mapping[str, int]
    steps: Sequence[Step]
    # Seconds without a step before each step.
    calm: float
    # Whether a worker that ends is a problem, unless the step allows it.
    keep_workers: bool = True
    # Measures more once the load has ended: returns a table for the report, and problems.
    conclude: Callable[[Any, Sequence[Document]], tuple[Document, list[str]]] | None = None


def run(scenario: Scenario, results_folder: Path) -> list[str]:
    """Run a scenario, write its report, and return the problems."""
    folder = FOLDER / scenario.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    results: list[Result] = []
    samples: list[Document] = []
    more: Document = {}
    problems: list[str] = []
    with scenario.start(folder) as target:
        with running(target, scenario.loads), sampling(target, samples):
            for step in (bar := tqdm(scenario.steps, unit=" steps")):
                bar.set_description(step.name)
                results.append(inject(step, target, scenario.calm))
                for problem in results[-1].problems:
                    tqdm.write(f"{step.name}: {problem}")
            time.sleep(scenario.calm)
        if scenario.conclude:
            more, problems = scenario.conclude(target, samples)
    requests = target.requests()
    document = outcome.summary(results, requests, scenario.keep_workers)
    document = {
        "name": scenario.name,
        "title": scenario.title,
        "about": scenario.about,
        **report.about(),
        **document,
        "table": more,
        "samples": samples,
        "problems": [*document["problems"], *problems],
    }
    report.write(results_folder, scenario.name, document, outcome.page(document))
    outcome.plot(results_folder / f"{scenario.name}.png", results, requests, samples)
    found: list[str] = document["problems"]
    return found


def inject(step: Step, target: Target, calm: float) -> Result:
    """Wait, take one step, and return what it saw."""
    if step.prepare:
        step.prepare(target)
    time.sleep(calm)
    result = Result(step, before=target.look(), started=time.time())
    step.inject(target, result)
    result.ended, result.after = time.time(), target.look()
    if step.clean_up:
        time.sleep(outcome.AFTER)
        step.clean_up(target)
    return result


@contextlib.contextmanager
def running(target: Target, loads: Mapping[str, int]) -> Iterator[None]:
    """Run the load in another process."""
    command = [sys.executable, "-m", "benchmarks.load", str(target.log)]
    command += [f"{name}={count}" for name, count in loads.items()]
    process = target.load = subprocess.Popen(
        command, cwd=ROOT, env=target.environment, stdin=subprocess.DEVNULL
    )
    try:
        while not (target.log.exists() and target.log.stat().st_size):
            if process.poll() is not None:
                raise click.ClickException("The load did not start.")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        code = process.wait()
    if code:
        raise click.ClickException("A client of the load failed.")


@contextlib.contextmanager
def sampling(target: Target, samples: list[Document]) -> Iterator[None]:
    """Sample memory and workers during the block."""
    ending = threading.Event()

    def sample() -> None:
        while True:
            if found := target.look():
                samples.append({"time": round(time.time(), 1), **found})
            if ending.wait(SAMPLING):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def main(build: Callable[[bool], Scenario]) -> None:
    """Run the command line of a scenario; the exit code is 1 if there are problems."""

    @click.command(help=sys.modules["__main__"].__doc__)
    @click.option("--quick", is_flag=True, help="Wait less, and send less.")
    @click.option(
        "--results",
        type=click.Path(path_type=Path, file_okay=False),
        default=RESULTS,
        help="The folder for the report, instead of benchmarks/results/.",
    )
    def command(quick: bool, results: Path) -> None:
        # So that SIGTERM, too, stops the service and removes what was set up.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        scenario = build(quick)
        problems = run(scenario, results)
        for problem in problems:
            click.echo(problem, err=True)
        click.echo(f"The report is {os.path.relpath(results / scenario.name)}.md.")
        sys.exit(1 if problems else 0)

    command()

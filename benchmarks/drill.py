"""The drill: everything that may happen to the versions, under a steady load of 16 users.

It starts a service of its own, changes versions, breaks things, and writes what the users saw to
benchmarks/results/. Exit code 1 if anything came out otherwise than it must.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import psutil
from tqdm import tqdm

from benchmarks import drill_report
from benchmarks.drill_report import Step
from serving.client import ManagementClient, ServiceError
from serving.deployment import Deployment, VersionSpec, archives
from serving.deployment.routing import RoutingFile
from serving.settings import ROOT, Settings
from serving.torchserve.tokens import TokenError, Tokens
from testing import faulty
from testing.service import Service, environment_of, free_settings, machine, run_service

RESULTS = ROOT / "benchmarks" / "results"
# Where its service runs, and where the log of each request stays.
FOLDER = ROOT / ".build" / "drill"
USERS = 16
# Minutes that a token lives, so that many expire meanwhile.
TOKEN_LIFE = 0.5
# Seconds of peace before each step, to compare with; and at the start.
CALM, LONG_CALM = 12.0, 30.0
STEPS = 23
# Seconds that a canary is watched, and until it must have gone back by itself.
TRIAL, TRIAL_PATIENCE = 40.0, 90.0
PATIENCE = 120.0
START = Deployment("1.0", {"1.0": VersionSpec(2), "2.0": VersionSpec(2)})


class Drill:
    """One service, the load on it, and the steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = folder / "config.properties"
        config.write_text(
            (ROOT / "config.properties")
            .read_text()
            .replace("token_expiration_min=60", f"token_expiration_min={TOKEN_LIFE}")
        )
        self.settings = free_settings(folder / "run", START).model_copy(update={"config": config})
        self.steps: list[Step] = []
        self.log = folder / "load.csv"
        self.service = self.serve()
        self.management = ManagementClient(self.settings)
        self.routing = RoutingFile(self.settings.run_dir)
        # Who puts the load on it, once it does.
        self.users: subprocess.Popen[bytes] | None = None
        self._bar = tqdm(total=STEPS, unit=" steps")

    # --- The means

    def serve(self) -> Service:
        """Start the service."""
        return run_service(self.settings)

    @contextlib.contextmanager
    def step(self, name: str, lossless: bool = True, calm: float = CALM) -> Iterator[Step]:
        """Wait for calm, and note when the block begins and ends."""
        self._bar.set_description("calm")
        time.sleep(calm)
        self._bar.set_description(name)
        step = Step(name, lossless, started=time.time())
        try:
            yield step
        finally:
            step.ended = time.time()
            self.steps.append(step)
            self._bar.update()
            for problem in step.problems:
                tqdm.write(f"{name}: {problem}")

    def tool(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return subprocess.run(
            [sys.executable, "-m", "serving", *arguments],
            cwd=ROOT,
            env=environment_of(self.settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def change(self, step: Step, *arguments: str, code: int = 0) -> None:
        """Run the command line within a step; it must end with this exit code."""
        done = self.tool(*arguments)
        said = (done.stdout + done.stderr).strip().replace(str(self.folder), "...")
        step.seen["said"] = said
        step.expect(done.returncode == code, f"exit code {done.returncode}, not {code}: {said}")

    def status(self) -> dict[str, Any]:
        """Return what `status --json` tells."""
        found: dict[str, Any] = json.loads(self.tool("status", "--json").stdout)
        return found

    def wait(self, step: Step, what: str, until: Callable[[], bool], patience: float = 60) -> float:
        """Wait until something holds; return the seconds since the step began."""
        deadline = time.time() + patience
        while time.time() < deadline:
            with contextlib.suppress(ServiceError):
                if until():
                    return time.time() - step.started
            time.sleep(0.02)
        step.expect(False, f"{what} is not there after {patience:g} s")
        return float("nan")

    # --- The steps

    def run(self) -> None:
        """Take all steps, one after the other."""
        with self.step("promote 2.0", calm=LONG_CALM) as step:
            self.change(step, "promote", "2.0")
        with self.step("roll back to 1.0") as step:
            self.change(step, "rollback")
            step.expect(self.status()["default"] == "1.0", "1.0 is not the default")
        self.canary()
        with self.step("scale 1.0 up to 3 workers") as step:
            self.change(step, "scale", "1.0", "--workers", "3")
        with self.step("scale 1.0 down to 1") as step:
            self.change(step, "scale", "1.0", "--workers", "1")
        with self.step("scale 1.0 up to 2") as step:
            self.change(step, "scale", "1.0", "--workers", "2")
        with self.step("retire 2.0") as step:
            self.change(step, "retire", "2.0")
        with self.step("deploy 2.0 again") as step:
            self.change(step, "deploy", "2.0", "--workers", "2")
        with self.step("new tokens, 5 times") as step:
            for _ in range(5):
                self.change(step, "renew-tokens")
        self.asleep()
        self.bad_deploys()
        with self.step("deploy a good 3.0") as step:
            good = faulty.remade(archives.built(self.settings, "2.0"), self.archive("3.0"), "3.0")
            self.change(step, "deploy", "3.0", "--archive", str(good))
        with self.step("retire 3.0") as step:
            self.change(step, "retire", "3.0")
        self.bad_canary("a canary that fails", "3.1", faulty.fail_now_and_then)
        self.bad_canary("a canary that is slow", "3.2", faulty.slow)
        self.two_at_once()
        self.worker_killed()
        self.java_killed()
        self.all_killed()
        time.sleep(CALM)

    def canary(self) -> None:
        """Give 2.0 a fifth of the clients, and measure who is answered by whom."""
        with self.step("canary of 20 %") as step:
            self.change(step, "canary", "2.0", "--percent", "20")
            start = time.time()
            time.sleep(TRIAL)
            step.watched = (start, time.time())
        with self.step("end of the canary") as step:
            self.change(step, "rollback")

    def asleep(self) -> None:
        """Let the machine sleep, as far as users and supervisor know, until the tokens expired."""
        tokens = Tokens(self.settings.run_dir)
        while (left := tokens.expires("inference").timestamp() - time.time()) > 8:
            time.sleep(min(1, left - 8))
        assert self.users
        with self.step("asleep until the tokens expired", calm=0) as step:
            before = tokens.header("inference")
            for number in (signal.SIGSTOP, signal.SIGCONT):
                self.service.process.send_signal(number)
                self.users.send_signal(number)
                if number == signal.SIGSTOP:
                    time.sleep(tokens.expires("inference").timestamp() - time.time() + 1)
            awake = time.time()
            self.wait(step, "a new token", lambda: tokens.header("inference") != before)
            step.seen["seconds awake until the token was new"] = time.time() - awake

    def bad_deploys(self) -> None:
        """Try to deploy what must be refused."""
        good = archives.built(self.settings, "2.0")
        made = {
            "a corrupt archive": lambda it: faulty.cut_off(faulty.remade(good, it, "3.0")),
            "a wrong hash": lambda it: faulty.tampered_with(faulty.remade(good, it, "3.0")),
            "other answers": lambda it: faulty.remade(good, it, "3.0", faulty.other_answers),
            "a crash at start": lambda it: faulty.remade(good, it, "3.0", faulty.crash_at_start),
        }
        for name, make in made.items():
            archive = make(self.archive("3.0"))
            with self.step(f"deploy {name}") as step:
                self.change(step, "deploy", "3.0", "--archive", str(archive), code=1)
                step.expect("3.0" not in self.management.versions(), "it stays registered")
                left = archives.deployed(self.settings, "3.0").exists()
                step.expect(not left, "its archive stays")

    def bad_canary(self, name: str, version: str, fault: Callable[[faulty.Contents], None]) -> None:
        """Try a bad version on half of the clients: it must go back by itself."""
        good = archives.built(self.settings, "2.0")
        archive = faulty.remade(good, self.archive(version), version, fault)
        deployed = self.tool("deploy", version, "--archive", str(archive))
        with self.step(name) as step:
            step.expect(deployed.returncode == 0, f"not deployed: {deployed.stderr}")
            self.change(step, "canary", version, "--percent", "50", "--max-p95", "300")
            step.seen["seconds until it went back"] = self.wait(
                step,
                "the way back",
                lambda: (routing := self.routing.read()) is not None and routing.canary is None,
                TRIAL_PATIENCE,
            )
            last = json.loads(self.tool("history", "--json").stdout)[-1]
            step.expect(last["action"] == "end canary", "the history does not tell of it")
            step.seen["said"] = last.get("why", "")
        self.tool("retire", version)

    def two_at_once(self) -> None:
        """Start two changes at the same moment: one waits its turn, or is told to."""
        with self.step("two tools at once") as step, ThreadPoolExecutor(2) as pool:
            first = pool.submit(self.tool, "scale", "2.0", "--workers", "3")
            time.sleep(1)
            self.change(step, "scale", "2.0", "--workers", "4", code=4)
            step.expect(first.result().returncode == 0, "the first one did not end well")
        self.tool("scale", "2.0", "--workers", "2")

    def worker_killed(self) -> None:
        """Kill a worker of the default with what it has in hand."""
        with self.step("kill -9 of a worker") as step:
            before = self._workers("1.0")
            os.kill(before[0], signal.SIGKILL)

            def replaced() -> bool:
                now = self._workers("1.0")
                return len(now) == len(before) and before[0] not in now

            step.seen["seconds until ready"] = self.wait(step, "a new worker", replaced)

    def _workers(self, version: str) -> list[int]:
        workers = self.management.describe(version)["workers"]
        return [worker["pid"] for worker in workers if worker["status"] == "READY"]

    def java_killed(self) -> None:
        """Kill TorchServe; the supervisor starts it again."""
        before = self._state()
        with self.step("kill -9 of TorchServe (Java)") as step:
            children = psutil.Process(self.service.process.pid).children()
            next(each for each in children if "java" in each.name()).kill()
            self.wait(step, "the end", lambda: self.routing.read() is None)
            step.seen["seconds until ready"] = self.wait(
                step, "TorchServe", lambda: self.routing.read() is not None
            )
        self._expect_same(step, before)

    def all_killed(self) -> None:
        """Kill everything amid a canary, and run it again."""
        self.tool("canary", "2.0", "--percent", "30")
        before = self._state()
        with self.step("kill -9 of everything", lossless=False) as step:
            parent = psutil.Process(self.service.process.pid)
            for process in [parent, *parent.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.service.process.wait()
            self.service = self.serve()
            step.seen["seconds until ready"] = time.time() - step.started
        self._expect_same(step, before)
        step.seen["said"] = "the same versions, workers, archives, default and canary as before"

    def archive(self, version: str) -> Path:
        return self.folder / f"bloodcells-{version}.mar"

    def _state(self) -> dict[str, Any]:
        found = self.status()
        return {
            "default": found["default"],
            "canary": found["canary"],
            "differences": found["differences"],
            "versions": {
                each["version"]: (each["workers"], each["ready"], each["sha256"])
                for each in found["versions"]
            },
        }

    def _expect_same(self, step: Step, before: dict[str, Any]) -> None:
        now = self._state()
        if now != before:
            step.expect(False, f"it is otherwise than before: {now}, not {before}")
            tqdm.write(step.problems[-1])

    def close(self) -> None:
        """Stop the service."""
        self._bar.close()
        self.management.close()
        self.service.stop()


@contextlib.contextmanager
def load(drill: Drill) -> Iterator[None]:
    """Put the load on a service as long as the block runs."""
    options = f"--users {USERS} --spawn-rate {USERS} --stop-timeout 30 --loglevel WARNING"
    file = "--locustfile benchmarks/load.py --headless --only-summary"
    process = drill.users = subprocess.Popen(
        [sys.executable, "-m", "locust", *file.split(), *options.split()],
        cwd=ROOT,
        env=environment_of(drill.settings) | {"LOAD_LOG": str(drill.log)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        while not drill.log.exists():
            if process.poll() is not None:
                raise click.ClickException("The load did not start.")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


class RenewalCounter:
    """Counts how many inference tokens there were."""

    def __init__(self, settings: Settings) -> None:
        self._tokens = Tokens(settings.run_dir)
        self._ending = threading.Event()
        self.seen: set[str] = set()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._ending.wait(0.1):
            with contextlib.suppress(TokenError):
                self.seen.add(self._tokens.header("inference")["Authorization"])

    def __enter__(self) -> RenewalCounter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()


@click.command()
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=RESULTS,
    help="Write the figures to this folder, not to benchmarks/results/.",
)
def main(results: Path) -> None:
    """Change versions and break things under load; write what the users saw."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    drill = Drill(FOLDER)
    try:
        with RenewalCounter(drill.settings) as renewals, load(drill):
            drill.run()
    finally:
        drill.close()
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "users": USERS,
        "token_life_seconds": 60 * TOKEN_LIFE,
        "tokens": len(renewals.seen),
    }
    requests = drill_report.read_requests(drill.log)
    problems = drill_report.write(results, about, drill.steps, requests)
    for problem in problems:
        click.echo(problem, err=True)
    click.echo(f"See {os.path.relpath(results / 'drill.md')}.")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

"""A service of its own for a scenario, and the ways to change and observe it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.engine import Target
from benchmarks.outcome import Result
from serving import deployment
from serving.client import ManagementClient, ServiceError
from serving.deployment import Deployment, VersionSpec
from serving.deployment.routing import RoutingFile
from serving.settings import ROOT
from serving.torchserve.tokens import Tokens
from testing import processes
from testing.service import environment_of, free_settings, run_service

# The two versions of every scenario: the first answers by default.
DEPLOYED = deployment.load(ROOT / "deployment.yaml")
DEFAULT, OTHER = sorted(DEPLOYED.versions)[:2]
START = Deployment(DEFAULT, {DEFAULT: VersionSpec(2), OTHER: VersionSpec(2)})
# Minutes. Many tokens expire during a scenario.
TOKEN_LIFE = 0.5
# Seconds that a command or a recovery may take.
PATIENCE = 120.0


class Rig(Target):
    """A running service."""

    def __init__(
        self,
        folder: Path,
        wanted: Deployment = START,
        token_life: float = TOKEN_LIFE,
    ) -> None:
        self.folder, self.log = folder, folder / "load.csv"
        config = folder / "config.properties"
        text = (ROOT / "config.properties").read_text()
        life = "token_expiration_min="
        config.write_text(text.replace(f"{life}60", f"{life}{token_life:g}"))
        settings = free_settings(folder / "run", wanted)
        self.settings = settings.model_copy(update={"config": config})
        self.environment = environment_of(self.settings)
        self.service = run_service(self.settings)
        self.management = ManagementClient(self.settings)
        self.routing = RoutingFile(self.settings.run_dir)
        self.tokens = Tokens(self.settings.run_dir)

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.service.process.pid)

    def look(self) -> dict[str, Any]:
        """Return the workers' processes, and the memory by kind of process."""
        with contextlib.suppress(psutil.NoSuchProcess):
            megabytes = processes.anonymous_megabytes(self.process)
            return {"workers": processes.workers(self.process), "megabytes": megabytes}
        return {}

    def restart(self, **variables: str) -> None:
        """Start the service after it ended."""
        self.service = run_service(self.settings, **variables)

    def tool(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return subprocess.run(
            [sys.executable, "-m", "serving", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def change(self, result: Result, *arguments: str, code: int = 0) -> None:
        """Run the command line within a step, and expect this exit code."""
        done = self.tool(*arguments)
        printed = " ".join((done.stdout + done.stderr).replace(str(self.folder), "...").split())
        result.notes["printed"] = printed
        result.expect(
            done.returncode == code, f"exit code {done.returncode}, not {code}: {printed}"
        )

    def state(self) -> dict[str, Any]:
        """Return the state that a restart must not change."""
        found = json.loads(self.tool("status", "--json").stdout)
        keys = ("version", "workers", "ready", "sha256")
        versions = [[each[key] for key in keys] for each in found["versions"]]
        return {key: found[key] for key in ("default", "canary", "differences")} | {
            "versions": versions
        }

    @contextlib.contextmanager
    def restored(self, result: Result) -> Iterator[None]:
        """Expect the same state after the block as before."""
        before = self.state()
        result.started = time.time()
        yield
        if (now := self.state()) != before:
            result.expect(False, f"the state is {now}, not {before}")

    def wait(
        self, result: Result, what: str, until: Callable[[], bool], since: float | None = None
    ) -> None:
        """Wait for a condition within a step, and record the seconds since the step began."""
        since = since or result.started
        while time.time() < since + PATIENCE:
            with contextlib.suppress(ServiceError):
                if until():
                    result.notes[f"seconds until {what}"] = time.time() - since
                    return
            time.sleep(0.02)
        result.expect(False, f"no {what} after {PATIENCE:g} s")

    def ready_workers(self, version: str) -> list[int]:
        workers = self.management.describe(version)["workers"]
        return [worker["pid"] for worker in workers if worker["status"] == "READY"]

    def close(self) -> None:
        self.management.close()
        self.service.stop()


def started(
    folder: Path, wanted: Deployment = START, token_life: float = TOKEN_LIFE
) -> contextlib.closing[Rig]:
    """Run a service during the block."""
    return contextlib.closing(Rig(folder, wanted, token_life))


# --- Faults that several scenarios share


def kill_worker(rig: Rig, result: Result) -> None:
    """Kill a worker of the default version with the requests that it holds."""
    before = rig.ready_workers(DEFAULT)
    os.kill(before[0], signal.SIGKILL)

    def replaced() -> bool:
        now = rig.ready_workers(DEFAULT)
        return len(now) == len(before) and before[0] not in now

    rig.wait(result, "ready", replaced)


def kill_java(rig: Rig, result: Result) -> None:
    """Kill TorchServe; the supervisor starts it again."""
    with rig.restored(result):
        next(each for each in rig.process.children() if "java" in each.name()).kill()
        rig.wait(result, "the end", lambda: rig.routing.read() is None)
        rig.wait(result, "ready", lambda: rig.routing.read() is not None)
    result.notes.pop("seconds until the end", None)


def sleep_until_expiry(rig: Rig, result: Result) -> None:
    """Suspend service and users, as a machine does, until the tokens have expired."""
    assert rig.load
    while (left := _token_left(rig)) > 8:
        time.sleep(min(1, left - 8))
    before, result.started = rig.tokens.header("inference"), time.time()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        rig.service.process.send_signal(number)
        rig.load.send_signal(number)
        if number == signal.SIGSTOP:
            time.sleep(max(0, _token_left(rig)) + 1)
    awake = time.time()
    rig.wait(result, "a new token", lambda: rig.tokens.header("inference") != before, awake)


def _token_left(rig: Rig) -> float:
    return rig.tokens.expires("inference").timestamp() - time.time()

"""Change versions and inject faults under a load of 16 users: `make drill`."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from benchmarks import engine, rig
from benchmarks.engine import Scenario
from benchmarks.outcome import Result, Step
from benchmarks.rig import DEFAULT, OTHER, TOKEN_LIFE, Rig
from serving.deployment import archives
from serving.files import lock
from testing import faulty
from testing.faulty import remade

NEW = "9.0"
# Archives that `deploy` must refuse, made from a good one.
BAD_ARCHIVES: dict[str, Callable[[Path, Path], Path]] = {
    "a corrupt archive": lambda good, path: faulty.cut_off(remade(good, path, NEW)),
    "a wrong hash": lambda good, path: faulty.tampered_with(remade(good, path, NEW)),
    "other answers": lambda good, path: remade(good, path, NEW, faulty.other_answers),
    "a crash at start": lambda good, path: remade(good, path, NEW, faulty.crash_at_start),
}
# Their versions, faults, and bounds in milliseconds of the 95th percentile.
BAD_CANARIES = {
    "a canary that fails": ("9.1", faulty.fail_now_and_then, 10_000),
    "a canary that is slow": ("9.2", faulty.slow, 300),
}


def build(quick: bool) -> Scenario:
    """Return the drill."""
    return Scenario(
        "drill",
        "The drill",
        "Written by `make drill`: what 16 users see while versions change and things break. "
        f"A token expires after {60 * TOKEN_LIFE:g} s.",
        rig.started,
        {"users": 16},
        steps(15 if quick else 40),
        calm=4 if quick else 12,
        keep_workers=False,
    )


def steps(trial: float) -> list[Step]:
    """Return all steps; a good canary is watched for some seconds."""
    return [
        Step(f"promote {OTHER}", change("promote", OTHER)),
        Step(f"roll back to {DEFAULT}", roll_back),
        Step("canary of 20 %", partial(canary, seconds=trial)),
        Step("end of the canary", change("rollback")),
        *(
            Step(f"scale {DEFAULT} to {workers}", change("scale", DEFAULT, "--workers", workers))
            for workers in ("3", "1", "2")
        ),
        Step(f"retire {OTHER}", change("retire", OTHER)),
        Step(f"deploy {OTHER} again", change("deploy", OTHER, "--workers", "2")),
        Step("new tokens, 5 times", renew_tokens),
        Step("asleep until the tokens expire", rig.sleep_until_expiry),
        *(Step(f"deploy {name}", partial(refuse, name)) for name in BAD_ARCHIVES),
        Step(f"deploy a good {NEW}", deploy_good),
        Step(f"retire {NEW}", change("retire", NEW)),
        *(
            Step(
                name,
                partial(bad_canary, version=version, bound=bound),
                prepare=partial(deploy_bad, version=version, fault=fault),
                clean_up=retire(version),
            )
            for name, (version, fault, bound) in BAD_CANARIES.items()
        ),
        Step("two changes at once", two_at_once),
        Step("kill -9 of a worker", rig.kill_worker),
        Step("kill -9 of TorchServe (Java)", rig.kill_java),
        Step(
            "kill -9 of everything",
            kill_all,
            may_fail={"users": math.inf},
            prepare=lambda it: it.tool("canary", OTHER, "--percent", "30"),
        ),
    ]


def change(*arguments: str) -> Callable[[Rig, Result], None]:
    """Return what runs the command line."""
    return lambda it, result: it.change(result, *arguments)


def retire(version: str) -> Callable[[Rig], object]:
    return lambda it: it.tool("retire", version)


def roll_back(it: Rig, result: Result) -> None:
    it.change(result, "rollback")
    result.expect(it.state()["default"] == DEFAULT, f"{DEFAULT} is not the default")


def canary(it: Rig, result: Result, seconds: float) -> None:
    """Give the other version a fifth of the clients, and measure who is answered by which."""
    # The bound leaves room for a slower version.
    it.change(result, "canary", OTHER, "--percent", "20", "--max-p95", "10000")
    start = time.time()
    time.sleep(seconds)
    result.watched = (start, time.time())


def renew_tokens(it: Rig, result: Result) -> None:
    tokens = {it.tokens.header("inference")["Authorization"]}
    for _ in range(5):
        it.change(result, "renew-tokens")
        tokens.add(it.tokens.header("inference")["Authorization"])
    result.expect(len(tokens) == 6, "a token was not renewed")


def refuse(name: str, it: Rig, result: Result) -> None:
    """Deploy an archive that must be refused."""
    archive = BAD_ARCHIVES[name](good_archive(it), archive_path(it, NEW))
    it.change(result, "deploy", NEW, "--archive", str(archive), code=1)
    result.expect(NEW not in it.management.versions(), "it is still registered")
    result.expect(not archives.deployed(it.settings, NEW).exists(), "its archive is still there")


def deploy_good(it: Rig, result: Result) -> None:
    archive = remade(good_archive(it), archive_path(it, NEW), NEW)
    it.change(result, "deploy", NEW, "--archive", str(archive))


def deploy_bad(it: Rig, version: str, fault: Callable[[faulty.Contents], None]) -> None:
    archive = remade(good_archive(it), archive_path(it, version), version, fault)
    it.tool("deploy", version, "--archive", str(archive)).check_returncode()


def bad_canary(it: Rig, result: Result, version: str, bound: int) -> None:
    """Try a bad version on half of the clients: it must be rolled back automatically."""
    it.change(result, "canary", version, "--percent", "50", "--max-p95", str(bound))

    def rolled_back() -> bool:
        routing = it.routing.read()
        return routing is not None and routing.canary is None

    it.wait(result, "the rollback", rolled_back)
    last = json.loads(it.tool("history", "--json").stdout)[-1]
    result.expect(last["action"] == "end canary", "the history does not show the rollback")
    result.notes["printed"] = last.get("why", "")


def two_at_once(it: Rig, result: Result) -> None:
    """Start a change while another process holds the lock: it must be refused, and work later."""
    scale = ("scale", OTHER, "--workers", "2")
    with lock(it.settings.run_dir / "change.lock", "another change"):
        it.change(result, *scale, code=4)
    result.expect(it.tool(*scale).returncode == 0, "the change fails without the other one")


def kill_all(it: Rig, result: Result) -> None:
    """Kill every process during a canary, and start the service again."""
    with it.restored(result):
        for process in [it.process, *it.process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        it.service.process.wait()
        it.restart()
        result.notes["seconds until ready"] = time.time() - result.started
    result.notes["state"] = "versions, workers, archives, default and canary as before"


def good_archive(it: Rig) -> Path:
    return archives.built(it.settings, OTHER)


def archive_path(it: Rig, version: str) -> Path:
    return it.folder / f"bloodcells-{version}.mar"


if __name__ == "__main__":
    engine.main(build)

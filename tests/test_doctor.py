"""`python -m serving doctor`: each check sees what is wrong, and nothing where nothing is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from conftest import free_settings
from stand_in import StandIn

from serving import deployment, files
from serving.cli import main
from serving.client import ServiceError
from serving.deployment import Deployment, VersionSpec, archives, known_answers
from serving.deployment.routing import Routing, RoutingFile
from serving.doctor import examination as doctor
from serving.doctor.examination import NOTE, OK, PROBLEM, UNCHECKED, Check, Finding, Patient
from serving.rollout import readiness
from serving.rollout.changes import Rollout
from serving.rollout.readiness import NeverReady
from serving.settings import ROOT, Settings
from serving.torchserve import process as torchserve
from serving.torchserve import tokens
from serving.torchserve.process import StartError
from testing.service import Service, environment_of

WANTED = Deployment("1.0", {"1.0": VersionSpec(1), "2.0": VersionSpec(2)})
MODEL_CONFIG = {"batchSize": 8, "maxBatchDelay": 1, "jobQueueSize": 128, "responseTimeout": 60}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings of which nothing runs, and nothing is there but a deployment."""
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    made = free_settings(run_dir).model_copy(update={"model_store": tmp_path / "store"})
    deployment.save(WANTED, made.deployment)
    return made


@pytest.fixture
def patient(settings: Settings) -> Patient:
    """Return one that runs, by its looks: this process, and what TorchServe would tell."""
    made = Patient(settings)
    made.pid = os.getpid()
    made._described = {name: describe(each.workers) for name, each in WANTED.versions.items()}
    for name in WANTED.versions:
        write_mar(archives.deployed(settings, name), name)
    return made


def describe(workers: int, **changed: Any) -> dict[str, Any]:
    """Return TorchServe's description of a version that has what MODEL_CONFIG asks for."""
    told = {
        **MODEL_CONFIG,
        "workers": [{"status": "READY", "pid": 1}] * workers,
        "jobQueueStatus": {"remainingCapacity": 128, "pendingRequests": 0},
    }
    del told["jobQueueSize"]
    return told | changed


def write_mar(path: Path, version: str, note: str = "") -> str:
    """Write an archive with what the checks look for; return its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shares = {"NEUTROPHIL": 1.0}
    documents = {
        "MAR-INF/MANIFEST.json": {"model": {"modelName": "bloodcells", "modelVersion": version}},
        "golden.json": {path.name: shares for path in known_answers.SAMPLES.iterdir()},
        "model-config.yaml": MODEL_CONFIG,
        "note.json": note,
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, document in documents.items():
            file.writestr(zipfile.ZipInfo(name), json.dumps(document))
    found = archives.digest(path)
    path.with_name(f"{path.name}.sha256").write_text(f"{found}  {path.name}\n")
    return found


def states(check: Check, patient: Patient) -> list[str]:
    return [finding.state for finding in doctor._made(check, patient)]


def the_one(check: Check, patient: Patient, state: str) -> Finding:
    """Return the only finding of a check that has this state."""
    (found,) = [each for each in doctor._made(check, patient) if each.state == state]
    return found


class TestMachine:
    @pytest.mark.parametrize(
        ("version", "state"),
        [((3, 9, 20), PROBLEM), ((3, 10, 0), OK), ((3, 13, 9), OK), ((3, 14, 0), PROBLEM)],
    )
    def test_python(
        self,
        patient: Patient,
        monkeypatch: pytest.MonkeyPatch,
        version: tuple[int, ...],
        state: str,
    ) -> None:
        monkeypatch.setattr(sys, "version_info", version)
        assert states(doctor.check_python, patient) == [state]

    def test_the_supported_pythons_are_those_of_the_project(self) -> None:
        first, (major, minor) = doctor.PYTHONS
        said = f'requires-python = ">={first[0]}.{first[1]},<{major}.{minor + 1}"'
        assert said in (ROOT / "pyproject.toml").read_text()

    def test_packages_that_are_there(self, patient: Patient) -> None:
        assert PROBLEM not in states(doctor.check_packages, patient)

    def test_packages_of_another_python_are_not_missed(
        self, patient: Patient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "requirements.txt").write_text(
            '# why\nnone-such==1.0; python_version < "3"\nclick\n'
        )
        monkeypatch.setattr(doctor, "ROOT", tmp_path)
        assert states(doctor.check_packages, patient) == [OK]

    def test_a_package_that_is_missing(
        self, patient: Patient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = metadata.version

        def version(name: str) -> str:
            if name == "waitress":
                raise metadata.PackageNotFoundError(name)
            return "0.1" if name == "requests" else find(name)

        monkeypatch.setattr(metadata, "version", version)
        assert "waitress is missing" in the_one(doctor.check_packages, patient, PROBLEM).what
        others = [each.what for each in doctor.check_packages(patient) if each.state == NOTE]
        assert any(each.startswith("requests is 0.1, tested is ==") for each in others)

    def test_java(self, patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
        assert states(doctor.check_java, patient) == [OK]
        monkeypatch.setattr(torchserve, "java_version", lambda java: None)
        assert states(doctor.check_java, patient) == [PROBLEM]

        def find() -> Path:
            raise StartError("There is no Java 11 to 21")

        monkeypatch.setattr(torchserve, "find_java", find)
        assert "no Java" in the_one(doctor.check_java, patient, PROBLEM).what

    def test_kill(self, patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
        assert states(doctor.check_kill, patient) == [OK]
        monkeypatch.setenv("PATH", "/nowhere")
        assert "procps" in the_one(doctor.check_kill, patient, PROBLEM).advice

    @pytest.mark.parametrize(("free", "state"), [(2**30 - 1, PROBLEM), (2**30, OK)])
    def test_disk(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, free: int, state: str
    ) -> None:
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: path.stat() and usage(free))
        # The folder is made at the first start.
        patient = Patient(settings.model_copy(update={"run_dir": settings.run_dir / "not" / "yet"}))
        assert states(doctor.check_disk, patient) == [state]

    @pytest.mark.parametrize(("mebibytes", "state"), [(499, PROBLEM), (500, OK)])
    def test_memory(
        self, patient: Patient, monkeypatch: pytest.MonkeyPatch, mebibytes: int, state: str
    ) -> None:
        memory = namedtuple("memory", "available")
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(mebibytes * 2**20))
        assert states(doctor.check_memory, patient) == [state]


class TestFolder:
    @pytest.mark.parametrize(("mode", "state"), [(0o700, OK), (0o755, OK), (0o770, PROBLEM)])
    def test_who_may_write(self, patient: Patient, mode: int, state: str) -> None:
        patient.settings.run_dir.chmod(mode)
        assert states(doctor.check_folder, patient) == [state]

    def test_one_that_is_not_there_yet(self, settings: Settings) -> None:
        settings.run_dir.rmdir()
        assert states(doctor.check_folder, Patient(settings)) == [OK]

    def test_one_of_another_user(self, patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert "can't be written" in the_one(doctor.check_folder, patient, PROBLEM).what


class TestDeployment:
    def test_a_valid_one(self, patient: Patient) -> None:
        found = the_one(doctor.check_deployment, patient, OK)
        assert found.what == "version 1.0 by default, beside it 2.0"

    @pytest.mark.parametrize("text", ["default: '9.0'\nversions: {}\n", "[", "", None])
    def test_an_invalid_one_stops_only_what_needs_it(
        self, settings: Settings, text: str | None
    ) -> None:
        settings.deployment.unlink()
        if text is not None:
            settings.deployment.write_text(text)
        patient = Patient(settings)
        assert states(doctor.check_deployment, patient) == [PROBLEM]
        assert states(doctor.check_archives, patient) == [UNCHECKED]
        assert states(doctor.check_ports, patient) == [OK]


class TestConfig:
    @pytest.fixture
    def config(self, settings: Settings) -> Path:
        return settings.deployment.with_name("config.properties")

    def found(self, settings: Settings, config: Path, text: str) -> list[Finding]:
        config.write_text(text)
        return list(
            doctor._made(
                doctor.check_config, Patient(settings.model_copy(update={"config": config}))
            )
        )

    def test_the_projects_own_is_safe(self, settings: Settings) -> None:
        assert PROBLEM not in states(doctor.check_config, Patient(settings))

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("disable_token_authorization=true", "disable_token_authorization=true, not false"),
            ("disable_token_authorization=TRUE", "disable_token_authorization=TRUE, not false"),
            ("allowed_urls=.*", "allowed_urls=.*, not ^$"),
            ("allowed_urls=", "allowed_urls=, not ^$"),
            ("use_env_allowed_urls=true", "use_env_allowed_urls=true"),
            ("install_py_dep_per_model=true", "install_py_dep_per_model=true"),
            ("enable_envvars_config=true", "enable_envvars_config=true"),
            ("inference_address=http://0.0.0.0:8080", "inference_address=http://0.0.0.0:8080 is"),
            ("management_address=https://[::]:8081", "not on loopback"),
            ("grpc_inference_address=0.0.0.0", "grpc_inference_address=0.0.0.0 is not"),
            ("metrics_address=http://10.1.2.3:8082", "not on loopback"),
        ],
    )
    def test_what_is_unsafe(self, settings: Settings, config: Path, line: str, said: str) -> None:
        (found,) = self.found(settings, config, f"allowed_urls=^$\n{line}\n")
        assert found.state == PROBLEM
        assert said in found.what

    def test_what_is_left_out_is_as_torchserve_has_it(
        self, settings: Settings, config: Path
    ) -> None:
        (found,) = self.found(settings, config, "# nothing\n")
        assert found.state == PROBLEM
        assert "allowed_urls=file://" in found.what
        assert "disable_token" not in found.what
        loopback = "metrics_address=http://localhost:1\ngrpc_inference_address=127.0.0.1"
        (found,) = self.found(settings, config, f"allowed_urls=^$\n{loopback}\n")
        assert found.state == OK

    @pytest.mark.parametrize("is_open", [True, False])
    def test_an_open_model_api_is_told(
        self, settings: Settings, config: Path, is_open: bool
    ) -> None:
        found = self.found(settings, config, f"allowed_urls=^$\nenable_model_api={is_open}\n")
        assert [each.state for each in found] == ([OK, NOTE] if is_open else [OK])

    def test_one_that_is_not_there(self, settings: Settings, config: Path) -> None:
        patient = Patient(settings.model_copy(update={"config": config}))
        assert "can't be read" in the_one(doctor.check_config, patient, PROBLEM).what

    def test_what_is_in_force_counts_as_well(self, patient: Patient) -> None:
        config = torchserve.effective_config(patient.settings, WANTED)
        in_force = patient.settings.run_dir / "config.properties"

        def put(changed: dict[str, str]) -> None:
            in_force.write_text(torchserve.to_properties(config | changed))

        put({})
        assert PROBLEM not in states(doctor.check_config, patient)
        assert not any("since the start" in each.what for each in doctor.check_config(patient))
        put({"max_request_size": "1"})
        assert "not in force: max_request_size" in [*doctor.check_config(patient)][-1].what
        put({"disable_token_authorization": "true"})
        assert str(in_force) in the_one(doctor.check_config, patient, PROBLEM).what


class TestArchives:
    @pytest.fixture
    def built(self, settings: Settings) -> Path:
        """Return the archive of 2.0 as `make mar` builds it; that of 1.0 is there, too."""
        for name in WANTED.versions:
            write_mar(archives.built(settings, name), name)
        return archives.built(settings, "2.0")

    def pin(self, settings: Settings, sha256: str) -> None:
        pinned = WANTED.with_version("2.0", VersionSpec(2, sha256))
        deployment.save(pinned, settings.deployment)

    def found(self, settings: Settings, state: str) -> Finding:
        return the_one(doctor.check_archives, Patient(settings), state)

    def test_whole_ones(self, settings: Settings, built: Path) -> None:
        assert states(doctor.check_archives, Patient(settings)) == [OK, OK]

    def test_one_that_is_missing(self, settings: Settings, built: Path) -> None:
        built.unlink()
        assert "2.0: " in self.found(settings, PROBLEM).what
        assert "missing: run `make mar`" in self.found(settings, PROBLEM).what

    def test_one_that_is_damaged(self, settings: Settings, built: Path) -> None:
        built.write_bytes(built.read_bytes()[:-30])
        built.with_name(f"{built.name}.sha256").unlink()
        assert "damaged" in self.found(settings, PROBLEM).what

    def test_another_than_the_note_says(self, settings: Settings, built: Path) -> None:
        note = built.with_name(f"{built.name}.sha256").read_text()
        write_mar(built, "2.0", note="changed")
        built.with_name(f"{built.name}.sha256").write_text(note)
        assert "not the expected one" in self.found(settings, PROBLEM).what

    def test_one_of_which_nothing_says_what_it_must_be(
        self, settings: Settings, built: Path
    ) -> None:
        built.with_name(f"{built.name}.sha256").unlink()
        assert "nothing says" in self.found(settings, NOTE).what

    def test_one_without_known_answers(self, settings: Settings, built: Path) -> None:
        with zipfile.ZipFile(built, "w") as file:
            manifest = {"model": {"modelName": "bloodcells", "modelVersion": "2.0"}}
            file.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        built.with_name(f"{built.name}.sha256").unlink()
        assert "golden.json" in self.found(settings, PROBLEM).what

    def test_another_than_is_pinned(self, settings: Settings, built: Path) -> None:
        self.pin(settings, archives.digest(built))
        assert states(doctor.check_archives, Patient(settings)) == [OK, OK]
        write_mar(built, "2.0", note="changed")
        assert "not the expected one" in self.found(settings, PROBLEM).what

    def test_a_pinned_one_that_is_kept_is_what_a_start_takes(
        self, settings: Settings, built: Path
    ) -> None:
        self.pin(settings, write_mar(archives.deployed(settings, "2.0"), "2.0", note="kept"))
        found = list(doctor._made(doctor.check_archives, Patient(settings)))
        assert [each.state for each in found] == [OK, OK]
        assert "as pinned" in found[1].what

    def test_another_than_the_pinned_one_is_not_kept(self, settings: Settings, built: Path) -> None:
        self.pin(settings, archives.digest(built))
        write_mar(archives.deployed(settings, "2.0"), "2.0", note="earlier")
        archives.deployed(settings, "2.0").with_name(f"{built.name}.sha256").unlink()
        assert PROBLEM not in states(doctor.check_archives, Patient(settings))
        built.unlink()
        assert "is missing" in self.found(settings, PROBLEM).what

    def test_another_build_is_told(self, settings: Settings, built: Path) -> None:
        write_mar(archives.deployed(settings, "2.0"), "2.0", note="earlier")
        assert "another build" in self.found(settings, NOTE).what


class TestPorts:
    @contextlib.contextmanager
    def listening(self, settings: Settings, **hosts: str) -> Iterator[None]:
        """Listen on all ports of the settings, on loopback unless a host is named."""
        with contextlib.ExitStack() as stack:
            for variable, port in settings.ports.items():
                server = stack.enter_context(socket.socket())
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((hosts.get(variable, "127.0.0.1"), port))
                server.listen()
            yield

    def test_free_ones(self, settings: Settings) -> None:
        assert states(doctor.check_ports, Patient(settings)) == [OK]

    def test_others_have_them_though_nothing_runs(self, settings: Settings) -> None:
        with self.listening(settings):
            assert states(doctor.check_ports, Patient(settings)) == [PROBLEM]

    def test_the_services_own(self, patient: Patient) -> None:
        with self.listening(patient.settings):
            assert states(doctor.check_ports, patient) == [OK]

    def test_one_that_the_service_does_not_hold(self, patient: Patient) -> None:
        (other,) = {free_settings(patient.settings.run_dir / "x").metrics_port}
        with self.listening(patient.settings):
            patient.settings = patient.settings.model_copy(update={"metrics_port": other})
            said = the_one(doctor.check_ports, patient, PROBLEM).what
        assert said == f"the service does not listen on METRICS_PORT {other}"

    def test_one_that_is_open_to_other_machines(self, patient: Patient) -> None:
        with self.listening(patient.settings, MANAGEMENT_PORT="0.0.0.0"):
            said = the_one(doctor.check_ports, patient, PROBLEM).what
        assert said.endswith(f"to other machines: {patient.settings.management_port}")

    def test_metrics_are_open_where_it_was_said_so(self, patient: Patient) -> None:
        patient.settings = patient.settings.model_copy(update={"exporter_host": "0.0.0.0"})
        with self.listening(patient.settings, EXPORTER_PORT="0.0.0.0"):
            said = the_one(doctor.check_ports, patient, OK).what
        assert f"but for {patient.settings.exporter_port}" in said

    def test_a_service_that_has_just_ended(self, patient: Patient) -> None:
        # No process has a number this large.
        patient.pid = 2**22 + 1
        assert states(doctor.check_ports, patient) == [UNCHECKED]

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True)]
        + [(host, False) for host in ("0.0.0.0", "::", "::ffff:10.0.0.1", "example.org", "")],
    )
    def test_what_is_loopback(self, host: str, loopback: bool) -> None:
        assert doctor._is_loopback(host) is loopback


class TestTokens:
    @pytest.fixture
    def keys(self, patient: Patient) -> dict[str, Any]:
        """Return the keys of a healthy service, and have it keep them."""
        config = torchserve.effective_config(patient.settings, WANTED)
        run_dir = patient.settings.run_dir
        (run_dir / "config.properties").write_text(torchserve.to_properties(config))
        made: dict[str, Any] = {
            kind: {"key": f"secret-{kind}", "expiration time": expiry(minutes=40)}
            for kind in tokens.KINDS
        }
        self.write(patient, made | {"API": {"key": "secret-api"}})
        tokens.write_header(run_dir, tokens.Tokens(run_dir))
        return made | {"API": {"key": "secret-api"}}

    def write(self, patient: Patient, keys: dict[str, Any]) -> None:
        path = patient.settings.run_dir / tokens.KEY_FILE
        path.write_text(json.dumps(keys))
        path.chmod(0o600)

    def test_healthy_ones(self, patient: Patient, keys: dict[str, Any]) -> None:
        assert set(states(doctor.check_tokens, patient)) == {OK}

    @pytest.mark.parametrize(("minutes", "said"), [(-1, "expired"), (5, "was not renewed")])
    def test_one_that_is_not_renewed(
        self, patient: Patient, keys: dict[str, Any], minutes: int, said: str
    ) -> None:
        keys["management"]["expiration time"] = expiry(minutes=minutes)
        self.write(patient, keys)
        found = the_one(doctor.check_tokens, patient, PROBLEM).what
        assert found.startswith("management")
        assert said in found

    @pytest.mark.parametrize("name", [tokens.KEY_FILE, tokens.HEADER_FILE])
    def test_files_that_others_can_read(
        self, patient: Patient, keys: dict[str, Any], name: str
    ) -> None:
        (patient.settings.run_dir / name).chmod(0o640)
        assert name in the_one(doctor.check_tokens, patient, PROBLEM).what

    def test_a_header_that_is_out_of_date(self, patient: Patient, keys: dict[str, Any]) -> None:
        keys["inference"]["key"] = "another"
        self.write(patient, keys)
        assert "another token" in the_one(doctor.check_tokens, patient, PROBLEM).what

    def test_a_file_that_is_missing(self, patient: Patient, keys: dict[str, Any]) -> None:
        (patient.settings.run_dir / tokens.HEADER_FILE).unlink()
        assert "is missing" in the_one(doctor.check_tokens, patient, PROBLEM).what
        (patient.settings.run_dir / tokens.KEY_FILE).unlink()
        assert states(doctor.check_tokens, patient) == [PROBLEM]

    def test_none_is_shown(
        self, patient: Patient, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not even one that gets into a message."""

        def check(patient: Patient) -> Iterator[Finding]:
            yield Finding(OK, "secret-inference", "look at secret-management")
            raise ValueError("secret-api")

        monkeypatch.setattr(doctor, "CHECKS", {"first": check, "tokens": doctor.check_tokens})
        monkeypatch.setattr(doctor, "NEED_SERVICE", ())
        for word in ("secret-inference", "secret-management", "secret-api"):
            assert word not in str(doctor.examine(patient.settings))


def expiry(minutes: float) -> str:
    moment = datetime.now(timezone.utc) + timedelta(minutes=minutes)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f123Z")


class TestRunning:
    def test_ready(self, patient: Patient) -> None:
        assert states(doctor.check_ready, patient) == [PROBLEM]
        RoutingFile(patient.settings.run_dir).publish(Routing.of(WANTED))
        assert states(doctor.check_ready, patient) == [OK]

    def test_page(self, patient: Patient) -> None:
        assert "can't be reached" in the_one(doctor.check_page, patient, PROBLEM).what
        with StandIn(patient.settings.run_dir) as page:
            patient.settings = patient.settings.model_copy(
                update={"frontend_port": page.server.server_port}
            )
            assert states(doctor.check_page, patient) == [OK]
            page.refuse(503, "NotReady")
            assert "status 503" in the_one(doctor.check_page, patient, PROBLEM).what

    def test_management(self, settings: Settings) -> None:
        with StandIn(settings.run_dir) as server, running(settings):
            settings = settings.model_copy(update={"management_port": server.server.server_port})
            told = [{"modelVersion": "1.0"}]
            server.answer = lambda request, body: (200, json.dumps(told).encode())
            found = the_one(doctor.check_management, Patient(settings), OK)
            assert found.what == "it answers, and holds 1.0"
            server.refuse(503, "ServiceUnavailableException")
            patient = Patient(settings)
        assert states(doctor.check_management, patient) == [PROBLEM]
        # What TorchServe does not tell is one problem, not six.
        for check in (doctor.check_workers, doctor.check_settings, doctor.check_queue):
            assert states(check, patient) == [UNCHECKED]

    def test_workers(self, patient: Patient) -> None:
        assert states(doctor.check_workers, patient) == [OK, OK]
        patient.described["2.0"]["workers"] = [{"status": "READY"}, {"status": "UNLOADING"}]
        assert the_one(doctor.check_workers, patient, PROBLEM).what == "2.0: 1 of 2 ready"
        del patient.described["2.0"]
        assert the_one(doctor.check_workers, patient, PROBLEM).what == "2.0: does not serve"

    def test_differences(self, patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
        found: list[str] = []
        monkeypatch.setattr(Rollout, "differences", lambda self, wanted: found)
        assert states(doctor.check_differences, patient) == [OK]
        found += ["2.0 does not serve", "3.0 is not wanted"]
        assert states(doctor.check_differences, patient) == [PROBLEM, PROBLEM]
        # They come and go while someone changes something.
        with files.lock(patient.settings.run_dir / "change.lock", "`scale 2.0` by process 7"):
            assert "`scale 2.0`" in the_one(doctor.check_differences, patient, UNCHECKED).what

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"batchSize": 1}, "2.0: batchSize is 1, not 8"),
            ({"maxBatchDelay": 100, "responseTimeout": 120}, "maxBatchDelay is 100, not 1; respo"),
            (
                {"jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": 0}},
                "2.0: jobQueueSize is 100, not 128",
            ),
        ],
    )
    def test_settings_that_torchserve_passed_over(
        self, patient: Patient, changed: dict[str, Any], said: str
    ) -> None:
        assert states(doctor.check_settings, patient) == [OK, OK]
        patient.described["2.0"] |= changed
        assert said in the_one(doctor.check_settings, patient, PROBLEM).what

    def test_a_queue_in_motion_is_not_measured(self, patient: Patient) -> None:
        patient.described["2.0"]["jobQueueStatus"] = {
            "remainingCapacity": 120,
            "pendingRequests": 7,
        }
        assert states(doctor.check_settings, patient) == [OK, OK]

    def test_settings_of_an_archive_that_is_gone(self, patient: Patient) -> None:
        archives.deployed(patient.settings, "2.0").unlink()
        assert "model-config.yaml" in the_one(doctor.check_settings, patient, PROBLEM).what

    @pytest.mark.parametrize(
        "error", [NeverReady("answers otherwise"), ServiceError(504, "ServiceTimeout", "too long")]
    )
    def test_answers(
        self, patient: Patient, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        asked = []

        def check_answers(client: Any, version: str, archive: Path) -> None:
            asked.append((version, archive))
            if version == "2.0":
                raise error

        monkeypatch.setattr(readiness, "check_answers", check_answers)
        found = list(doctor._made(doctor.check_answers, patient))
        assert [(each.state, each.what) for each in found] == [
            (OK, "1.0: 4 images, all rightly"),
            (PROBLEM, f"2.0: {error}"),
        ]
        assert asked[1] == ("2.0", archives.deployed(patient.settings, "2.0"))

    def test_queue(self, patient: Patient) -> None:
        assert states(doctor.check_queue, patient) == [OK, OK]
        full = {"remainingCapacity": 0, "pendingRequests": 128}
        patient.described["1.0"]["jobQueueStatus"] = full
        assert the_one(doctor.check_queue, patient, PROBLEM).what.startswith("1.0: 128 wait")


class TestLog:
    STARTED = "INFO  [W-{}-bloodcells_2.0-stdout] MODEL_LOG - Torch worker started."
    DIED = "INFO  [W-{}-bloodcells_2.0-stdout] MODEL_LOG - Backend worker process died."

    def write(self, patient: Patient, *lines: str, ago: timedelta = timedelta(0)) -> None:
        moment = (datetime.now() - ago).strftime("%Y-%m-%dT%H:%M:%S,123")
        patient.log.parent.mkdir(exist_ok=True)
        patient.log.write_text("".join(f"{moment} {line}\n" for line in lines))

    def test_without_a_log(self, patient: Patient) -> None:
        assert states(doctor.check_log, patient) == [UNCHECKED]

    def test_a_quiet_one(self, patient: Patient) -> None:
        """Workers that `scale` adds have names of their own."""
        started = [self.STARTED.format(number) for number in (9000, 9001, 9003)]
        self.write(patient, "WARN  [main] ModelServer - Invalid", "\tat java.lang", *started)
        assert states(doctor.check_log, patient) == [OK]

    def test_one_that_was_killed_starts_again_under_its_name(self, patient: Patient) -> None:
        started = [self.STARTED.format(number) for number in (9000, 9001, 9001, 9000, 9001)]
        self.write(patient, *started)
        assert "ended 3 times" in the_one(doctor.check_log, patient, PROBLEM).what

    def test_one_that_never_started_counts_as_well_but_none_twice(self, patient: Patient) -> None:
        self.write(patient, self.DIED.format(9000))
        assert "ended 1 times" in the_one(doctor.check_log, patient, PROBLEM).what
        both = [self.STARTED.format(9000), self.DIED.format(9000)]
        self.write(patient, *both, *both, self.STARTED.format(9000))
        assert "ended 2 times" in the_one(doctor.check_log, patient, PROBLEM).what

    def test_what_is_long_ago_is_but_told(self, patient: Patient) -> None:
        self.write(patient, self.DIED.format(9000), ago=timedelta(hours=2))
        assert states(doctor.check_log, patient) == [NOTE]


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[None]:
    """Let the service seem to run: this process."""
    with files.lock(settings.run_dir / "pid", str(os.getpid())):
        yield


class TestCommand:
    @pytest.fixture
    def healthy(self, settings: Settings) -> Settings:
        for name in WANTED.versions:
            write_mar(archives.built(settings, name), name)
        return settings

    def test_nothing_runs_and_nothing_is_wrong(self, healthy: Settings) -> None:
        done = CliRunner().invoke(main, ["doctor", "--json"], env=environment_of(healthy))
        assert (done.exit_code, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert found["problems"] == 0
        states = {each["check"]: (each["state"], each["found"]) for each in found["checks"]}
        assert list(states) == list(doctor.CHECKS)
        after = list(states).index("ready")
        assert set(list(states.values())[after:]) == {(UNCHECKED, "nothing runs")}
        assert UNCHECKED not in {state for state, _ in list(states.values())[:after]}

    def test_a_problem_is_told_with_what_to_do(self, healthy: Settings) -> None:
        healthy.run_dir.chmod(0o777)
        done = CliRunner().invoke(main, ["doctor"], env=environment_of(healthy))
        assert done.exit_code == 1
        assert done.stderr.startswith("error: 1 of ")
        said = " ".join(done.stdout.split())
        assert "folder problem others may write" in said
        assert "-> `chmod 700" in said

    def test_a_check_that_fails_itself_hides_no_other(
        self, healthy: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken() -> None:
            raise ZeroDivisionError("by zero")

        monkeypatch.setattr(psutil, "virtual_memory", broken)
        found = {each.check: each for each in doctor.examine(healthy)}
        assert found["memory"].state == PROBLEM
        assert found["memory"].what == "the check itself failed: ZeroDivisionError: by zero"
        assert found["archives"].state == OK

    def test_it_changes_nothing(self, healthy: Settings) -> None:
        before = sorted(healthy.deployment.parent.rglob("*"))
        doctor.examine(healthy)
        assert sorted(healthy.deployment.parent.rglob("*")) == before


def test_a_healthy_service(service: Service) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving", "doctor", "--json"],
        cwd=ROOT,
        env=environment_of(service.settings),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = json.loads(done.stdout)["checks"]
    assert {each["state"] for each in found} <= {OK, NOTE}
    assert {each["check"] for each in found} == set(doctor.CHECKS)
    keys = json.loads((service.settings.run_dir / tokens.KEY_FILE).read_text())
    assert not any(each["key"] in done.stdout for each in keys.values())

"""The edge without nginx: API keys, certificates, settings and its configuration."""

from __future__ import annotations

import json
import os
import re
import resource
import ssl
import stat
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from edges import DAMAGED

from serving.cli import main
from serving.edge import certificates, configuration, log, nginx, process
from serving.edge.keys import KeyFile, KeyFileError
from serving.edge.settings import EdgeSettings, keys_path
from serving.settings import ROOT, Settings, SettingsError
from serving.torchserve import StartError


class TestKeyFile:
    def test_stores_hashes_only(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.json"
        key = KeyFile(path).add("lab", ["predict"])
        assert key not in path.read_text()
        assert len(key) >= 43
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        ((_, known),) = KeyFile(path).read().items()
        assert (known.client, known.allow, known.revoked) == ("lab", ("predict",), None)

    def test_revokes_one_key_or_all_of_a_client(self, tmp_path: Path) -> None:
        keys = KeyFile(tmp_path / "keys.json")
        keys.add("lab")
        keys.add("lab")
        first, second = keys.read()
        assert keys.revoke(first[:12]) == [first]
        assert keys.read()[second].revoked is None
        assert keys.revoke("lab") == [second]
        with pytest.raises(KeyFileError):
            keys.revoke("lab")

    @pytest.mark.parametrize("name", ["", "a b", '"', "-x", "a" * 65])
    def test_rejects_other_names(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(KeyFileError):
            KeyFile(tmp_path / "keys.json").add(name)

    @pytest.mark.parametrize("document", DAMAGED)
    def test_refuses_wrong_types(self, tmp_path: Path, document: object) -> None:
        path = tmp_path / "keys.json"
        path.write_text(json.dumps(document).replace("HASH", "0" * 64))
        with pytest.raises(KeyFileError, match="not a valid file of keys"):
            KeyFile(path).read()

    def test_command_line(self, tmp_path: Path) -> None:
        def run(*arguments: str) -> tuple[int, str]:
            environment = {"RUN_DIR": str(tmp_path)}
            done = CliRunner().invoke(main, ["edge-key", *arguments], env=environment)
            return done.exit_code, done.output

        assert run("add", "lab", "--allow", "predict")[0] == 0
        ((hashed, known),) = KeyFile(tmp_path / "edge-keys.json").read().items()
        assert known.allow == ("predict",)
        code, listed = run("list")
        assert code == 0
        assert re.search(rf"^{hashed[:12]} +lab +predict *$", listed, re.MULTILINE)
        assert [run("revoke", "lab")[0] for _ in range(2)] == [0, 1]
        assert run("add", "lab", "--allow", "all")[0] == 2


class TestCertificate:
    def test_names_the_edge_and_expires_in_a_year(self, tmp_path: Path) -> None:
        own = EdgeSettings(host="edge.example")
        certificate, key = certificates.provide(own, tmp_path)
        ssl.create_default_context(cafile=str(certificate)).load_cert_chain(certificate, key)
        found = ssl._ssl._test_decode_cert(str(certificate))  # type: ignore[attr-defined]
        assert found["subjectAltName"] == (
            ("DNS", "bloodcells"),
            ("DNS", "localhost"),
            ("IP Address", "127.0.0.1"),
            ("DNS", "edge.example"),
        )
        year = certificates.VALID_DAYS * 24 * 3600
        left = certificates.expires(certificate.read_bytes()) - time.time()
        assert left == pytest.approx(year, rel=0.01)
        assert stat.S_IMODE(key.stat().st_mode) == 0o600

    def test_is_created_again_only_if_it_must(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def provided(host: str = "127.0.0.1") -> bytes:
            certificate, key = certificates.provide(EdgeSettings(host=host), tmp_path)
            return certificate.read_bytes() + key.read_bytes()

        first = provided()
        assert provided() == first
        other = provided("10.0.0.1")
        assert other not in (first, provided("edge.example"))
        # In its last days.
        monkeypatch.setattr(certificates, "VALID_DAYS", certificates.LAST_DAYS)
        soon = provided()
        assert provided() != soon
        (tmp_path / "certificate.pem").write_text("damaged")
        assert b"BEGIN CERTIFICATE" in provided()


class TestSettings:
    def test_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        makefile = ROOT / "Makefile"
        for name, value in {
            "EDGE_HOST": "::1",
            "EDGE_CERTIFICATE": str(makefile),
            "EDGE_CERTIFICATE_KEY": str(makefile),
            "EDGE_RATE": "7",
            "EDGE_PROCESSES": "",
            "EDGE_PAGE": "off",
            "EDGE_FRONT": "10.0.0.1, fd00::/8",
        }.items():
            monkeypatch.setenv(name, value)
        own = EdgeSettings.from_environment()
        assert (own.host, own.certificate, own.certificate_key) == ("::1", makefile, makefile)
        assert (own.rate, own.page) == (7, False)
        assert own.processes == min(os.cpu_count() or 1, 4)
        assert [str(each) for each in own.front] == ["10.0.0.1/32", "fd00::/8"]

    @pytest.mark.parametrize(
        ("wrong", "named"),
        [
            ({"EDGE_RATE": "0"}, "EDGE_RATE is '0'"),
            ({"EDGE_PAGE": "perhaps"}, "EDGE_PAGE"),
            ({"EDGE_FRONT": "10.0.0.0/8;"}, "EDGE_FRONT"),
            ({"EDGE_HOST": "a; b"}, "EDGE_HOST"),
            ({"EDGE_PROCESSES": "17"}, "EDGE_PROCESSES"),
            ({"EDGE_CERTIFICATE": str(ROOT / "Makefile")}, "EDGE_CERTIFICATE_KEY"),
            (
                {"EDGE_CERTIFICATE": "/no", "EDGE_CERTIFICATE_KEY": "/no"},
                "EDGE_CERTIFICATE is '/no'",
            ),
        ],
    )
    def test_an_error_names_the_variable(
        self, wrong: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in wrong.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SettingsError, match=re.escape(named)):
            EdgeSettings.from_environment()

    def test_keys(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert keys_path(Settings(run_dir=tmp_path)) == tmp_path / "edge-keys.json"
        monkeypatch.setenv("EDGE_KEYS", "keys.json")
        assert keys_path(Settings(run_dir=tmp_path)) == Path.cwd() / "keys.json"


def test_a_log_and_its_old_files_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "edge.log"
    assert not log.rotate(path)
    for number in range(log.OLD_FILES + 2):
        path.write_text(str(number))
        assert not log.rotate(path)
        os.truncate(path, log.SIZE)
        assert log.rotate(path)
        assert not path.exists()
    kept = {each.name: each.read_text()[0] for each in tmp_path.iterdir()}
    assert kept == {f"edge.{age}.log": str(number) for age, number in enumerate("65432", 1)}


def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: None)
    monkeypatch.setattr(nginx, "find", lambda: "nginx")
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"file/run/edge.*: Not a directory"):
        process.run(Settings(run_dir=tmp_path / "file" / "run"))


@pytest.mark.parametrize(
    ("allowed", "opened"), [(4096, 4096), (10**6, 16_640), (resource.RLIM_INFINITY, 16_640)]
)
def test_as_many_connections_as_the_system_allows(
    allowed: int, opened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, allowed))
    assert configuration._open_files() == opened


def test_a_path_that_nginx_cannot_read_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "a$b"
    folder.mkdir()
    with pytest.raises(StartError, match="plainer name"):
        configuration.write(
            Settings(run_dir=folder), EdgeSettings(), folder / "a.pem", folder / "a.key", folder
        )

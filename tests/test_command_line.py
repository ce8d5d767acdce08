"""The commands that roll versions out and back: what they print, and their exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from stand_in import StandIn, World, write_archive, write_keys

from serving import deployment
from serving.cli import main
from serving.deployment import History, archives, change
from serving.deployment.routing import RoutingFile
from serving.rollout.readiness import NeverReady
from serving.settings import Settings
from serving.torchserve.tokens import HEADER_FILE
from testing.service import environment_of

DONE, FAILED, MISTYPED, NOT_RUNNING, BUSY = range(5)
# Each as it would succeed.
CHANGES = [
    "deploy 3.0",
    "promote 2.0",
    "canary 2.0 --percent 25",
    "scale 2.0 --workers 3",
    "retire 2.0",
    "apply",
]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def call(settings: Settings, line: str) -> Result:
    """Call the command line as a shell would; no failure may be a traceback."""
    result = CliRunner().invoke(main, line.split(), env=environment_of(settings))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def failed(settings: Settings, line: str, code: int, said: str) -> None:
    """See that a command fails with one line that says why, and prints nothing else."""
    result = call(settings, line)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


class TestExitCodes:
    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("deploy 3.0 --workers 2", "version 3.0 serves beside the others"),
            ("promote 2.0", "version 2.0 answers by default"),
            ("canary 2.0", "version 2.0 answers 10 % of the clients"),
            ("scale 2.0 --workers 3", "version 2.0 has 3 workers"),
            ("retire 2.0", "version 2.0 is retired"),
            ("apply", "nothing to do"),
            ("history", "time"),
            ("status", "1 of 1"),
        ],
    )
    def test_what_is_done_is_0(self, world: World, line: str, said: str) -> None:
        result = call(world.settings, line)
        assert (result.exit_code, result.stderr) == (DONE, "")
        assert said in result.stdout

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("promote 3.0", "Version 3.0 does not serve: `deploy 3.0` first."),
            ("deploy 2.0", "serves already"),
            ("deploy 4.0", "bloodcells-4.0.mar is missing"),
            ("scale 2.0 --workers 0", "1 to 64 workers, not 0"),
            ("canary 2.0 --percent 100", "0 to 100 percent, not 100"),
            ("canary 2.0 --max-errors nan", "bounds"),
            ("retire 1.0", "answers by default"),
            ("rollback", "no promotion to undo"),
        ],
    )
    def test_what_is_refused_is_1(self, world: World, line: str, said: str) -> None:
        before = world.state
        failed(world.settings, line, FAILED, said)
        assert world.state == before

    def test_a_version_that_is_never_ready_is_1(self, world: World) -> None:
        world.never = NeverReady("A worker of version 3.0 can't start: no weights.")
        failed(world.settings, "deploy 3.0", FAILED, "can't start: no weights")

    @pytest.mark.parametrize("line", ["status", "apply", "promote 2.0"])
    def test_a_file_that_cannot_be_read_is_1(self, world: World, line: str) -> None:
        world.settings.deployment.write_text("default: [")
        failed(world.settings, line, FAILED, "deployment.yaml is not YAML")

    def test_a_wrong_setting_is_1(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        environment = environment_of(world.settings) | {"METRICS_PORT": "many"}
        result = CliRunner().invoke(main, ["status"], env=environment)
        assert result.exit_code == FAILED
        assert result.stderr.startswith("error: METRICS_PORT must be a port number")

    @pytest.mark.parametrize(
        "line",
        [
            "depoly 3.0",
            "deploy",
            "deploy 3.0 --workers many",
            "deploy 3.0 --archive nowhere.mar",
            "scale 2.0",
            "canary 2.0 --percent few",
            "promote 1.0 2.0",
            "status --yaml",
        ],
    )
    def test_what_is_mistyped_is_2(self, world: World, line: str) -> None:
        before = world.state
        result = call(world.settings, line)
        assert result.exit_code == MISTYPED
        assert result.stderr.startswith("Usage: ")
        assert world.state == before
        assert History(world.settings.deployment).entries() == []

    @pytest.mark.parametrize("line", [*CHANGES, "rollback", "status", "renew-tokens"])
    def test_without_a_service_it_is_3(self, tmp_path: Path, line: str) -> None:
        settings = Settings(run_dir=tmp_path, deployment=tmp_path / "deployment.yaml")
        deployment.save(World.WANTED, settings.deployment)
        failed(settings, line, NOT_RUNNING, "make run")

    @pytest.mark.parametrize("line", [*CHANGES, "rollback"])
    def test_beside_another_change_it_is_4(self, world: World, line: str) -> None:
        with change(world.settings, "scale", "1.0"):
            failed(world.settings, line, BUSY, "Another change is running: `scale 1.0` by process")

    @pytest.mark.parametrize("name", [None, *main.commands])
    def test_help_is_0(self, name: str | None) -> None:
        result = CliRunner().invoke(main, [*filter(None, [name]), "--help"])
        assert result.exit_code == DONE
        assert result.stdout.startswith("Usage: ")


class TestStatus:
    def test_for_programs_it_is_json(self, world: World) -> None:
        call(world.settings, "canary 2.0 --percent 12.5")
        found = json.loads(call(world.settings, "status --json").stdout)
        assert (found["ready"], found["default"]) == (True, "1.0")
        assert found["canary"] == {
            "version": "2.0",
            "percent": 12.5,
            "max_errors": 2.0,
            "max_p95": 1000.0,
        }
        assert [each["version"] for each in found["versions"]] == ["1.0", "2.0"]

    def test_for_people_it_is_a_table(self, world: World) -> None:
        call(world.settings, "canary 2.0 --percent 12.5")
        lines = call(world.settings, "status").stdout.splitlines()
        assert "87.5 %, default" in lines[1]
        assert "12.5 %, canary" in lines[2]
        assert "2 of 2" in lines[2]

    @pytest.mark.parametrize("form", ["", " --json"])
    def test_what_is_not_as_wanted_is_told_and_is_1(self, world: World, form: str) -> None:
        world.management.workers["2.0"] = 5
        result = call(world.settings, f"status{form}")
        assert result.exit_code == FAILED
        assert "2.0 has 5 workers, not 2" in result.stdout
        if form:
            json.loads(result.stdout)
        else:
            assert "`apply` brings" in result.stdout
        call(world.settings, "apply")
        assert call(world.settings, f"status{form}").exit_code == DONE

    def test_a_service_that_is_not_ready_is_1(self, world: World) -> None:
        world.routing.withdraw()
        result = call(world.settings, "status")
        assert result.exit_code == FAILED
        assert "not ready" in result.stdout

    @pytest.mark.parametrize("content", [None, b"PK half of it"])
    def test_an_archive_that_is_lost_is_no_crash(self, world: World, content: bytes | None) -> None:
        served = archives.deployed(world.settings, "2.0")
        served.unlink()
        if content:
            served.write_bytes(content)
        assert call(world.settings, "status").exit_code == FAILED

    def test_another_build_is_told(self, world: World) -> None:
        write_archive(archives.built(world.settings, "2.0"), "2.0", note="built anew")
        words = call(world.settings, "status").stdout.split()
        assert "another build lies in the model store" in " ".join(words)


class TestHistory:
    def test_tells_who_did_what_and_why_it_failed(self, world: World) -> None:
        call(world.settings, "promote 2.0")
        call(world.settings, "promote 3.0")
        first, second = json.loads(call(world.settings, "history --json").stdout)
        assert (first["action"], first["version"], first["outcome"]) == ("promote", "2.0", "done")
        assert (second["outcome"], second["before"]) == ("failed", first["after"])
        assert "does not serve" in second["why"]
        table = " ".join(call(world.settings, "history").stdout.split())
        assert "promote 2.0 done" in table
        assert "promote 3.0 failed" in table

    @pytest.mark.parametrize("why", ["lost [/tmp/x]", "a [red] cell", r"a \[path]"])
    def test_a_reason_is_no_markup(self, world: World, why: str) -> None:
        with pytest.raises(ValueError, match=re.escape(why)), change(world.settings, "apply"):
            raise ValueError(why)
        printed = call(world.settings, "history").stdout
        assert "".join(why.split()) in "".join(printed.split())

    @pytest.mark.parametrize("form", ["", " --json"])
    def test_needs_no_service(self, tmp_path: Path, form: str) -> None:
        settings = Settings(run_dir=tmp_path / "run", deployment=tmp_path / "deployment.yaml")
        result = call(settings, f"history{form}")
        assert result.exit_code == DONE
        if form:
            assert json.loads(result.stdout) == []


class TestTokens:
    """Over HTTP, and with tokens that nothing else looks like."""

    SECRETS = ("first", "manager", "api")

    @pytest.fixture
    def stand_in(self, tmp_path: Path) -> Iterator[StandIn]:
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        with StandIn(run_dir) as running:
            own = tmp_path / "deployment.yaml"
            deployment.save(World.WANTED, own)
            running.settings = running.settings.model_copy(update={"deployment": own})
            keys = (run_dir / "key_file.json").read_text()
            for each in self.SECRETS:
                keys = keys.replace(f'"{each}"', f'"{self.secret(each)}"')
            (run_dir / "key_file.json").write_text(keys)
            yield running

    @staticmethod
    def secret(name: str) -> str:
        return f"s3cret-{name}"

    @pytest.mark.parametrize("line", [*CHANGES, "rollback", "status", "status --json"])
    @pytest.mark.parametrize(
        "answer", [(200, b"{}"), (200, b"<html>"), (400, b"InvalidKeyException"), (500, b"")]
    )
    def test_none_is_printed_whatever_torchserve_answers(
        self,
        stand_in: StandIn,
        line: str,
        answer: tuple[int, bytes],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("serving.client.RENEWAL_PATIENCE", 0.05)
        stand_in.answer = lambda request, body: answer
        result = CliRunner().invoke(main, line.split(), env=environment_of(stand_in.settings))
        assert result.exit_code == FAILED
        assert stand_in.requests
        assert "s3cret" not in result.output
        history = History(stand_in.settings.deployment).path
        assert not history.exists() or "s3cret" not in history.read_text()

    def test_renewed_ones_lie_where_the_old_ones_lay(self, stand_in: StandIn) -> None:
        def renew(request: Any, body: bytes) -> tuple[int, bytes]:
            write_keys(stand_in.settings.run_dir, inference="s3cret-second")
            return 200, b"{}"

        stand_in.answer = renew
        result = call(stand_in.settings, "renew-tokens")
        assert (result.exit_code, result.stderr) == (DONE, "")
        assert "s3cret" not in result.output
        assert [path for path, _ in stand_in.requests] == [
            "/token?type=inference",
            "/token?type=management",
        ]
        header = stand_in.settings.run_dir / HEADER_FILE
        assert header.read_text() == "Authorization: Bearer s3cret-second\n"

    def test_tokens_that_cannot_be_renewed_are_3(self, stand_in: StandIn) -> None:
        stand_in.refuse(500, "InternalServerException", "s3cret")
        result = call(stand_in.settings, "renew-tokens")
        assert result.exit_code == NOT_RUNNING
        assert "s3cret" not in result.output

    def test_a_refused_management_token_is_no_crash(
        self, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("serving.client.RENEWAL_PATIENCE", 0.05)
        stand_in.refuse(400, "InvalidKeyException")
        failed(stand_in.settings, "status", FAILED, "InvalidKeyException")
        assert RoutingFile(stand_in.settings.run_dir).read() is not None

"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from stand_in import StandIn, World, write_archive, write_keys

from serving import deployment
from serving.cli import main
from serving.deployment import History, archives, change
from serving.settings import Settings
from serving.torchserve import tokens
from serving.torchserve.tokens import HEADER_FILE
from testing.service import environment_of

DONE, FAILED, USAGE, NOT_RUNNING, BUSY = range(5)
# Each succeeds in a new World.
CHANGES = {
    "deploy 4.0 --workers 2": "version 4.0 deployed",
    "promote 3.0": "version 3.0 is the default",
    "canary 3.0": "version 3.0 serves 10 % of the clients",
    "scale 3.0 --workers 3": "version 3.0 has 3 workers",
    "retire 3.0": "version 3.0 retired",
    "apply": "nothing to do",
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def call(settings: Settings, line: str, **variables: str) -> Result:
    """Call the command line as a shell would; no error may be a traceback."""
    result = CliRunner().invoke(main, line.split(), env=environment_of(settings) | variables)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def assert_fails(result: Result, code: int, reason: str = "") -> None:
    """Check that a command printed one line with the reason, and nothing else."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr


class TestExitCodes:
    @pytest.mark.parametrize(
        ("line", "text"), [*CHANGES.items(), ("history", "time"), ("status", "1 of 1")]
    )
    def test_success_is_0(self, world: World, line: str, text: str) -> None:
        result = call(world.settings, line)
        assert (result.exit_code, result.stderr) == (DONE, "")
        assert text in result.stdout

    @pytest.mark.parametrize(
        "line",
        [
            "promote 4.0",
            "deploy 3.0",
            "deploy 5.0",
            "scale 3.0 --workers 0",
            "canary 3.0 --percent 100",
            "retire 1.0",
            "rollback",
        ],
    )
    def test_a_refused_change_is_1_and_changes_nothing(self, world: World, line: str) -> None:
        before = world.state
        assert_fails(call(world.settings, line), FAILED)
        assert world.state == before

    @pytest.mark.parametrize("line", ["status", "apply", "promote 3.0"])
    def test_an_invalid_deployment_is_1(self, world: World, line: str) -> None:
        world.settings.deployment.write_text("default: [")
        assert_fails(call(world.settings, line), FAILED, "deployment.yaml")

    def test_an_invalid_setting_is_1(self, world: World) -> None:
        assert_fails(call(world.settings, "status", METRICS_PORT="many"), FAILED, "METRICS_PORT")

    @pytest.mark.parametrize(
        "line",
        [
            "depoly 4.0",
            "deploy",
            "deploy 4.0 --workers many",
            "deploy 4.0 --archive nowhere.mar",
            "scale 3.0",
            "promote 1.0 3.0",
            "status --yaml",
        ],
    )
    def test_a_usage_error_is_2(self, world: World, line: str) -> None:
        result = call(world.settings, line)
        assert (result.exit_code, result.stderr[:7]) == (USAGE, "Usage: ")
        assert History(world.settings.deployment).entries() == []

    @pytest.mark.parametrize("line", [*CHANGES, "rollback", "status", "renew-tokens"])
    def test_without_a_service_it_is_3(self, tmp_path: Path, line: str) -> None:
        settings = Settings(run_dir=tmp_path, deployment=tmp_path / "deployment.yaml")
        deployment.save(World.WANTED, settings.deployment)
        assert_fails(call(settings, line), NOT_RUNNING, "make run")

    @pytest.mark.parametrize("line", [*CHANGES, "rollback"])
    def test_during_another_change_it_is_4(self, world: World, line: str) -> None:
        with change(world.settings, "scale", "1.0"):
            assert_fails(call(world.settings, line), BUSY, "scale 1.0")

    @pytest.mark.parametrize("name", [None, *main.commands])
    def test_help_is_0(self, name: str | None) -> None:
        result = CliRunner().invoke(main, [*filter(None, [name]), "--help"])
        assert (result.exit_code, result.stdout[:7]) == (DONE, "Usage: ")


class TestStatus:
    def test_shows_the_versions_and_their_clients(self, world: World) -> None:
        call(world.settings, "canary 3.0 --percent 12.5")
        found = json.loads(call(world.settings, "status --json").stdout)
        assert (found["ready"], found["default"]) == (True, "1.0")
        canary = {"version": "3.0", "percent": 12.5, "max_errors": 2.0, "max_p95": 1000.0}
        assert found["canary"] == canary
        assert [each["version"] for each in found["versions"]] == ["1.0", "3.0"]
        lines = call(world.settings, "status").stdout.splitlines()
        assert "87.5 %, default" in lines[1]
        assert "12.5 %, canary" in lines[2]
        assert "2 of 2" in lines[2]

    def test_a_difference_is_1_until_it_is_applied(self, world: World) -> None:
        world.management.workers["3.0"] = 5
        table, document = call(world.settings, "status"), call(world.settings, "status --json")
        assert (table.exit_code, document.exit_code) == (FAILED, FAILED)
        (difference,) = json.loads(document.stdout)["differences"]
        assert f"not in sync: {difference}" in table.stdout
        call(world.settings, "apply")
        assert call(world.settings, "status").exit_code == DONE

    def test_a_service_that_is_not_ready_is_1(self, world: World) -> None:
        world.routing.withdraw()
        result = call(world.settings, "status")
        assert result.exit_code == FAILED
        assert "not ready" in result.stdout

    @pytest.mark.parametrize("content", [None, b"PK half of it"])
    def test_a_missing_or_damaged_archive_is_1(self, world: World, content: bytes | None) -> None:
        served = archives.deployed(world.settings, "3.0")
        served.unlink()
        if content:
            served.write_bytes(content)
        assert call(world.settings, "status").exit_code == FAILED

    def test_another_build_in_the_store(self, world: World) -> None:
        write_archive(archives.built(world.settings, "3.0"), "3.0", note="rebuilt")
        assert "another build" in " ".join(call(world.settings, "status").stdout.split())


class TestHistory:
    def test_changes_and_their_outcome(self, world: World) -> None:
        call(world.settings, "promote 3.0")
        call(world.settings, "promote 4.0")
        first, second = json.loads(call(world.settings, "history --json").stdout)
        assert (first["action"], first["version"], first["outcome"]) == ("promote", "3.0", "done")
        assert (second["outcome"], second["before"]) == ("failed", first["after"])
        table = " ".join(call(world.settings, "history").stdout.split())
        assert "promote 3.0 done" in table
        assert "promote 4.0 failed" in table

    def test_a_reason_is_not_markup(self, world: World) -> None:
        reason = r"missing [/tmp/x] [red] \[path]"
        with pytest.raises(ValueError, match="missing"), change(world.settings, "apply"):
            raise ValueError(reason)
        assert reason in " ".join(call(world.settings, "history").stdout.split())

    @pytest.mark.parametrize("line", ["history", "history --json"])
    def test_needs_no_service(self, tmp_path: Path, line: str) -> None:
        settings = Settings(run_dir=tmp_path / "run", deployment=tmp_path / "deployment.yaml")
        assert call(settings, line).exit_code == DONE


class TestTokens:
    """Over HTTP, with tokens that are easy to find in the output."""

    @pytest.fixture
    def stand_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
        monkeypatch.setattr("serving.client.RENEWAL_PATIENCE", 0.05)
        with StandIn(tmp_path) as running:
            own = {"deployment": tmp_path / "deployment.yaml"}
            running.settings = running.settings.model_copy(update=own)
            deployment.save(World.WANTED, running.settings.deployment)
            keys = (tmp_path / "key_file.json").read_text()
            for name in ("first", "manager", "api"):
                keys = keys.replace(f'"{name}"', f'"s3cret-{name}"')
            (tmp_path / "key_file.json").write_text(keys)
            yield running

    @pytest.mark.parametrize("line", ["apply", "promote 3.0", "status", "status --json"])
    @pytest.mark.parametrize(
        "answer", [(200, b"<html>"), (400, b"InvalidKeyException"), (500, b"")]
    )
    def test_no_output_shows_a_token(
        self, stand_in: StandIn, line: str, answer: tuple[int, bytes]
    ) -> None:
        stand_in.answer = lambda request, body: answer
        result = call(stand_in.settings, line)
        assert result.exit_code == FAILED
        assert stand_in.requests
        assert "s3cret" not in result.output
        history = History(stand_in.settings.deployment).path
        assert not history.exists() or "s3cret" not in history.read_text()

    def test_renewal_writes_the_header(self, stand_in: StandIn) -> None:
        def renew(request: Any, body: bytes) -> tuple[int, bytes]:
            write_keys(stand_in.settings.run_dir, inference="s3cret-second")
            return 200, b"{}"

        stand_in.answer = renew
        result = call(stand_in.settings, "renew-tokens")
        assert (result.exit_code, result.stderr) == (DONE, "")
        assert "s3cret" not in result.output
        paths = [path for path, _ in stand_in.requests]
        assert paths == ["/token?type=inference", "/token?type=management"]
        header = stand_in.settings.run_dir / HEADER_FILE
        assert header.read_text() == "Authorization: Bearer s3cret-second\n"

    def test_a_header_that_cannot_be_written_is_1(
        self, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: Path, mode: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        stand_in.answer = lambda request, body: (200, b"{}")
        monkeypatch.setattr(tokens, "atomic_write", refuse)
        assert_fails(call(stand_in.settings, "renew-tokens"), FAILED, "header: No space left")

    def test_a_failed_renewal_is_1(self, stand_in: StandIn) -> None:
        stand_in.refuse(500, "InternalServerException", "s3cret")
        result = call(stand_in.settings, "renew-tokens")
        assert result.exit_code == FAILED
        assert "s3cret" not in result.output

"""The service's start and stop and its background work, without TorchServe."""

from __future__ import annotations

import errno
import getpass
import io
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import free_settings
from stand_in import World, write_keys

from serving import deployment, restarts
from serving.client import ServiceError
from serving.deployment import Canary, History
from serving.deployment.canary import note
from serving.deployment.routing import Routing, RoutingFile
from serving.rollout.changes import Refused, Rollout
from serving.settings import ROOT, Settings
from serving.supervisor import service as supervisor
from serving.supervisor.background import repeat
from serving.supervisor.canary_watch import RETRY_INTERVAL, CanaryWatch, routing_of
from serving.torchserve import StartError
from serving.torchserve.process import CODE, remove_leftovers
from testing.service import environment_of


def test_only_one_service_runs_in_a_folder(tmp_path: Path) -> None:
    # A leftover file is ignored, even if another process, here this one, now has that number.
    (tmp_path / "pid").write_text(str(os.getpid()))
    assert supervisor.running(tmp_path) is None
    with supervisor._pid_file(tmp_path):
        assert supervisor.running(tmp_path) == os.getpid()
        with pytest.raises(StartError, match="already runs"), supervisor._pid_file(tmp_path):
            pass
        assert (tmp_path / "pid").exists()
    assert supervisor.running(tmp_path) is None


def test_stop_removes_what_a_killed_service_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RoutingFile(tmp_path).publish(Routing("1.0", ("1.0",)))
    write_keys(tmp_path)
    (tmp_path / CODE / "home").mkdir(parents=True)
    supervisor.stop(Settings(run_dir=tmp_path))
    assert capsys.readouterr().out == "not running\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "kept"), [("bloodcells-x", False), ("precious", True)])
def test_only_a_scratch_folder_is_removed(tmp_path: Path, name: str, kept: bool) -> None:
    scratch, run_dir = tmp_path / name, tmp_path / "run"
    scratch.mkdir()
    run_dir.mkdir()
    (run_dir / "scratch").write_text(str(scratch))
    remove_leftovers(run_dir)
    assert scratch.exists() == kept


def test_an_own_folder_is_closed_to_other_users(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    supervisor.close_to_others(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(StartError, match="belongs to another user"):
        supervisor.close_to_others(tmp_path)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model_store", r"bloodcells-1\.0\.mar is missing: run `make mar`"),
        ("deployment", "nowhere can't be read: No such file"),
        ("config", "nowhere can't be read: No such file"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, setting: str, said: str) -> None:
    missing = {setting: tmp_path / "nowhere"}
    settings = free_settings(tmp_path / "run").model_copy(update=missing)
    with pytest.raises(StartError, match=said):
        supervisor.Service(settings).run()


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("INFERENCE_PORT", "many", "INFERENCE_PORT is 'many': "),
        # As on a read-only disk.
        ("RUN_DIR", "/dev/null/run", "/dev/null/run: Not a directory."),
    ],
)
def test_a_start_that_fails_prints_one_sentence(
    tmp_path: Path, variable: str, value: str, error: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving", "run"],
        env=environment_of(free_settings(tmp_path / "run")) | {variable: value},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {error}")
    assert done.stderr.count("\n") == 1
    assert supervisor.running(tmp_path / "run") is None


class TestExits:
    """The reaction of the service when a part exits by itself."""

    class Part:
        pid = 1

        def __init__(self, code: int | None = None) -> None:
            self.code = code
            self.log = Path("logs/torchserve.log")

        def exit_code(self) -> int | None:
            return self.code

        def stop(self) -> None:
            self.code = -15

    @pytest.fixture
    def service(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> supervisor.Service:
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        made = supervisor.Service(Settings(run_dir=tmp_path))
        made._server, made._page = self.Part(), self.Part()  # type: ignore[assignment]
        return made

    def test_a_part_that_keeps_exiting_ends_the_service(
        self,
        service: supervisor.Service,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        restarts = []
        service._page.code = 3  # type: ignore[union-attr]
        monkeypatch.setattr(service, "_restart", lambda: restarts.append(1))
        with pytest.raises(StartError, match=r"code 3\. Giving up after 4 exits in 120 s"):
            service._watch()
        assert len(restarts) == 3
        assert capsys.readouterr().out.count("The page exited with code 3. Restarting ...") == 3

    def test_exits_now_and_then_do_not(
        self, service: supervisor.Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = iter(range(0, 100_000, 50))
        restarts: list[int] = []

        def restart() -> None:
            restarts.append(1)
            if len(restarts) == 10:
                raise supervisor.Stopped

        service._server.code = 1  # type: ignore[union-attr]
        monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
        monkeypatch.setattr(service, "_restart", restart)
        with pytest.raises(supervisor.Stopped):
            service._watch()

    def test_a_restart_that_fails_on_a_full_disk_is_repeated(
        self, service: supervisor.Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Java may run already, but without a routing nobody can be served."""
        starts: list[int] = []
        server = service._server
        assert server

        def start() -> None:
            starts.append(1)
            server.code = None  # type: ignore[attr-defined]
            if len(starts) == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise supervisor.Stopped

        server.code = 1  # type: ignore[attr-defined]
        monkeypatch.setattr(service, "_start_torchserve", start)
        with pytest.raises(supervisor.Stopped):
            service._watch()
        assert len(starts) == 2

    def test_a_page_that_cannot_be_started_leaves_torchserve_alone(
        self, service: supervisor.Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        starts: list[int] = []

        def start() -> None:
            starts.append(1)
            if len(starts) == 2 * restarts.EXITS:
                raise supervisor.Stopped
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        service._page.code = 1  # type: ignore[union-attr]
        monkeypatch.setattr(service, "_start_page", start)
        with pytest.raises(supervisor.Stopped):
            service._watch()
        assert service._server
        assert service._server.exit_code() is None

    def test_a_server_that_did_not_start_has_exited(self, service: supervisor.Service) -> None:
        service._server.pid = None  # type: ignore[union-attr]
        assert service._exited() == "TorchServe did not start."

    def test_a_restart_waits_for_room_on_the_disk(
        self,
        service: supervisor.Service,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        free = iter([0, 0, supervisor.ROOM - 1, supervisor.ROOM])
        usage = SimpleNamespace(disk_usage=lambda folder: SimpleNamespace(free=next(free)))
        monkeypatch.setattr(supervisor, "shutil", usage)
        service._wait_for_room()
        assert next(free, None) is None
        assert capsys.readouterr().out.count("is full: waiting until 16 MiB are free") == 1


class TestBackground:
    def test_a_step_that_fails_is_logged_once_and_runs_again(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ending, rounds = threading.Event(), []

        def fail() -> None:
            # In rounds 1, 2 and 4.
            if len(rounds) != 2:
                raise KeyError("unexpected")

        def count() -> None:
            rounds.append(1)
            if len(rounds) == 4:
                ending.set()

        repeat({"failing": fail, "counting": count}, 0, ending)
        assert len(rounds) == 4
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert all(each.startswith("failing failed, retrying: KeyError") for each in lines)

    def test_a_log_that_cannot_be_written_does_not_end_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ending, rounds = threading.Event(), []

        def fail() -> None:
            rounds.append(1)
            if len(rounds) == 2:
                ending.set()
            raise KeyError

        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(sys, "stdout", Full())
        repeat({"failing": fail}, 0, ending)
        assert len(rounds) == 2


class TestCanaryWatch:
    @pytest.fixture
    def world(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
        """Return a service whose canary is about to break its bounds."""
        world = World(tmp_path, monkeypatch)
        wanted = replace(world.desired, canary=Canary("3.0", 50, max_errors=2))
        deployment.save(wanted, world.settings.deployment)
        world.routing.publish(Routing.of(wanted))
        return world

    @pytest.fixture
    def watch(self, world: World) -> CanaryWatch:
        watch = CanaryWatch(world.settings)
        watch.check()
        assert world.routing.read() == Routing.of(world.desired)
        for _ in range(30):
            note(world.settings.run_dir, "3.0", failed=True, seconds=0.01)
        return watch

    @pytest.fixture
    def read_only(self, watch: CanaryWatch, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(deployment, "save", refuse)

    def test_a_canary_that_breaks_its_bounds_is_rolled_back(
        self, world: World, watch: CanaryWatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        watch.check()
        assert world.desired.canary is None
        assert world.routing.read() == Routing.of(world.desired)
        assert capsys.readouterr().out.startswith("canary 3.0 rolled back: 30 of its last 30")

    @pytest.mark.usefixtures("read_only")
    def test_where_the_file_is_read_only_a_canary_gets_no_more_traffic(
        self, world: World, watch: CanaryWatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for _ in range(3):
            watch.check()
        routed = world.routing.read()
        assert routed
        assert (routed.canary, routed.share("1.0")) == (None, 100)
        assert world.desired.canary
        # Printed once, with advice.
        printed = capsys.readouterr().out
        assert printed.count("canary 3.0 gets no more traffic: 30 of its last 30") == 1
        assert "Read-only file system" in printed
        assert "in the ConfigMap" in printed
        # Shown by `status` and `doctor`.
        differences = Rollout(world.settings).differences(world.desired)
        assert differences == ["the canary 3.0 was stopped and gets no traffic"]

    def test_a_restart_keeps_that_until_the_file_changes(
        self, world: World, watch: CanaryWatch, monkeypatch: pytest.MonkeyPatch, read_only: None
    ) -> None:
        watch.check()
        world.routing.withdraw()
        assert routing_of(world.settings, world.desired).canary is None
        monkeypatch.undo()
        deployment.save(replace(world.desired, canary=Canary("3.0", 10)), world.settings.deployment)
        assert routing_of(world.settings, world.desired) == Routing.of(world.desired)

    def test_a_user_without_a_name_can_change_the_deployment(
        self, world: World, watch: CanaryWatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in a container whose user id has no entry in the password database."""

        def nameless() -> str:
            raise KeyError("getpwuid(): uid not found: 10001")

        monkeypatch.setattr(getpass, "getuser", nameless)
        watch.check()
        assert History(world.settings.deployment).entries()[-1]["who"] == str(os.getuid())

    def test_while_torchserve_does_not_answer_it_is_tried_again(
        self, world: World, watch: CanaryWatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable() -> None:
            raise ServiceError(503, "ServiceUnavailable", "nothing listens")

        with monkeypatch.context() as patched:
            patched.setattr(world.management, "versions", unreachable)
            with pytest.raises(Refused, match="nothing listens"):
                watch.check()
        # Not at once, because each try is written to the history.
        watch.check()
        assert world.desired.canary
        later = time.monotonic() + RETRY_INTERVAL
        monkeypatch.setattr(time, "monotonic", lambda: later)
        watch.check()
        assert world.desired.canary is None

"""Whether a version is at rest, so that its workers can be stopped without losing a request."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from stand_in import ROUTING, Management, StandIn

from serving.client import InferenceClient, ManagementClient, Unreachable
from serving.deployment import in_flight
from serving.rollout import rest
from serving.rollout.rest import NotAtRest, wait_until_at_rest, worker_state
from serving.settings import Settings

with warnings.catch_warnings(action="ignore", category=ResourceWarning):
    # ts leaves a file open when it is imported.
    from serving.torchserve import worker


@pytest.fixture
def idle() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that sleeps, as a worker without a request does."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        # Once it answers, it has started and waits for requests.
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.read(1)
        while psutil.Process(process.pid).status() != psutil.STATUS_SLEEPING:
            pass
        yield process
        process.send_signal(signal.SIGCONT)
        process.kill()


class TestWorkerState:
    def test_one_that_sleeps_is_idle(self, idle: subprocess.Popen[bytes]) -> None:
        assert worker_state(idle.pid) is None

    def test_a_stopped_one_may_have_a_request(self, idle: subprocess.Popen[bytes]) -> None:
        idle.send_signal(signal.SIGSTOP)
        os.waitpid(idle.pid, os.WUNTRACED)
        assert worker_state(idle.pid) == "stopped"

    def test_one_that_waits_for_the_processor_may_have_a_request(self) -> None:
        assert worker_state(os.getpid()) == "running"

    def test_one_that_shows_that_it_is_busy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own = Path("/proc/self/comm").read_bytes()
        # The status alone would be that of an idle worker.
        monkeypatch.setattr(psutil.Process, "status", lambda self: psutil.STATUS_SLEEPING)
        with worker._process_name() as show:
            for name, expected in ((worker.BUSY, "busy"), (worker.IDLE, None)):
                show(name)
                assert worker_state(os.getpid()) == expected
            show(own)

    def test_one_that_has_ended_or_not_started(self, idle: subprocess.Popen[bytes]) -> None:
        idle.kill()
        assert idle.wait() == -signal.SIGKILL
        assert worker_state(idle.pid) is worker_state(-1) is None


def test_a_worker_shows_that_it_is_busy_from_the_first_byte_to_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Any] = []

    class Model:
        def answer(self, batch: object) -> bytes:
            events.append("answer")
            return b"reply"

    def receive(_: int) -> bytes:
        events.append("receive")
        # A command alone, then an empty batch.
        return [worker.INFER, worker._INT.pack(worker.END), b""][events.count("receive") - 1]

    def load(*_: object) -> Any:
        return Model()

    message = worker.Message(receive)
    message._data = worker.LOAD
    monkeypatch.setattr(worker, "_load", load)
    with pytest.raises(worker.Hangup):
        worker.serve(message, events.append, None, events.append)
    assert events == [
        "receive",
        worker.BUSY,
        "receive",
        "answer",
        b"reply",
        worker.IDLE,
        "receive",
    ]


class TestInFlight:
    def test_a_client_is_seen_until_it_has_its_answer(self, tmp_path: Path) -> None:
        assert in_flight.describe(tmp_path, "3.0") is None
        with in_flight.recorded(tmp_path, "3.0"), in_flight.recorded(tmp_path, "3.0"):
            assert in_flight.describe(tmp_path, "3.0") == "a client waits for its answer"
            assert in_flight.describe(tmp_path, "2.0.1") is None
        assert in_flight.describe(tmp_path, "3.0") is None

    def test_a_disk_without_locks_costs_no_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
        with in_flight.recorded(tmp_path, "3.0"):
            pass

    def test_a_client_that_is_killed_is_forgotten(self, tmp_path: Path) -> None:
        ours, theirs = multiprocessing.Pipe()
        client = multiprocessing.get_context("spawn").Process(
            target=ask_forever, args=(tmp_path, theirs)
        )
        client.start()
        assert ours.recv() == "sent"
        assert in_flight.describe(tmp_path, "3.0")
        client.kill()
        client.join()
        assert in_flight.describe(tmp_path, "3.0") is None

    def test_the_edge_is_seen_while_its_process_lives(self, tmp_path: Path) -> None:
        folder = tmp_path / "edge" / "in-flight"
        folder.mkdir(parents=True)
        with subprocess.Popen(["true"]) as ended:
            pass
        (folder / f"3.0~{ended.pid}~a1").touch()
        (folder / f"2.0.1~{os.getpid()}~a2").touch()
        assert in_flight.describe(tmp_path, "3.0") is None
        (folder / f"3.0~{os.getpid()}~a3").touch()
        assert in_flight.describe(tmp_path, "3.0") == "the edge waits for its answer"

    def test_a_full_disk_costs_no_answer(self, tmp_path: Path) -> None:
        (tmp_path / "in-flight").touch()
        with in_flight.recorded(tmp_path, "3.0"):
            pass


class TestClient:
    @pytest.fixture
    def client(self, stand_in: StandIn) -> Iterator[InferenceClient]:
        made = InferenceClient(stand_in.settings, patience=0)
        yield made
        made.close()

    def test_records_its_request(self, stand_in: StandIn, client: InferenceClient) -> None:
        run_dir, seen = stand_in.settings.run_dir, []

        def answer(*_: object) -> tuple[int, bytes]:
            seen.append(in_flight.describe(run_dir, "1.0"))
            return 200, b"{}"

        stand_in.answer = answer
        client.predict(b"image")
        assert seen == ["a client waits for its answer"]
        assert in_flight.describe(run_dir, "1.0") is None

    def test_sends_nothing_if_a_pause_began_before_that(
        self, stand_in: StandIn, client: InferenceClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recorded = in_flight.recorded

        def late(run_dir: Path, version: str) -> contextlib.AbstractContextManager[None]:
            stand_in.routing.publish(replace(ROUTING, paused={version: time.time() + 10}))
            return recorded(run_dir, version)

        monkeypatch.setattr(in_flight, "recorded", late)
        with pytest.raises(Unreachable):
            client.predict(b"image")
        assert stand_in.requests == []


def ask_forever(run_dir: Path, pipe: Connection) -> None:
    with in_flight.recorded(run_dir, "3.0"):
        pipe.send("sent")
        pipe.recv()


class TestWait:
    @pytest.fixture
    def management(self) -> Management:
        return Management("1.0", {"1.0": 1, "3.0": 2})

    def wait(self, run_dir: Path, management: Management, patience: float) -> None:
        client = cast("ManagementClient", management)
        wait_until_at_rest(Settings(run_dir=run_dir), client, "3.0", patience)

    def test_returns_at_once_when_nothing_is_in_flight(
        self, tmp_path: Path, management: Management
    ) -> None:
        self.wait(tmp_path, management, 0)

    def test_gives_up_with_the_reason(
        self, tmp_path: Path, management: Management, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rest, "worker_state", lambda pid: "stopped")
        with pytest.raises(NotAtRest, match="worker -1 is stopped"):
            self.wait(tmp_path, management, 0)
        management.queued["3.0"] = 3
        with pytest.raises(NotAtRest, match="3 requests are queued"):
            self.wait(tmp_path, management, 0)
        with in_flight.recorded(tmp_path, "3.0"), pytest.raises(NotAtRest, match="a client waits"):
            self.wait(tmp_path, management, 0)

    def test_waits_for_what_a_batch_delay_hid(
        self, tmp_path: Path, management: Management, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Idle at the first check, then busy until the fifth."""
        states = iter([None, None, "busy", "busy", None, None, None, None])
        monkeypatch.setattr(rest.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(rest, "worker_state", lambda pid: next(states))
        self.wait(tmp_path, management, 60)
        assert list(states) == []

"""The faults' and the soak's figures, and the clients that behave badly."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import chaos, chaos_report, soak
from benchmarks.chaos_report import Fault, summary
from benchmarks.drill_report import Request, Step
from testing import connections
from testing.clients import Clients
from testing.clock import COMPILER, Clock
from testing.connections import Call

FAILED = "503 InternalServerException"
ABOUT = {
    "date": "2026-01-02",
    "machine": {"processor": "one", "cores": 2, "torch": "2"},
    "direct_clients": 6,
}


def look(*workers: int) -> dict[str, Any]:
    return {"workers": list(workers), "megabytes": {"worker": 100, "java": 200, "python": 50}}


def fault(after: tuple[int, ...] = (1, 2), **options: Any) -> Fault:
    step = Step("a fault", started=10, ended=12)
    return Fault(step, before=look(1, 2), after=look(*after), **options)


def asked(*errors: str) -> list[Request]:
    return [Request(11, 100, "one", "" if error else "1.0", error) for error in errors]


class TestSummary:
    @pytest.mark.parametrize(
        ("made", "users", "direct", "said"),
        [
            (fault(), [""], ["", *chaos_report.NOT_TAKEN], []),
            (fault(), ["503 gone"], [""], ["a fault: 1 requests of the users failed"]),
            # As each is told if the handler fails at whatever it is asked.
            (fault(), [""], [FAILED] * 6, ["a fault: 6 direct requests were lost, not 0"]),
            (fault(), [""], ["503"], ["a fault: 1 direct requests were lost, not 0"]),
            (fault(), [""], ["400 BadRequest"], ["a fault: 1 direct requests were lost, not 0"]),
            (fault(), [""], ["500"], ["a fault: 1 direct requests were lost, not 0"]),
            (fault(), [""], ["nothing"], ["a fault: 1 direct requests were lost, not 0"]),
            (fault(may_lose=2), [""], ["500", "closed"], []),
            (fault(after=(1, 3)), [""], [""], ["a fault: 1 workers died"]),
            (fault(after=(1, 3), kills=True), [""], [""], []),
        ],
    )
    def test_what_may_not_be_is_a_problem(
        self, made: Fault, users: list[str], direct: list[str], said: list[str]
    ) -> None:
        found = summary(ABOUT, [made], asked(*users), asked(*direct))
        assert found["problems"] == said

    def test_requests_of_another_time_are_not_the_faults(self) -> None:
        found = summary(ABOUT, [fault()], asked(""), [Request(30, 5, "one", "", "500")])
        assert found["faults"][0]["direct"] == {}
        assert found["problems"] == []

    def test_all_of_it_is_written(self, tmp_path: Path) -> None:
        made = fault(saw=Counter({"413": 3, "200": 1}))
        made.step.seen |= {"seconds until ready": 1.26, "the slowest": "a | b"}
        made.step.expect(False, "it was not as it must be")
        document = summary(ABOUT, [made], asked("", ""), asked("", "refused"))
        chaos_report.write(tmp_path, document)
        assert json.loads((tmp_path / "chaos.json").read_text())["faults"][0]["sent"] == 4
        page = (tmp_path / "chaos.md").read_text()
        assert (
            "| a fault | 4: 1 x 200, 3 x 413 | 2, 0 | 1 x 200, 1 x refused | 0 | 1.3 | 0 "
            "| 100 + 200 + 50 | 100 + 200 + 50 |" in page
        )
        assert "it was not as it must be" in page


def test_the_decoder_alone_counts_what_comes_of_each() -> None:
    saw, slowest = chaos.decode_damaged(60, 1)
    assert saw.total() == 60
    assert set(saw) <= {"200", "400", "413", "415"}
    assert slowest > 0


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_a_clock_is_set_for_who_was_started_with_it(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    tell = (
        "import time\nwhile input() is not None: print(time.time(), time.monotonic(), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", tell],
        env=os.environ | clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        for ahead in (0, 7200, -7200):
            clock.set(ahead)
            process.stdin.write("\n")
            process.stdin.flush()
            of_day, steady = map(float, process.stdout.readline().split())
            assert of_day == pytest.approx(time.time() + ahead, abs=60)
            assert steady == pytest.approx(time.monotonic(), abs=60)
        process.kill()


class TestSoak:
    def test_the_slope_is_that_of_a_line(self) -> None:
        def grown(megabytes: Callable[[int], float]) -> dict[str, float] | None:
            times = [at / 6 for at in range(60)]
            samples = [{"minutes": at, "megabytes": {"java": megabytes(int(at))}} for at in times]
            return soak.slope(samples, "java", 0)

        assert grown(lambda minute: 100 + 3 * minute) == {"mb_per_hour": 180, "standard_error": 0}
        wild = grown(lambda minute: 100 + 7 * (minute % 2))
        assert wild
        assert wild["standard_error"] > 10

    def test_warm_up_does_not_count_and_failures_do(self, tmp_path: Path) -> None:
        samples = [
            {
                "minutes": minute,
                "megabytes": {kind: min(100 + 50 * minute, 250) for kind in soak.TITLES},
                "workers": [1, 2] if minute < 8 else [1, 3],
            }
            for minute in range(10)
        ]
        found = soak.summary(samples, Counter({"200, one": 9, "500, damaged": 1}))
        assert found["slopes"]["worker"] == {"mb_per_hour": 0, "standard_error": 0}
        assert found["problems"] == ["1 times 500, damaged", "A worker ended."]
        assert "| Workers | 100 | 250 | +0 ± 0 | +0 ± 0 |" in soak.page(found)
        soak.plot(tmp_path / "soak.png", found)
        assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")

    def test_a_leak_is_a_problem(self) -> None:
        samples = [
            {
                "minutes": minute,
                "megabytes": {"worker": 500 + minute, "java": 400 + 0.5 * minute, "python": 200},
                "workers": [1],
            }
            for minute in range(30)
        ]
        found = soak.summary(samples, Counter({"200, one": 9}))
        assert found["problems"] == ["Workers: 60 MB an hour more still in the last third."]

    def test_a_soak_that_asked_for_nothing_is_a_problem(self) -> None:
        sample = {
            "minutes": 1,
            "megabytes": dict.fromkeys(soak.TITLES, 1),
            "workers": [1],
        }
        found = soak.summary([sample], Counter())
        assert found["problems"][0] == "Nothing was asked."
        assert found["problems"][1] == "Workers: it was too short to tell a slope."
        assert "| Workers | 1 | 1 |  |  |" in soak.page(found)


def test_a_client_that_fails_is_told() -> None:
    class Failing(Clients):
        def ask_on(self, number: int) -> None:
            if number:
                raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"), Failing(2):
        pass


class TestConnections:
    @pytest.fixture
    def listener(self) -> Iterator[socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(20)
            yield server

    def serve(self, listener: socket.socket, answer: bytes, got: list[bytes]) -> threading.Thread:
        """Read one connection to its end, or to a body of 10 bytes, and answer."""

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                data = b""
                while not data.endswith(b"\r\n\r\n0123456789"):
                    try:
                        part = connection.recv(1000)
                    except ConnectionResetError:
                        part = b""
                        got.append(b"reset")
                    if not part:
                        break
                    data += part
                got.append(data)
                if answer:
                    connection.sendall(answer)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def call(self, listener: socket.socket) -> Call:
        return Call(f"http://127.0.0.1:{listener.getsockname()[1]}/a/b", b"0123456789", {"X": "y"})

    @pytest.mark.parametrize(
        ("answer", "said"), [(b"HTTP/1.1 418 Teapot\r\n\r\n", "418"), (b"", "closed")]
    )
    def test_a_status_is_told(self, listener: socket.socket, answer: bytes, said: str) -> None:
        got: list[bytes] = []
        thread = self.serve(listener, answer, got)
        assert connections.at_once(self.call(listener), 1) == {said: 1}
        thread.join()
        assert got[0].startswith(b"POST /a/b HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"Content-Length: 10\r\nX: y\r\n\r\n0123456789" in got[0]

    def test_nobody_there_is_told(self, listener: socket.socket) -> None:
        call = self.call(listener)
        listener.close()
        assert connections.at_once(call, 2) == {"refused": 2}

    @pytest.mark.parametrize(
        ("status", "body", "said"),
        [
            ("200 OK", b'{"type": "cell"}', "200"),
            (
                "503 Service Unavailable",
                b'{"code": 503, "type": "ServiceUnavailableException"}',
                "503 ServiceUnavailableException",
            ),
            ("503 Service Unavailable", b'{"type": "InternalServerException"}', FAILED),
            ("400 Bad Request", b'{"type": "InvalidKeyException"}', "400 InvalidKeyException"),
            ("413 Too Large", b"", "413"),
            ("503 Service Unavailable", b"<html>", "503"),
            ("503 Service Unavailable", b'["type"]', "503"),
        ],
    )
    def test_a_direct_client_notes_why_it_was_refused(
        self, listener: socket.socket, status: str, body: bytes, said: str
    ) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        got: list[bytes] = []
        thread = self.serve(listener, head + body, got)
        assert chaos.ask(self.call(listener)) == said
        thread.join()
        assert got[0].startswith(b"POST /a/b HTTP/1.1\r\n")
        assert got[0].endswith(b"\r\nX: y\r\n\r\n0123456789")

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
    def test_a_direct_client_notes_an_answer_that_breaks_off(
        self, listener: socket.socket, answer: bytes
    ) -> None:
        thread = self.serve(listener, answer, [])
        assert chaos.ask(self.call(listener)) == "closed"
        thread.join()

    def test_a_direct_client_notes_that_nobody_is_there(self, listener: socket.socket) -> None:
        call = self.call(listener)
        listener.close()
        assert chaos.ask(call) == "refused"

    def test_half_a_body_is_sent(self, listener: socket.socket) -> None:
        got: list[bytes] = []
        thread = self.serve(listener, b"", got)
        assert connections.half_sent(self.call(listener), 1) == {"left": 1}
        thread.join()
        assert got[0] == b"reset" or got[0].endswith(b"01234")

    def test_a_slow_client_sends_little_by_little(
        self, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "PACE", 0.05)
        monkeypatch.setattr(connections, "TRICKLE", 2)
        got: list[bytes] = []
        thread = self.serve(listener, b"", got)
        assert connections.slow(self.call(listener), 1, 0.16) == {"let go": 1}
        thread.join()
        assert got[-1].endswith(b"\r\n\r\n012345")

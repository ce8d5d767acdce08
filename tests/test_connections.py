"""The clients that behave badly, the clock, and the other tools that tests and benchmarks share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from testing import clock, connections, processes
from testing.clients import Clients
from testing.connections import Call

FAILED = "503 InternalServerException"
REFUSED = "503 ServiceUnavailableException"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def call(listener: socket.socket) -> Call:
    return Call(f"http://127.0.0.1:{listener.getsockname()[1]}/a/b", b"0123456789", {"X": "y"})


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def serve(pool: ThreadPoolExecutor, listener: socket.socket, answer: bytes) -> Future[bytes]:
    """Read one connection to its end, or to a body of 10 bytes, and answer."""

    def run() -> bytes:
        connection, _ = listener.accept()
        data = b""
        with connection:
            while not data.endswith(b"\r\n\r\n0123456789"):
                try:
                    part = connection.recv(1000)
                except ConnectionResetError:
                    return data + b"reset"
                if not part:
                    break
                data += part
            if answer:
                connection.sendall(answer)
        return data

    return pool.submit(run)


@pytest.mark.parametrize(
    ("answer", "said"), [(b"HTTP/1.1 418 Teapot\r\n\r\n", "418"), (b"", "closed")]
)
def test_a_client_reports_the_status(
    listener: socket.socket, pool: ThreadPoolExecutor, answer: bytes, said: str
) -> None:
    got = serve(pool, listener, answer)
    assert connections.once(call(listener)) == said
    assert got.result().startswith(b"POST /a/b HTTP/1.1\r\nHost: 127.0.0.1:")
    assert got.result().endswith(b"Content-Length: 10\r\nX: y\r\n\r\n0123456789")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        ("200 OK", b'{"type": "cell"}', "200"),
        ("503 Service Unavailable", b'{"type": "ServiceUnavailableException"}', REFUSED),
        ("503 Service Unavailable", b'{"type": "InternalServerException"}', FAILED),
        ("413 Too Large", b"", "413"),
        ("503 Service Unavailable", b"<html>", "503"),
        ("503 Service Unavailable", b'["type"]', "503"),
    ],
)
def test_a_client_reports_the_type_of_an_error(
    listener: socket.socket, pool: ThreadPoolExecutor, status: str, body: bytes, said: str
) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    serve(pool, listener, head + body)
    assert connections.ask(call(listener)) == said


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
def test_a_client_reports_an_answer_that_breaks_off(
    listener: socket.socket, pool: ThreadPoolExecutor, answer: bytes
) -> None:
    serve(pool, listener, answer)
    assert connections.ask(call(listener)) == "closed"


def test_a_client_reports_a_refused_connection(listener: socket.socket) -> None:
    there = call(listener)
    listener.close()
    assert connections.at_once(there, 2) == {"refused": 2}
    assert connections.ask(there) == "refused"


def test_half_a_body_is_sent(listener: socket.socket, pool: ThreadPoolExecutor) -> None:
    got = serve(pool, listener, b"")
    assert connections.half_sent(call(listener), 1) == {"left": 1}
    # A reset may discard what was sent before it.
    assert got.result().endswith((b"01234", b"01234reset", b"reset"))
    assert b"012345" not in got.result()


def test_a_slow_client_trickles(
    listener: socket.socket, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PACE", 0.05)
    monkeypatch.setattr(connections, "TRICKLE", 2)
    got = serve(pool, listener, b"")
    assert connections.slow(call(listener), 1, 0.16) == {"let go": 1}
    assert got.result().endswith(b"\r\n\r\n012345")


def test_a_failing_client_ends_the_block() -> None:
    class Failing(Clients):
        def ask_on(self, number: int) -> None:
            if number:
                raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"), Failing(2):
        pass


@pytest.mark.skipif(clock.library() is None, reason=clock.MISSING)
def test_a_clock_is_set_for_the_processes_that_have_it(tmp_path: Path) -> None:
    own = clock.Clock(tmp_path)
    code = "import time\nwhile input() == '': time.sleep(0); print(time.time(), time.monotonic())"
    with subprocess.Popen(
        [sys.executable, "-uc", code],
        env=os.environ | own.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        for ahead in (0, 7200, -7200):
            own.set(ahead)
            process.stdin.write("\n")
            process.stdin.flush()
            of_day, steady = map(float, process.stdout.readline().split())
            assert of_day == pytest.approx(time.time() + ahead, abs=600)
            assert steady == pytest.approx(time.monotonic(), abs=600)
        process.stdin.write("end\n")


def test_processor_time_and_memory_are_counted_by_kind() -> None:
    own = psutil.Process()
    assert processes.cpu_seconds(own)["python"] > 0
    assert processes.megabytes(own)["python"] > processes.anonymous_megabytes(own)["python"] > 1
    name = "/a/model_service_worker.py"
    with subprocess.Popen([sys.executable, "-c", "input()", name], stdin=subprocess.PIPE) as child:
        assert processes.workers(own) == [child.pid]
        child.communicate(b"\n")
    assert processes.workers(own) == []

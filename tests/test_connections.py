"""The misbehaving clients, the clock and the processes of tests and benchmarks."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from testing import clock, connections
from testing.connections import Call

Serve = Callable[[bytes], "Future[bytes]"]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


@pytest.fixture
def call(listener: socket.socket) -> Call:
    return Call(f"http://127.0.0.1:{listener.getsockname()[1]}/a/b", b"0123456789", {"X": "y"})


@pytest.fixture
def serve(listener: socket.socket) -> Iterator[Serve]:
    """Return what reads one connection to its end, or to a body of 10 bytes, and answers."""

    def run(answer: bytes) -> bytes:
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

    with ThreadPoolExecutor(1) as pool:
        yield partial(pool.submit, run)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        ("200 OK", b'{"type": "cell"}', "200"),
        ("503 No", b'{"type": "InternalServerException"}', "503 InternalServerException"),
        ("413 Too Large", b"", "413"),
        ("503 No", b"<html>", "503"),
        ("503 No", b'["type"]', "503"),
    ],
)
def test_a_client_reports_status_and_type(
    call: Call, serve: Serve, status: str, body: bytes, said: str
) -> None:
    answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    serve(answer)
    assert connections.ask(call) == said
    got = serve(answer)
    assert connections.once(call) == said[:3]
    assert got.result().startswith(b"POST /a/b HTTP/1.1\r\nHost: 127.0.0.1:")
    assert got.result().endswith(b"Content-Length: 10\r\nX: y\r\n\r\n0123456789")


def test_a_client_reports_a_broken_connection(
    listener: socket.socket, call: Call, serve: Serve
) -> None:
    for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"):
        serve(answer)
        assert connections.ask(call) == "closed"
    serve(b"")
    assert connections.once(call) == "closed"
    listener.close()
    assert connections.at_once(call, 2) == {"refused": 2}
    assert connections.ask(call) == "refused"


def test_a_slow_client_trickles(call: Call, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PACE", 0.05)
    monkeypatch.setattr(connections, "TRICKLE", 2)
    got = serve(b"")
    assert connections.slow(call, 1, 0.16) == {"let go": 1}
    assert got.result().endswith(b"\r\n\r\n012345")


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
            of_day, deadline = math.inf, time.monotonic() + 60
            # It sees the new time after a moment.
            while abs(of_day - time.time() - ahead) > 600:
                assert time.monotonic() < deadline
                process.stdin.write("\n")
                process.stdin.flush()
                of_day, steady = map(float, process.stdout.readline().split())
            assert steady == pytest.approx(time.monotonic(), abs=600)
        process.stdin.write("end\n")


def test_a_held_connection_is_silent_or_gets_an_answer(call: Call, serve: Serve) -> None:
    served = serve(b"HTTP/1.1 401 Unauthorized\r\n\r\n")
    assert connections.held(call, call.head + call.body, 1, 0) == {"401": 1}
    assert served.result() == call.head + call.body
    assert connections.held(call, b"", 2, 0) == {"open": 2}

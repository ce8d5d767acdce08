"""The node test's means: cgroups, what is counted, and the real balancer in front of stand-ins."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from benchmarks import nodes, nodes_report
from benchmarks.nodes import Cgroup, balancer_config, self_signed
from benchmarks.nodes_report import Event, Request
from benchmarks.service import free_ports

EVENT = Event("killed", "10.0.0.1", began=10, mended=20, back=25)


def request(time: float, milliseconds: float = 100, *asked: str, error: str = "") -> Request:
    return Request(time, milliseconds, asked or ("10.0.0.2",), error)


class TestSummary:
    def test_a_request_counts_if_it_was_under_way(self) -> None:
        asked = [request(9.0, 500), request(9.5, 1000), request(24.9), request(25.0)]
        (row,) = nodes_report.summary([EVENT], asked)
        assert (row["requests"], row["slowest"], row["seconds"]) == (2, 1000, 10)

    def test_failures_and_second_nodes_are_told(self) -> None:
        asked = [request(11, 50, "10.0.0.1", "10.0.0.2"), request(12, error="503"), request(13, 70)]
        (row,) = nodes_report.summary([EVENT], asked)
        assert (row["failed"], row["asked of a second node"], row["slowest"]) == (1, 1, 70)

    def test_a_node_is_back_when_it_answers_itself(self) -> None:
        asked = [
            request(15, 100, "10.0.0.1"),
            # It was asked, and another one answered.
            request(21, 100, "10.0.0.1", "10.0.0.2"),
            request(23, 500, "10.0.0.1"),
        ]
        (row,) = nodes_report.summary([EVENT], asked)
        assert row["back after"] == 3.5
        (row,) = nodes_report.summary([EVENT], asked[:2])
        assert row["back after"] is None


def test_all_of_it_is_written(tmp_path: Path) -> None:
    asked = [request(11, 50, "10.0.0.1"), request(23, 9, "10.0.0.1"), request(12, error="503 gone")]
    load = {"images_a_second": 1234.5, "p50": 1.0, "p99": 2.0, "failed": 0}
    found = {
        "date": "2026-01-02",
        "machine": {"cores": 2, "processor": "one"},
        "clients": 8,
        "events": nodes_report.summary([EVENT], asked),
        "throughput": [{"nodes": 1, "cores a node": share, **load} for share in (0.3, None)],
    }
    nodes_report.write(tmp_path, found, [EVENT], asked)
    page = (tmp_path / "nodes.md").read_text()
    for text in (
        "**1 of 3 requests failed.**",
        "| killed | 10 s | 3 | 1 |",
        "| 1 | no bound | 1,234",
    ):
        assert text in page
    assert json.loads((tmp_path / "nodes.json").read_text())["errors"] == ["503 gone"]
    assert (tmp_path / "nodes.png").read_bytes().startswith(b"\x89PNG")


class TestCgroup:
    @pytest.mark.parametrize(
        ("unified", "file", "bound", "free"),
        [
            (True, "bloodcells-a/cpu.max", "30000 100000", "max 100000"),
            (False, "cpu/bloodcells-a/cpu.cfs_quota_us", "30000", "-1"),
        ],
    )
    def test_a_share_of_a_core(
        self, tmp_path: Path, unified: bool, file: str, bound: str, free: str
    ) -> None:
        (tmp_path / "cpu").mkdir()
        if unified:
            (tmp_path / "cgroup.controllers").write_text("cpu")
        group = Cgroup("a", tmp_path)
        group.limit(0.3)
        assert (tmp_path / file).read_text() == bound
        group.limit(None)
        assert (tmp_path / file).read_text() == free

    def test_a_signal_reaches_every_process(self, tmp_path: Path) -> None:
        (tmp_path / "cpu").mkdir()
        group = Cgroup("a", tmp_path)
        sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
        (group.path / "cgroup.procs").write_text("".join(f"{each.pid}\n" for each in sleepers))
        group.signal(signal.SIGKILL)
        assert [each.wait() for each in sleepers] == [-signal.SIGKILL] * 2


def test_a_machine_without_the_means_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    assert "ip, nginx, openssl, wrk" in str(nodes.lacking())
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in str(nodes.lacking())


@contextlib.contextmanager
def node(address: str, certificate: tuple[Path, Path], answer: Any) -> Iterator[None]:
    """Run what stands in for a node: it answers by a function of its request handler."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer(self, body)

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    host, _, port = address.partition(":")
    server = ThreadingHTTPServer((host, int(port)), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def well(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """Answer with what was sent, and by which key."""
    answer = body + (handler.headers["X-API-Key"] or "").encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(answer)))
    handler.end_headers()
    handler.wfile.write(answer)


def not_ready(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(503)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def broken_off(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def hung(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    time.sleep(30)


def refused(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(429)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return self_signed(tmp_path)


@pytest.fixture
def addresses() -> list[str]:
    return [f"127.0.0.1:{port}" for port in free_ports(3)]


@pytest.fixture
def balancer(
    tmp_path: Path, addresses: list[str], certificate: tuple[Path, Path]
) -> Iterator[requests.Session]:
    """Run the balancer in front of two addresses; return what asks it."""
    program = shutil.which("nginx")
    if not program:
        if os.environ.get("CI"):
            pytest.fail("nginx is missing")
        pytest.skip("nginx is missing")
    config = tmp_path / "balancer.conf"
    config.write_text(balancer_config(tmp_path, addresses[0], addresses[1:], certificate))
    process = subprocess.Popen(
        [program, "-e", "stderr", "-p", f"{tmp_path}/", "-c", config], stderr=sys.stderr
    )
    host, _, port = addresses[0].partition(":")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), timeout=1).close()
            break
        time.sleep(0.02)
    with requests.Session() as session:
        session.verify = False
        session.trust_env = False
        yield session
    process.terminate()
    process.wait(timeout=30)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("fault", [not_ready, broken_off, hung, None])
def test_another_node_answers_for_one_that_fails(
    balancer: requests.Session,
    addresses: list[str],
    certificate: tuple[Path, Path],
    fault: Any,
) -> None:
    front, one, other = addresses
    with contextlib.ExitStack() as stack:
        if fault:
            stack.enter_context(node(one, certificate, fault))
        stack.enter_context(node(other, certificate, well))
        asked = []
        for _ in range(3):
            answer = balancer.post(
                f"https://{front}/predictions/bloodcells",
                data=b"image ",
                headers={"X-API-Key": "key"},
                timeout=30,
            )
            assert (answer.status_code, answer.content) == (200, b"image key")
            asked.append(answer.headers["X-Node"])
        # Which is first is for the balancer to say.
        assert f"{one}, {other}" in asked


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_what_a_node_refuses_is_refused(
    balancer: requests.Session, addresses: list[str], certificate: tuple[Path, Path]
) -> None:
    front, one, other = addresses
    with node(one, certificate, refused), node(other, certificate, refused):
        answer = balancer.post(f"https://{front}/predictions/bloodcells", data=b"x", timeout=30)
        assert (answer.status_code, answer.headers["X-Node"].count(":")) == (429, 1)


@pytest.mark.skipif(bool(nodes.lacking()), reason=str(nodes.lacking()))
def test_a_node_is_cut_off_and_found_again(tmp_path: Path) -> None:
    """With a stand-in for the service: the network alone is looked at."""
    with nodes.network():
        made = nodes.Node(1, tmp_path, (tmp_path / "a", tmp_path / "b"), tmp_path / "keys")
        try:
            made.run(sys.executable, "-m", "http.server", str(nodes.PORT), "--bind", made.address)

            def reached() -> bool:
                return nodes.listens(made.address)

            nodes.wait(reached, "the node")
            made.cut_off(True)
            assert not reached()
            made.cut_off(False)
            nodes.wait(reached, "the node")
            made.kill()
            assert made.cgroup.processes() == []
        finally:
            made.remove()
    assert nodes.BRIDGE not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout

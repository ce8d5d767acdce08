"""The node test's means: cgroups, what is counted, and the real edge in front of stand-ins."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import free_settings
from edges import Asker, need_nginx, problem_of

from benchmarks import nodes, nodes_report
from benchmarks.nodes import Cgroup
from benchmarks.nodes_report import Event, Request
from serving.edge.certificates import NAME, create
from testing.service import free_ports, run_edge

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
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
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
    pair = tmp_path / "certificate.pem", tmp_path / "certificate.key"
    create(*pair, [NAME])
    return pair


@pytest.fixture
def before(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[Callable[..., Asker]]:
    """Return a function that runs an edge before some addresses."""
    need_nginx()
    with contextlib.ExitStack() as stack:

        def run(*addresses: str) -> Asker:
            settings = free_settings(tmp_path / "front")
            edge = run_edge(
                settings,
                EDGE_NODES=",".join(f"https://{address}" for address in addresses),
                EDGE_NODES_CA=str(certificate[0]),
                EDGE_NODES_TIMEOUT="1",
            )
            asker = Asker(edge, settings)
            stack.callback(asker.close)
            return asker

        yield run


def free_addresses(count: int) -> list[str]:
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def asked(front: Asker) -> list[str]:
    return [line["upstream"] for line in front.log()]


@pytest.mark.parametrize("fault", [not_ready, broken_off, hung, None])
def test_another_node_answers_for_one_that_fails(
    before: Callable[..., Asker], certificate: tuple[Path, Path], fault: Any
) -> None:
    one, other = free_addresses(2)
    front = before(one, other)
    with contextlib.ExitStack() as stack:
        if fault:
            stack.enter_context(node(one, certificate, fault))
        stack.enter_context(node(other, certificate, well))
        for _ in range(3):
            answer = front.ask(body=b"image ")
            assert (answer.status_code, answer.content) == (200, f"image {front.key}".encode())
        # Which is first is for the edge to say.
        assert f"{one}, {other}" in asked(front)


def test_what_a_node_refuses_is_refused(
    before: Callable[..., Asker], certificate: tuple[Path, Path]
) -> None:
    one, other = free_addresses(2)
    front, seen = before(one, other), []

    def refuses(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        seen.append(body)
        refused(handler, body)

    with node(one, certificate, refuses), node(other, certificate, refuses):
        assert front.ask().status_code == 429
        assert len(seen) == 1


def test_what_kills_nodes_is_sent_to_two_of_them(
    before: Callable[..., Asker], certificate: tuple[Path, Path]
) -> None:
    addresses, seen = free_addresses(3), []

    def dies(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        seen.append(body)
        broken_off(handler, body)

    front = before(*addresses)
    with contextlib.ExitStack() as stack:
        for address in addresses:
            stack.enter_context(node(address, certificate, dies))
        assert problem_of(front.ask()) == (503, "ServiceUnavailable")
    assert len(seen) == 2


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

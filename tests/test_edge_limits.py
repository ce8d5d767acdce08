"""The limits of the edge: sizes, rates, connections, and a full disk."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from edges import Asker, Configured, wait
from stand_in import StandIn, write_keys

from serving.torchserve.tokens import KEY_FILE
from testing.connections import readable

pytestmark = pytest.mark.live

# Of inotify(7): a file that was only read is closed.
IN_CLOSE_NOWRITE = 0x10


@pytest.fixture
def stand_in(edge: Asker) -> StandIn:
    """Return the stand-in behind the edge."""
    assert edge.stand_in
    return edge.stand_in


class TestSizes:
    def test_a_large_body_is_refused(self, edge: Asker, stand_in: StandIn) -> None:
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        by_length = edge.head(f"Content-Length: {12 * 2**20 + 1}")
        for request in (by_length, edge.head("Transfer-Encoding: chunked") + 13 * chunk):
            assert edge.raw(request).startswith(b"HTTP/1.1 413 ")
        assert json.loads(edge.raw(by_length).partition(b"\r\n\r\n")[2])["type"] == "ImageTooLarge"
        assert stand_in.requests == []

    @pytest.mark.long
    def test_a_slow_sender_is_cut_off(self, edge: Asker) -> None:
        with edge.connect() as slow, edge.connect() as half_sent:
            slow.sendall(edge.head()[:-2])
            half_sent.sendall(edge.head("Content-Length: 100") + b"half")
            for connection in (slow, half_sent):
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    assert not re.match(rb"HTTP/1.1 (?!408)", connection.recv(4096))


class Uploads:
    """Uploads in progress: nginx has decided to read their bodies, and waits for them."""

    LARGE = "Content-Length: 1000000"

    def __init__(self, edge: Asker, stack: contextlib.ExitStack) -> None:
        self._edge, self._stack = edge, stack
        self._held: list[ssl.SSLSocket] = []

    def begin(self, *lines: str, address: str = "127.0.0.1", **kwargs: str) -> bytes:
        """Begin one, and return the status: 100 if its body is awaited."""
        connection = self._stack.enter_context(self._edge.connect(address))
        head = self._edge.head("Expect: 100-continue", *lines or (self.LARGE,), **kwargs)
        connection.sendall(head)
        # No pause of a body may last 10 s.
        for each in self._held:
            each.sendall(b"x")
        status = connection.recv(4096)[9:12]
        if status == b"100":
            self._held.append(connection)
        return status


class TestSlowBodies:
    @pytest.fixture
    def uploads(self, edge: Asker) -> Iterator[Uploads]:
        with contextlib.ExitStack() as stack:
            yield Uploads(edge, stack)

    def test_a_program_has_a_share(self, edge: Asker, uploads: Uploads) -> None:
        assert [uploads.begin() for _ in range(11)] == 10 * [b"100"] + [b"429"]
        assert uploads.begin("Transfer-Encoding: chunked") == b"429"
        # A body of several images is large from 100 kB.
        several = "Content-Length: 100000", "Content-Type: application/json"
        assert uploads.begin(*several) == b"429"
        assert edge.ask(body=bytes(999_999)).status_code == 200
        some = {"Content-Type": "application/json"}
        assert edge.ask(body=bytes(99_999), headers=some).status_code == 200
        keys = [edge.keys.add(name) for name in ("second", "third")]
        assert [uploads.begin(key=keys[0]) for _ in range(11)] == 10 * [b"100"] + [b"429"]
        # All programs together may send 28.
        assert [uploads.begin(key=keys[1]) for _ in range(9)] == 8 * [b"100"] + [b"429"]
        # They do not keep visitors of the page out.
        assert uploads.begin(path="/") == b"100"

    def test_a_visitor_has_a_share(self, edge: Asker, uploads: Uploads) -> None:
        for last in (2, 3, 4):
            page = [uploads.begin(path="/", address=f"127.0.0.{last}") for _ in range(9)]
            assert page == 8 * [b"100"] + [b"429"]
        # All visitors together may send 24.
        for size in ("1000", "1000000"):
            sent = uploads.begin(f"Content-Length: {size}", path="/", address="127.0.0.5")
            assert sent == b"429"
        assert edge.get("/models").status_code == 200
        assert uploads.begin() == b"100"


class TestConnections:
    def test_an_address_has_a_share_of_requests_in_progress(
        self, edge: Asker, stand_in: StandIn
    ) -> None:
        release = threading.Event()
        stand_in.answer = lambda *_: (200, b"{}") if release.wait(60) else (503, b"")
        with contextlib.ExitStack() as stack:
            for number in range(64):
                held = stack.enter_context(edge.connect("127.0.0.2"))
                held.sendall(b"GET /models HTTP/1.1\r\nHost: a\r\n\r\n")
                wait(lambda number=number: len(stand_in.requests) > number)
            for path in (b"models", b"healthz", b"openapi.yaml", b"nothing"):
                request = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % path
                assert b" 429 " in edge.raw(request, "127.0.0.2")
            assert edge.get("/healthz").status_code == 200
            release.set()

    def test_a_program_has_a_share_of_the_queue(self, edge: Asker, stand_in: StandIn) -> None:
        """A request counts until TorchServe answers, also if its client has left."""
        release = threading.Event()
        stand_in.answer = lambda *_: (200, b"{}") if release.wait(60) else (503, b"")
        with contextlib.ExitStack() as left:
            for number in range(64):
                connection = left.enter_context(edge.connect())
                connection.sendall(edge.head("Content-Length: 1") + b"x")
                wait(lambda number=number: len(stand_in.requests) > number)
        # Their clients have left, but they wait for TorchServe.
        refused = all(edge.ask().status_code == 429 for _ in range(8))
        other = edge.keys.add("other")
        release.set()
        assert refused
        assert edge.ask(key=other).status_code == 200

    def test_an_upload_counts_until_the_page_answers(self, edge: Asker, stand_in: StandIn) -> None:
        release = threading.Event()
        stand_in.answer = lambda *_: (200, b"{}") if release.wait(60) else (503, b"")
        upload = edge.head("Content-Length: 1", path="/") + b"x"
        with contextlib.ExitStack() as left:
            for number in range(8):
                left.enter_context(edge.connect("127.0.0.7")).sendall(upload)
                wait(lambda number=number: len(stand_in.requests) > number)
        # Their client has left, but they wait for the page.
        refused = all(b" 429 " in edge.raw(upload, "127.0.0.7") for _ in range(8))
        release.set()
        assert refused

    def test_a_refused_request_is_not_kept_open(self, edge: Asker) -> None:
        for path, key in (("/nothing", ""), ("/healthz", ""), ("/predictions/bloodcells", "x")):
            answer = edge.exchange(edge.head("Content-Length: 9000000", path=path, key=key))
            assert re.match(rb"HTTP/1.1 40[145] ", answer)
            assert b"\r\nConnection: close\r\n" in answer


PROBE = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Real-IP: %b\r\n\r\n"
LAST = b"%b HTTP/1.1\r\nHost: a\r\nX-Real-IP: %b\r\nConnection: close\r\n\r\n"


class TestAddresses:
    """Requests without a valid key are limited by address, which a trusted proxy sends."""

    @staticmethod
    def statuses(edge: Asker, requests: bytes) -> list[bytes]:
        return re.findall(rb"HTTP/1.1 (...) ", edge.exchange(requests))

    @pytest.mark.parametrize(
        "refused", [b"GET /nothing", b"POST /predictions/bloodcells", b"DELETE /healthz"]
    )
    def test_refusals_and_probes_count(self, configured: Configured, refused: bytes) -> None:
        # An address may send 50 requests per second, in bursts of 200.
        probes = 600 * (PROBE % b"10.1.1.1")

        def answers(address: bytes) -> list[bytes]:
            return self.statuses(configured.edge, probes + LAST % (refused, address))

        wait(lambda: answers(b"10.1.1.1")[-1] == b"429")
        assert answers(b"10.2.2.2")[-1] in (b"401", b"404", b"405")

    def test_one_in_a_hundred_above_the_limit_is_logged(self, configured: Configured) -> None:
        requests = 900 * (PROBE % b"10.4.4.4") + LAST % (b"GET /healthz", b"10.4.4.4")
        statuses: list[bytes] = []

        def many_are_refused() -> bool:
            statuses.extend(self.statuses(configured.edge, requests))
            return statuses.count(b"429") >= 100

        def logged() -> int:
            return [each["address"] for each in configured.edge.log()].count("10.4.4.0")

        wait(many_are_refused)
        answered, refused = statuses.count(b"200"), statuses.count(b"429")
        wait(lambda: logged() >= answered)
        assert logged() - answered <= refused / 4 + 10

    def test_a_network_of_version_6_counts_as_one(self, configured: Configured) -> None:
        probes = b"".join(PROBE % b"2001:db8::%x" % each for each in range(1, 600))

        def answer(address: bytes) -> bytes:
            requests = probes + LAST % (b"GET /healthz", address)
            return self.statuses(configured.edge, requests)[-1]

        wait(lambda: answer(b"2001:db8::ffff") == b"429")
        assert answer(b"2001:db8:0:1::1") == b"200"


class TestFullDisk:
    def test_a_renewed_token_is_read_from_the_file_of_torchserve(
        self, edge: Asker, received: list[dict[str, str]]
    ) -> None:
        # Our copy, inference.header, could not be written.
        write_keys(edge.settings.run_dir, "second")
        assert edge.ask().status_code == 200
        assert [each["Authorization"] for each in received] == ["Bearer second"]

    def test_a_half_written_token_is_awaited(
        self, edge: Asker, received: list[dict[str, str]]
    ) -> None:
        path = edge.settings.run_dir / KEY_FILE
        complete = path.read_text()
        path.write_text(complete[: len(complete) // 2])
        libc = ctypes.CDLL(None)
        with os.fdopen(libc.inotify_init1(0)) as read, ThreadPoolExecutor(1) as pool:
            libc.inotify_add_watch(read.fileno(), os.fsencode(path), IN_CLOSE_NOWRITE)
            answer = pool.submit(edge.ask)
            try:
                # The edge has read the half.
                assert readable([read], 60)
            finally:
                path.write_text(complete)
            assert answer.result().status_code == 200
        assert [each["Authorization"] for each in received] == ["Bearer first"]

    def test_nothing_that_is_written_costs_an_answer(self, configured: Configured) -> None:
        edge = configured.edge
        folder, written = edge.settings.run_dir / "edge" / "in-flight", edge.edge.log
        folder.rmdir()
        folder.write_text("a file, so that nothing can be created in it")
        written.unlink()
        written.symlink_to("/dev/full")
        edge.edge.process.send_signal(signal.SIGUSR1)
        edge.stand_in.reset()  # type: ignore[union-attr]
        try:
            key = configured.add_key("full")
            assert edge.ask(key=key).status_code == 200
        finally:
            folder.unlink()
            folder.mkdir()
            written.unlink()
            edge.edge.process.send_signal(signal.SIGUSR1)
            wait(written.exists)

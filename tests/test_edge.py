"""The edge: nginx over a stand-in for TorchServe, and over the real service."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from edges import DAMAGED, Asker, Configured, edge_over_stand_in, problem_of, wait
from page_stand_in import token
from stand_in import StandIn

from serving import restarts
from serving.edge import certificates, log, process, status
from serving.settings import ROOT
from serving.torchserve import StartError
from testing.connections import in_form
from testing.service import free_ports

pytestmark = pytest.mark.live

ANSWERS = "/predictions/bloodcells"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNAVAILABLE = (503, "ServiceUnavailable")


@pytest.fixture
def stand_in(edge: Asker) -> StandIn:
    """Return the stand-in behind the edge."""
    assert edge.stand_in
    return edge.stand_in


class TestKeys:
    def test_anything_else_is_refused(self, edge: Asker, stand_in: StandIn) -> None:
        for key in (None, "unknown", "__proto__", "a" * 3000):
            response = edge.ask(key=key)
            assert problem_of(response) == (401, "Unauthorized")
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
        # Before the body is read.
        head = edge.head("Content-Length: 9000000").replace(edge.key.encode(), b"wrong")
        assert edge.raw(head).startswith(b"HTTP/1.1 401 ")
        assert stand_in.requests == []

    def test_a_key_may_be_limited_and_revoked(self, edge: Asker) -> None:
        key = edge.keys.add("reader", ["predict"])
        assert edge.ask(key=key).status_code == 200
        bearer = {"Authorization": f"Bearer {key}"}
        assert edge.ask(key=None, headers=bearer).status_code == 200
        assert problem_of(edge.ask("/explanations/bloodcells", key=key)) == (403, "Forbidden")
        edge.keys.revoke("reader")
        assert problem_of(edge.ask(key=key)) == (403, "Forbidden")

    def test_a_damaged_file_admits_nobody(self, edge: Asker) -> None:
        path = edge.settings.run_dir / "edge-keys.json"
        keys = path.read_text()
        path.write_text("{")
        # 401 would tell a client that its key is wrong.
        assert problem_of(edge.ask(headers={"X-Request-ID": "damaged"})) == UNAVAILABLE
        assert problem_of(edge.ask(key=None)) == (401, "Unauthorized")
        assert look(edge).keys_fault
        path.unlink()
        assert problem_of(edge.ask()) == (401, "Unauthorized")
        path.write_text(keys)
        assert look(edge).keys_fault is None
        assert edge.logged("damaged")["fault"].startswith("The keys cannot be read")

    def test_wrong_types_admit_nobody(self, edge: Asker, stand_in: StandIn) -> None:
        path = edge.settings.run_dir / "edge-keys.json"
        keys = path.read_text()
        hashed = hashlib.sha256(edge.key.encode()).hexdigest()
        try:
            for document in DAMAGED:
                path.write_text(json.dumps(document).replace("HASH", hashed))
                assert problem_of(edge.ask()) == UNAVAILABLE, document
        finally:
            path.write_text(keys)
        assert stand_in.requests == []


def look(edge: Asker) -> status.Seen:
    seen = status.look(edge.settings.edge_note)
    assert seen
    return seen


class TestPaths:
    def test_other_paths_are_not_found(self, edge: Asker, stand_in: StandIn) -> None:
        for path in (
            "/ping",
            "/metrics",
            "/v1/models/bloodcells:predict",
            "/token?type=inference",
            "/predictions/other",
            "/predictions/bloodcells/",
            "/predictions/bloodcells/1.0/more",
            "/Predictions/bloodcells",
            "//predictions/bloodcells",
            "/predictions/x/../bloodcells",
            "/predictions/bloodcells/..;/x",
            "/predictions/bloodcells;a=b",
            "/predictions/%62loodcells",
            "/predictions/bloodcells/%2e%2e/x",
            "/predictions%2fbloodcells",
            "/predictions\\bloodcells",
            "/static/../metrics",
            "/upstream/predictions",
            "/refused/",
            "/refused/401",
            "/refused/x",
            "/api/other",
        ):
            answer = edge.raw(edge.head("Content-Length: 1", path=path) + b"x")
            assert answer.startswith(b"HTTP/1.1 404 "), path
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "NotFound", path
        assert stand_in.requests == []

    def test_malformed_requests_are_refused(self, edge: Asker) -> None:
        for head in (
            b"GARBAGE\r\n\r\n",
            b"GET /../metrics HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"POST /predictions/bloodcells HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /predictions/bloodcells HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
            b"Content-Length: 4\r\n\r\nabc",
            b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        ):
            answer = edge.raw(head)
            assert answer.startswith(b"HTTP/1.1 400 "), head
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "BadRequest"
        response = edge.get("/healthz", headers={"X": "a" * 9000})
        assert problem_of(response) == (431, "HeadersTooLarge")
        assert problem_of(edge.ask("/" + "a" * 9000)) == (414, "AddressTooLong")

    def test_every_refusal_is_json(self, edge: Asker) -> None:
        for line, header, code, kind in (
            ("POST / HTTP/1.1", "Transfer-Encoding: gzip", 501, "NotImplemented"),
            ("GET / HTTP/9.9", "Accept: x", 505, "VersionNotSupported"),
            ("GET /openapi.yaml HTTP/1.1", "If-Match: x", 412, "PreconditionFailed"),
            ("GET /openapi.yaml HTTP/1.1", "Range: bytes=9999999-", 416, "RangeNotSatisfiable"),
        ):
            answer = edge.raw(f"{line}\r\nHost: a\r\n{header}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 %d " % code)
            document = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert (document["code"], document["type"]) == (code, kind)

    def test_other_methods_are_not_allowed(self, edge: Asker) -> None:
        for method, path, allowed in (
            ("GET", ANSWERS, "POST"),
            ("OPTIONS", ANSWERS, "POST"),
            ("DELETE", f"{ANSWERS}/1.0", "POST"),
            ("POST", "/healthz", "GET, HEAD"),
            ("DELETE", "/readyz", "GET, HEAD"),
            ("POST", "/openapi.yaml", "GET, HEAD"),
            ("DELETE", "/models/1.0", "GET, HEAD"),
            ("PUT", "/", "GET, HEAD, POST"),
        ):
            response = edge.ask(path, None, method)
            assert problem_of(response) == (405, "MethodNotAllowed"), path
            assert response.headers["Allow"] == allowed
        assert edge.get("/openapi.yaml").content == (ROOT / "docs" / "openapi.yaml").read_bytes()


class TestHealth:
    def test_is_ready_if_the_page_is(self, edge: Asker, stand_in: StandIn) -> None:
        assert edge.get("/readyz").status_code == 200
        stand_in.refuse(503, "ServiceUnavailable")
        assert edge.get("/readyz").status_code == 503

    def test_without_a_page_it_is_alive_but_not_ready(self, configured: Configured) -> None:
        edge = configured.edge
        assert edge.get("/healthz").json() == {"status": "ok"}
        assert problem_of(edge.get("/readyz")) == UNAVAILABLE
        # An address may send 5 requests per second, in bursts of 20.
        probe = b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n"
        last = probe[:-2] + b"Connection: close\r\n\r\n"
        assert b" 429 " in edge.exchange(400 * probe + last)


class TestHeaders:
    def test_only_known_ones_pass(self, edge: Asker, received: list[dict[str, str]]) -> None:
        strange = {"describe": "True", "explain": "True", "Cookie": "a=b", "X-Forwarded-For": "1"}
        sent = {"Content-Type": "image/png", "X-Request-ID": "mine", "traceparent": TRACE}
        response = edge.ask(headers=strange | sent, body=iter([b"in ", b"parts"]))
        assert response.status_code == 200
        expected = {"Host": "bloodcells", "Content-Length": "8", "Authorization": "Bearer first"}
        assert received == [sent | expected]

    def test_a_raw_body_gets_a_type_and_the_page_an_address(
        self, edge: Asker, received: list[dict[str, str]]
    ) -> None:
        raw, kept = "application/octet-stream", ["image/jpeg", "application/json"]
        for given in (None, "application/x-www-form-urlencoded", *kept):
            edge.ask(body=b"--a--", headers={"Content-Type": given} if given else {})
        assert [each["Content-Type"] for each in received] == [raw, raw, *kept]
        # The page gets the address of the client.
        edge.get("/models", headers={"X-Real-IP": "10.9.9.9", "X-Forwarded-For": "10.9.9.9"})
        assert received[-1]["X-Real-IP"] == "127.0.0.1"
        assert "X-Forwarded-For" not in received[-1]

    def test_every_answer_has_an_id(self, edge: Asker) -> None:
        ids: list[Any] = [None, "a b", "x" * 65, "é".encode(), "ok-1_2.3"]
        for path, given in itertools.product(("/healthz", "/nothing"), ids):
            found = edge.get(path, headers={"X-Request-ID": given} if given else {})
            own = found.headers["X-Request-ID"]
            assert found.headers["Strict-Transport-Security"] == "max-age=31536000"
            assert own == given if given == "ok-1_2.3" else re.fullmatch("[0-9a-f]{32}", own)


class TestLog:
    def test_records_requests_without_secrets(self, edge: Asker, stand_in: StandIn) -> None:
        stand_in.answer = lambda *_: (200, b"{}", ("X-Model-Version", "1.0"))
        sent = {"X-Request-ID": "logged", "traceparent": TRACE}
        response = edge.ask(f"{ANSWERS}/1.0?visitor=somebody", headers=sent)
        assert response.headers["X-Model-Version"] == "1.0"
        edge.ask(key="wrong-key-wrong-key", headers={"X-Request-ID": "wrong"})
        assert edge.logged("wrong")["status"] == 401
        line = edge.logged("logged")
        assert line["traceparent"] == TRACE
        assert (line["client"], line["status"], line["version"]) == ("lab", 200, "1.0")
        assert (line["path"], line["method"]) == (f"{ANSWERS}/1.0", "POST")
        assert line["address"] == "127.0.0.0"
        text = edge.edge.log.read_text()
        for secret in (edge.key, "wrong-key-wrong-key", "first", "somebody"):
            assert secret not in text

    def test_long_values_are_cut(self, edge: Asker) -> None:
        path = "/" + 1800 * "%01"
        request = f"{'A' * 500} {path} HTTP/1.1\r\nHost: a\r\nX-Request-ID: long\r\n\r\n"
        assert edge.raw(request.encode()).startswith(b"HTTP/1.1 404 ")
        line = edge.logged("long")
        assert line["path"] == path[:200]
        assert len(json.dumps(line)) < 1000

    def test_is_rotated(self, configured: Configured) -> None:
        edge = configured.edge
        os.truncate(edge.edge.log, log.SIZE)
        wait(lambda: edge.edge.log.with_suffix(".1.log").exists() and edge.edge.log.exists())

        def is_logged() -> bool:
            edge.get("/healthz", headers={"X-Request-ID": "rotated"})
            return [each["request_id"] for each in edge.log()].count("rotated") > 0

        wait(is_logged)


class TestTLS:
    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
    def test_version_1_1_is_refused(self, edge: Asker) -> None:
        context = ssl.create_default_context(cafile=str(edge.edge.certificate))
        # Otherwise the client refuses it.
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", edge.port), timeout=60) as plain,
            pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
        ):
            context.wrap_socket(plain, server_hostname="localhost")


class Held:
    """Answers of a stand-in for TorchServe that wait until they are released."""

    def __init__(self, edge: Asker) -> None:
        assert edge.stand_in
        self.folder = edge.settings.run_dir / "edge" / "in-flight"
        self.release = threading.Event()
        edge.stand_in.answer = lambda *_: (200, b"{}") if self.release.wait(60) else (503, b"")

    def count(self) -> int:
        return len(list(self.folder.iterdir()))


class TestInFlight:
    def test_a_file_stands_for_each_request(self, edge: Asker, stand_in: StandIn) -> None:
        held = Held(edge)
        with ThreadPoolExecutor() as pool:
            requests = [pool.submit(edge.ask, f"{ANSWERS}/3.0") for _ in range(3)]
            wait(lambda: len(stand_in.requests) == 3)
            names = [path.name.split("~") for path in held.folder.iterdir()]
            held.release.set()
            assert [each.result().status_code for each in requests] == 3 * [200]
        assert [name[0] for name in names] == 3 * ["3.0"]
        nginx = psutil.Process(edge.edge.process.pid).children(recursive=True)
        assert {int(name[1]) for name in names} <= {each.pid for each in nginx}
        assert held.count() == 0

    def test_a_client_that_leaves_or_fails_leaves_no_file(
        self, edge: Asker, stand_in: StandIn
    ) -> None:
        stand_in.refuse(500, "InternalServerException")
        assert problem_of(edge.ask()) == UNAVAILABLE
        stand_in.requests.clear()
        held = Held(edge)
        assert held.count() == 0
        with edge.connect() as connection:
            connection.sendall(edge.head("Content-Length: 1") + b"x")
            wait(lambda: stand_in.requests)
        assert held.count() == 1
        held.release.set()
        wait(lambda: held.count() == 0)


class TestSettings:
    def test_a_client_that_is_too_fast_is_refused(self, configured: Configured) -> None:
        ask = configured.edge.ask
        configured.edge.stand_in.reset()  # type: ignore[union-attr]
        assert ask(key=configured.key).status_code == 200
        wait(lambda: ask(key=configured.key).status_code != 200)
        refused = ask(key=configured.key)
        if refused.status_code != 200:
            assert problem_of(refused) == (429, "TooManyRequests")
            assert refused.headers["Retry-After"] == "1"
        # A mounted Secret is followed; another client is not affected.
        assert ask(key=configured.add_key("second")).status_code == 200

    def test_old_files_a_trusted_proxy_and_a_closed_page(self, configured: Configured) -> None:
        assert Held(configured.edge).count() == 0
        # A trusted proxy sends the address of the client.
        headers = {"X-Real-IP": "10.9.9.9", "X-Request-ID": "proxied"}
        configured.edge.get("/healthz", headers=headers)
        assert configured.edge.logged("proxied")["address"] == "10.9.9.0"
        for path in ("/", "/api/predictions", "/models"):
            assert problem_of(configured.edge.ask(path, key=None)) == (404, "NotFound")

    def test_a_new_certificate_is_loaded(self, configured: Configured) -> None:
        def shown() -> str:
            return ssl.get_server_certificate(("127.0.0.1", configured.edge.port))

        certificate, key = configured.pair
        assert shown() == certificate.read_text()
        # A damaged certificate is refused.
        key.write_text("damaged")
        certificates.create(certificate, key, ["localhost"])
        wait(lambda: shown() == certificate.read_text())

    def test_one_edge_per_folder_and_port(
        self, edge: Asker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "umask", lambda mask: None)
        before = (edge.settings.run_dir / "edge" / "edge.conf").read_text()
        (port,) = free_ports(1)
        with pytest.raises(StartError, match="An edge already runs"):
            process.run(edge.settings.model_copy(update={"edge_port": port}))
        assert (edge.settings.run_dir / "edge" / "edge.conf").read_text() == before
        with pytest.raises(StartError, match=f"port {edge.port}"):
            process.run(
                edge.settings.model_copy(update={"edge_port": edge.port, "run_dir": tmp_path})
            )


class TestEnd:
    @pytest.fixture
    def own(self, tmp_path: Path) -> Iterator[Asker]:
        """Run an edge that the test ends."""
        running = edge_over_stand_in(tmp_path / "run")
        yield running
        running.close()

    def test_answers_open_requests_and_closes(self, own: Asker) -> None:
        seen = look(own)
        assert seen.answers
        assert seen.expires == certificates.expires(own.edge.certificate.read_bytes())
        held = Held(own)
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(own.ask) for _ in range(4)]
            wait(lambda: held.count() == 4)
            own.edge.process.send_signal(signal.SIGTERM)
            wait(lambda: not own.listens())
            assert not any(each.done() for each in waiting)
            held.release.set()
            assert [each.result().status_code for each in waiting] == 4 * [200]
        assert own.edge.process.wait(60) == 0
        assert own.edge.printed.read_text().endswith("the edge is closed\n")
        assert status.look(own.settings.edge_note) is None

    def test_a_killed_one_is_restarted_within_bounds(self, own: Asker) -> None:
        def restarted(count: int) -> bool:
            printed = own.edge.printed.read_text()
            return printed.count("Restarting ...") == count and look(own).answers

        parent = psutil.Process(own.edge.process.pid)
        for number in range(restarts.EXITS):
            wait(partial(restarted, number))
            [nginx] = parent.children()
            nginx.kill()
        assert own.edge.process.wait(60) == 1
        assert "(signal 9). Out of memory? See `dmesg`. Giving up" in own.edge.printed.read_text()
        wait(lambda: not own.listens())
        assert not look(own).answers

    def test_its_open_requests_are_answered(self, own: Asker) -> None:
        held = Held(own)
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(own.ask) for _ in range(4)]
            wait(lambda: held.count() == 4)
            [nginx] = psutil.Process(own.edge.process.pid).children()
            nginx.kill()
            wait(lambda: "Restarting ..." in own.edge.printed.read_text())
            wait(lambda: look(own).answers)
            held.release.set()
            assert [each.result().status_code for each in waiting] == 4 * [200]

    def test_a_killed_parent_leaves_no_process(self, own: Asker) -> None:
        own.edge.process.kill()
        assert own.edge.process.wait(60) == -9
        wait(lambda: not own.listens())
        assert not look(own).answers


@pytest.fixture(scope="module")
def pageless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Asker, int]]:
    """Run an edge whose page does not run; return it and the port of the page."""
    (port,) = free_ports(1)
    run_dir = tmp_path_factory.mktemp("pageless") / "run"
    running = edge_over_stand_in(run_dir, FRONTEND_PORT=str(port))
    yield running, port
    running.close()


class TestPage:
    def test_a_request_waits_for_its_restart(
        self, pageless: tuple[Asker, int], tmp_path: Path
    ) -> None:
        edge, port = pageless
        sent = bytes(12 * 2**20)
        seen: list[bool] = []

        def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[Any, ...]:
            seen.append(body == sent)
            headers = ("X", request.headers["X-Forwarded-Proto"]), ("Connection", "close")
            return 200, b"{}", *headers

        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(edge.ask, "/api/predictions?a=b", sent, key=None)
            # It is not ready: a probe does not wait.
            assert edge.get("/readyz").status_code == 503
            with StandIn(tmp_path, port) as page:
                page.answer = answer
                response = waiting.result()
        assert response.status_code == 200
        assert response.headers["X"] == "https"
        assert seen[-1]
        assert page.requests[-1][0] == "/api/predictions?a=b"

    def test_an_upload_that_ends_it_is_sent_again_once(
        self, pageless: tuple[Asker, int], tmp_path: Path
    ) -> None:
        edge, port = pageless

        def fail(*_: object) -> tuple[int, bytes]:
            raise ConnectionAbortedError

        with StandIn(tmp_path, port) as page:
            page.answer = lambda request, _: fail() if request.command == "POST" else (200, b"")
            assert problem_of(edge.ask("/", key=None)) == (502, "ServiceUnavailable")
        assert [path for path, _ in page.requests].count("/") == 2


class TestService:
    """The edge over the real service."""

    @pytest.fixture
    def image(self, sample_image: Path) -> bytes:
        return sample_image.read_bytes()

    def test_answers(self, real_edge: Asker, image: bytes) -> None:
        assert real_edge.get("/readyz").json() == {"status": "ok"}
        # `explain` and `describe` are TorchServe's; they do not pass.
        headers = {"explain": "True", "url_path": "x"}
        response = real_edge.ask(body=image, headers=headers)
        assert response.status_code == 200
        assert response.json()["label"] == "NEUTROPHIL"
        assert response.headers["X-Model-Version"] == response.json()["version"]
        assert "heat_map" not in response.json()
        assert problem_of(real_edge.ask(body=b"", headers={"describe": "True"})) == (
            400,
            "EmptyImage",
        )
        largest = real_edge.ask(body=bytes(12 * 2**20))
        assert problem_of(largest)[0] in (413, 415)
        assert largest.headers["X-Model-Version"]

    def test_a_form_has_several_images(self, real_edge: Asker, image: bytes) -> None:
        kind, form = in_form([image, b"no image"])
        response = real_edge.ask(body=form, headers={"Content-Type": kind})
        good, bad = response.json()["predictions"]
        assert (good["label"], bad["type"]) == ("NEUTROPHIL", "UnsupportedImage")

    def test_the_page_needs_no_key(self, real_edge: Asker, image: bytes) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = real_edge.session.verify
            first = session.get(real_edge.edge.url, timeout=60)
            assert "Secure" in first.headers["Set-Cookie"]
            for path in set(re.findall(r'(?:src|href)="(/[^"?]*)', first.text)):
                assert session.get(real_edge.edge.url + path, timeout=60).status_code == 200, path
            answer = session.post(
                f"{real_edge.edge.url}/api/predictions",
                files={"image": ("a.png", image)},
                data={"csrf_token": token(first.text)},
                headers={"Referer": f"{real_edge.edge.url}/"},
                timeout=60,
            )
        assert answer.json()["cells"]

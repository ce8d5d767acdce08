"""The edge: the real nginx, over the real service and over what stands in for it."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from conftest import free_settings
from edges import Asker, need_nginx, problem_of
from page_stand_in import token
from prometheus_client import CollectorRegistry
from stand_in import StandIn, problem

from serving.client import ManagementClient
from serving.deployment.canary import FILE as OUTCOMES
from serving.deployment.routing import Routing
from serving.doctor import examination as doctor
from serving.edge import certificates
from serving.edge import nginx as edge_module
from serving.edge.keys import KeyFile, KeyFileError
from serving.settings import ROOT, SettingsError
from serving.supervisor import exporter
from serving.torchserve import tokens
from serving.torchserve.tokens import Tokens
from testing.service import Service, environment_of, free_ports, run_edge, run_service

ANSWERS = "/predictions/bloodcells"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
KNOWN_ADDRESSES = ("127.0.0.0", "")


@pytest.fixture(scope="module")
def asker(service: Service) -> Iterator[Asker]:
    """Ask an edge over the real service."""
    need_nginx()
    with Outside(run_edge(service.settings, EDGE_RATE="5000"), service.settings) as outside:
        yield outside


class Outside(Asker):
    def __enter__(self) -> Outside:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def front(stand_in: StandIn) -> Iterator[Callable[..., Asker]]:
    """Return a function that runs an edge over what stands in for TorchServe."""
    need_nginx()
    (stand_in.settings.run_dir / tokens.HEADER_FILE).write_text("Authorization: Bearer first\n")
    with contextlib.ExitStack() as stack:

        def run(**variables: str) -> Asker:
            (page,) = free_ports(1)
            settings = stand_in.settings.model_copy(update={"frontend_port": page})
            return stack.enter_context(Outside(run_edge(settings, **variables), settings))

        yield run


@pytest.fixture
def image(sample_image: Path) -> bytes:
    return sample_image.read_bytes()


class TestKeys:
    @pytest.mark.parametrize(
        ("header", "form"), [("X-API-Key", "{}"), ("Authorization", "Bearer {}")]
    )
    def test_a_key_opens(self, asker: Asker, image: bytes, header: str, form: str) -> None:
        response = asker.ask(body=image, key=None, headers={header: form.format(asker.key)})
        assert response.status_code == 200
        assert response.json()["label"] == "NEUTROPHIL"
        assert response.headers["X-Model-Version"] == response.json()["version"]

    @pytest.mark.parametrize("key", [None, "unknown", "__proto__", "a" * 3000])
    def test_nothing_else_does(self, asker: Asker, image: bytes, key: str | None) -> None:
        response = asker.ask(body=image, key=key)
        assert problem_of(response) == (401, "Unauthorized")
        assert response.headers["WWW-Authenticate"].startswith("Bearer")

    def test_a_key_may_what_it_was_given(self, asker: Asker, image: bytes) -> None:
        key = asker.keys.add("reader", ["predict"])
        assert asker.ask(f"{ANSWERS}/1.0", image, key=key).status_code == 200
        refused = asker.ask("/explanations/bloodcells/1.0", image, key=key)
        assert problem_of(refused) == (403, "Forbidden")

    def test_changes_count_at_once(self, asker: Asker, image: bytes) -> None:
        key = asker.keys.add("passing")
        assert asker.ask(body=image, key=key).status_code == 200
        asker.keys.revoke("passing")
        assert problem_of(asker.ask(body=image, key=key)) == (403, "Forbidden")

    def test_a_body_without_a_key_is_not_awaited(self, asker: Asker) -> None:
        head = (
            b"POST /predictions/bloodcells HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n"
        )
        assert asker.raw(head).startswith(b"HTTP/1.1 401 ")

    def test_a_broken_file_opens_nothing(self, front: Callable[..., Asker]) -> None:
        asker = front()
        assert asker.ask().status_code == 200
        path = asker.settings.run_dir / "edge-keys.json"
        path.write_text("{")
        # A client must not think that its key is none.
        assert problem_of(asker.ask()) == (503, "ServiceUnavailable")
        assert problem_of(asker.ask(key=None)) == (401, "Unauthorized")
        path.unlink()
        assert problem_of(asker.ask()) == (401, "Unauthorized")
        wait(lambda: len(asker.log()) == 4)
        assert [line["fault"][:21] for line in asker.log()][1:] == [
            "The keys can't be rea",
            "",
            "The keys can't be rea",
        ]

    def test_a_mounted_secret_is_followed(
        self, tmp_path: Path, front: Callable[..., Asker]
    ) -> None:
        """Kubernetes exchanges what a link leads to; the files that it led to are gone."""
        mount = Secret(tmp_path / "mounted", "keys.json")
        keys = KeyFile(tmp_path / "keys.json")
        first = keys.add("first")
        mount.exchange((tmp_path / "keys.json").read_bytes())
        asker = front(EDGE_KEYS=str(mount.path))
        assert asker.ask(key=first).status_code == 200
        second = keys.add("second")
        mount.exchange((tmp_path / "keys.json").read_bytes())
        assert asker.ask(key=second).status_code == 200


class Secret:
    """One file of a Secret, as Kubernetes mounts it."""

    def __init__(self, mount: Path, name: str) -> None:
        mount.mkdir()
        self._mount, self._name, self._count = mount, name, 0
        self.path = mount / name
        self.path.symlink_to(Path("..data") / name)

    def exchange(self, content: bytes) -> None:
        data, link = self._mount / "..data", self._mount / "..data_tmp"
        old = data.resolve() if data.exists() else None
        self._count += 1
        folder = self._mount / f"..{self._count}"
        folder.mkdir()
        (folder / self._name).write_bytes(content)
        link.symlink_to(folder.name)
        link.replace(data)
        if old:
            shutil.rmtree(old)


class TestKeyFile:
    def test_holds_no_key(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.json"
        key = KeyFile(path).add("lab", ["predict"])
        assert key not in path.read_text()
        assert len(key) >= 43
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        ((_, known),) = KeyFile(path).read().items()
        assert (known.client, known.allow, known.revoked) == ("lab", ("predict",), None)

    def test_one_key_of_several_can_be_revoked(self, tmp_path: Path) -> None:
        keys = KeyFile(tmp_path / "keys.json")
        keys.add("lab")
        keys.add("lab")
        first, second = keys.read()
        assert keys.revoke(first[:12]) == [first]
        assert keys.read()[second].revoked is None
        assert keys.revoke("lab") == [second]
        with pytest.raises(KeyFileError):
            keys.revoke("lab")

    @pytest.mark.parametrize("name", ["", "a b", '"', "-x", "a" * 65])
    def test_a_client_has_a_plain_name(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(KeyFileError):
            KeyFile(tmp_path / "keys.json").add(name)

    def test_the_command_line(self, tmp_path: Path) -> None:
        def run(*arguments: str) -> tuple[int, str]:
            done = subprocess.run(
                [sys.executable, "-m", "serving", "edge-key", *arguments],
                cwd=ROOT,
                env=environment_of(free_settings(tmp_path / "run")),
                capture_output=True,
                text=True,
            )
            return done.returncode, done.stdout

        assert run("add", "lab", "--allow", "predict")[0] == 0
        code, listed = run("list")
        assert code == 0
        assert re.search(r"^[0-9a-f]{12} +lab +predict *$", listed, re.MULTILINE)
        assert run("revoke", "lab")[0] == 0
        assert run("revoke", "lab")[0] == 1
        assert run("add", "lab", "--allow", "all")[0] == 2


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "/ping",
            "/metrics",
            "/invocations",
            "/v1/models/bloodcells:predict",
            "/v2/models/bloodcells/infer",
            "/v2/health/ready",
            "/api-description",
            "/workflows",
            "/wfpredict/x",
            "/token?type=inference",
            "/models/bloodcells/all",
            "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping",
            "/predictions",
            "/predictions/",
            "/predictions/other",
            "/predictions/bloodcells/",
            "/predictions/bloodcells/1.0/more",
            "/predictions/bloodcells/-1",
            "/Predictions/bloodcells",
            "//predictions/bloodcells",
            "/predictions//bloodcells",
            "/predictions/./bloodcells",
            "/predictions/x/../bloodcells",
            "/predictions/bloodcells/..;/x",
            "/predictions/bloodcells;a=b",
            "/predictions/%62loodcells",
            "/predictions/bloodcells/%2e%2e/x",
            "/predictions%2fbloodcells",
            "/predictions\\bloodcells",
            "/static/../metrics",
            "/upstream",
            "/unreadable",
            "/edge-keys.json",
            "/api/other",
        ],
    )
    def test_nothing_else_is_there(self, asker: Asker, path: str) -> None:
        line = f"POST {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {asker.key}\r\n"
        said = asker.raw(f"{line}Content-Length: 1\r\n\r\nx".encode())
        assert said.startswith(b"HTTP/1.1 404 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["type"] == "NotFound"

    @pytest.mark.parametrize(
        "head",
        [
            b"GARBAGE\r\n\r\n",
            b"GET /../metrics HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"POST /predictions/bloodcells HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /predictions/bloodcells HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
            b"Content-Length: 4\r\n\r\nabc",
            b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        ],
    )
    def test_what_is_no_http_is_refused(self, asker: Asker, head: bytes) -> None:
        said = asker.raw(head)
        assert said.startswith(b"HTTP/1.1 400 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["type"] == "BadRequest"

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", ANSWERS, "POST"),
            ("PUT", ANSWERS, "POST"),
            ("DELETE", f"{ANSWERS}/1.0", "POST"),
            ("OPTIONS", ANSWERS, "POST"),
            ("POST", "/healthz", "GET, HEAD"),
            ("DELETE", "/readyz", "GET, HEAD"),
            ("POST", "/openapi.yaml", "GET, HEAD"),
            ("DELETE", "/models/1.0", "GET, HEAD"),
            ("PUT", "/", "GET, HEAD, POST"),
        ],
    )
    def test_other_methods_are_not_allowed(
        self, asker: Asker, method: str, path: str, allowed: str
    ) -> None:
        response = asker.ask(path, None, method)
        assert problem_of(response) == (405, "MethodNotAllowed")
        assert response.headers["Allow"] == allowed

    def test_a_version_that_does_not_serve(self, asker: Asker, image: bytes) -> None:
        assert problem_of(asker.ask(f"{ANSWERS}/9.9", image)) == (404, "NotServed")

    def test_the_description_is_there(self, asker: Asker) -> None:
        response = asker.ask("/openapi.yaml", None, "GET", key=None)
        assert response.content == (ROOT / "docs" / "openapi.yaml").read_bytes()


class TestPage:
    def test_is_there_without_a_key(self, asker: Asker, image: bytes) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = asker.session.verify
            first = session.get(asker.edge.url, timeout=30)
            assert "Secure" in first.headers["Set-Cookie"]
            for path in set(re.findall(r'(?:src|href)="(/[^"?]*)', first.text)):
                assert session.get(asker.edge.url + path, timeout=30).status_code == 200, path
            answer = session.post(
                f"{asker.edge.url}/api/predictions",
                files={"image": ("a.png", image)},
                data={"csrf_token": token(first.text)},
                headers={"Referer": f"{asker.edge.url}/"},
                timeout=30,
            )
        assert answer.status_code == 200
        assert answer.json()["cells"]
        models = asker.ask("/models", None, "GET", key=None)
        assert models.headers["Content-Type"].startswith("text/html")

    def test_can_be_closed(self, front: Callable[..., Asker]) -> None:
        asker = front(EDGE_PAGE="off")
        for path in ("/", "/api/predictions", "/models"):
            assert problem_of(asker.ask(path, b"", "POST", key=None)) == (404, "NotFound")
        assert asker.ask().status_code == 200
        # What is not there is not ready, but asked for.
        assert problem_of(asker.ask("/readyz", None, "GET")) == (503, "ServiceUnavailable")

    @pytest.mark.parametrize("trusted", [False, True])
    def test_learns_the_address_of_who_asks(
        self, front: Callable[..., Asker], trusted: bool
    ) -> None:
        asker = front(**({"EDGE_FRONT": "127.0.0.0/8"} if trusted else {}))
        seen: list[tuple[str | None, ...]] = []

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append((self.headers["X-Real-IP"], self.headers["X-Forwarded-For"]))
                self.send_error(404)

            def log_message(self, *_: Any) -> None:
                pass

        page = http.server.HTTPServer(("127.0.0.1", asker.settings.frontend_port), Page)
        threading.Thread(target=page.handle_request, daemon=True).start()
        claimed = {"X-Real-IP": "10.9.9.9", "X-Forwarded-For": "10.9.9.9"}
        asker.ask("/models", None, "GET", headers=claimed)
        page.server_close()
        assert seen == [("10.9.9.9" if trusted else "127.0.0.1", None)]


class TestHealth:
    def test_is_ready_over_a_ready_service(self, asker: Asker) -> None:
        for path in ("/healthz", "/readyz"):
            assert asker.ask(path, None, "GET", key=None).json() == {"status": "ok"}

    def test_is_not_without_a_page(self, front: Callable[..., Asker]) -> None:
        asker = front()
        assert asker.ask("/healthz", None, "GET").status_code == 200
        assert problem_of(asker.ask("/readyz", None, "GET")) == (503, "ServiceUnavailable")

    def test_one_address_can_not_ask_for_ever(self, front: Callable[..., Asker]) -> None:
        asker = front()
        found = {asker.ask("/readyz", None, "GET", key=None).status_code for _ in range(60)}
        assert found == {503, 429}

    def test_no_body_is_taken(self, front: Callable[..., Asker]) -> None:
        asker = front()
        head = b"GET /readyz HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
        assert asker.raw(head).startswith(b"HTTP/1.1 413 ")


class TestHeaders:
    def test_describe_gets_no_card(self, asker: Asker) -> None:
        response = asker.ask(body=b"", headers={"describe": "True"})
        assert problem_of(response) == (400, "EmptyImage")

    def test_explain_gets_no_heat_map(self, asker: Asker, image: bytes) -> None:
        response = asker.ask(body=image, headers={"explain": "True", "url_path": "x"})
        assert response.status_code == 200
        assert "heat_map" not in response.json()

    def test_only_those_that_are_known_go_on(
        self, stand_in: StandIn, front: Callable[..., Asker]
    ) -> None:
        seen: list[dict[str, str]] = []

        def answer(request: http.server.BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            seen.append(dict(request.headers.items()))
            return 200, b"{}"

        stand_in.answer = answer
        asker = front()
        strange = {"describe": "True", "explain": "True", "Cookie": "a=b", "X-Forwarded-For": "1"}
        sent = {"Content-Type": "image/png", "X-Request-ID": "mine", "traceparent": TRACE}
        response = asker.ask(headers=strange | sent, body=iter([b"in ", b"parts"]))
        assert response.status_code == 200
        (headers,) = seen
        host = headers.pop("Host")
        assert host == "bloodcells"
        assert headers == {**sent, "Content-Length": "8", "Authorization": "Bearer first"}

    def test_a_raw_body_has_a_type(self, stand_in: StandIn, front: Callable[..., Asker]) -> None:
        seen: list[str | None] = []

        def answer(request: http.server.BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            seen.append(request.headers["Content-Type"])
            return 200, b"{}"

        stand_in.answer = answer
        asker, raw = front(), "application/octet-stream"
        kept = ["image/jpeg", "multipart/form-data; boundary=a"]
        for given in (None, "application/x-www-form-urlencoded", *kept):
            asker.ask(headers={"Content-Type": given} if given else {})
        assert seen == [raw, raw, *kept]

    @pytest.mark.parametrize("given", [None, "a b", "x" * 65, "é".encode(), "ok-1_2.3"])
    def test_every_answer_bears_an_id(self, asker: Asker, given: Any) -> None:
        for path in ("/healthz", "/nothing"):
            headers = {"X-Request-ID": given} if given else {}
            found = asker.ask(path, None, "GET", headers=headers).headers["X-Request-ID"]
            assert found == given if given == "ok-1_2.3" else re.fullmatch("[0-9a-f]{32}", found)


class TestSizes:
    def test_a_body_that_says_to_be_too_large(self, asker: Asker) -> None:
        head = f"POST {ANSWERS} HTTP/1.1\r\nHost: a\r\nX-API-Key: {asker.key}\r\n"
        said = asker.raw(f"{head}Content-Length: {12 * 2**20 + 1}\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 413 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["type"] == "ImageTooLarge"

    def test_a_body_that_becomes_too_large(self, asker: Asker) -> None:
        head = f"POST {ANSWERS} HTTP/1.1\r\nHost: a\r\nX-API-Key: {asker.key}\r\n"
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        said = asker.raw(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 13 * chunk)
        assert said.startswith(b"HTTP/1.1 413 ")

    def test_a_body_of_the_most_gets_through(self, asker: Asker) -> None:
        response = asker.ask(body=bytes(12 * 2**20))
        assert problem_of(response)[0] in (413, 415)
        assert response.headers["X-Model-Version"]

    def test_only_so_many_large_ones_are_held_at_a_time(self, front: Callable[..., Asker]) -> None:
        asker = front()
        head = f"POST {ANSWERS} HTTP/1.1\r\nHost: a\r\nX-API-Key: {asker.key}\r\n"
        large = f"{head}Content-Length: 1000000\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:

            def refused(sent: bytes) -> bool:
                connection = stack.enter_context(asker.connect())
                connection.sendall(sent)
                connection.settimeout(0.5)
                try:
                    return connection.recv(4096).startswith(b"HTTP/1.1 429 ")
                # It waits for the body.
                except TimeoutError:
                    return False

            held = [stack.enter_context(asker.connect()) for _ in range(28)]
            for each in held:
                each.sendall(large)
            # The edge may not have read them all yet.
            assert any(refused(large) for _ in range(8))
            for each in held:
                # Else it would let go of them after 10 s.
                each.sendall(b"x")
            assert refused(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            assert asker.ask(body=bytes(999_999)).status_code == 200

    @pytest.mark.parametrize(("parts", "status"), [(256, 200), (257, 413)])
    def test_a_form_has_so_many_parts(
        self, stand_in: StandIn, front: Callable[..., Asker], parts: int, status: int
    ) -> None:
        asker = front()
        part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        response = asker.ask(body=parts * part + b"--b--\r\n", headers=form)
        assert response.status_code == status
        assert len(stand_in.requests) == (status == 200)
        if status == 413:
            assert problem_of(response) == (413, "TooManyImages")

    def test_headers_and_addresses(self, asker: Asker) -> None:
        response = asker.ask("/healthz", None, "GET", headers={"X": "a" * 9000})
        assert problem_of(response) == (431, "HeadersTooLarge")
        assert problem_of(asker.ask("/" + "a" * 9000)) == (414, "AddressTooLong")

    def test_who_sends_slowly_is_cut_off(self, asker: Asker) -> None:
        """Within some seconds; but for that limit, the edge would wait for minutes."""
        head = f"POST {ANSWERS} HTTP/1.1\r\nHost: a\r\nX-API-Key: {asker.key}\r\n"
        with asker.connect() as slow, asker.connect() as half_sent:
            slow.sendall(head.encode())
            half_sent.sendall(f"{head}Content-Length: 100\r\n\r\nhalf".encode())
            for connection in (slow, half_sent):
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    assert not re.match(rb"HTTP/1.1 (?!408)", connection.recv(4096))


class TestTooMany:
    def test_a_client_that_is_too_fast(self, front: Callable[..., Asker]) -> None:
        asker = front(EDGE_RATE="1")
        found = [asker.ask() for _ in range(8)]
        assert found[0].status_code == 200
        refused = [each for each in found if each.status_code != 200]
        assert refused
        assert {problem_of(each) for each in refused} == {(429, "TooManyRequests")}
        assert refused[0].headers["Retry-After"] == "1"
        # Another one is not harmed.
        assert asker.ask(key=asker.keys.add("other")).status_code == 200

    def test_a_full_queue(self, asker: Asker, image: bytes) -> None:
        with ThreadPoolExecutor(220) as pool, stopped_workers(asker, "1.0") as resume:
            futures = [pool.submit(asker.ask, f"{ANSWERS}/1.0", image) for _ in range(220)]
            wait(lambda: any(each.done() for each in futures))
            time.sleep(1)
            resume()
            found = [each.result() for each in futures]
        refused = [each for each in found if each.status_code != 200]
        assert {problem_of(each) for each in refused} == {(429, "ServiceBusy")}
        assert all(each.headers["Retry-After"] == "1" for each in refused)
        assert len(found) - len(refused) >= 128


class TestRoute:
    CANARY = Routing("1.0", ("1.0", "2.0"), "2.0", 40.0)

    def test_a_canary_gets_the_clients_that_the_routing_gives_it(
        self, stand_in: StandIn, front: Callable[..., Asker]
    ) -> None:
        asker = front()
        stand_in.routing.publish(self.CANARY)
        names = [f"client-{number}" for number in range(24)]
        for name in names:
            assert asker.ask(key=asker.keys.add(name)).status_code == 200
        assert stand_in.asked == [self.CANARY.choose(name) for name in names]
        assert set(stand_in.asked) == {"1.0", "2.0"}
        noted = (asker.settings.run_dir / OUTCOMES).read_text().splitlines()
        assert [line.split()[1:3] for line in noted] == [[each, "0"] for each in stand_in.asked]

    def test_what_a_canary_fails_at_is_answered_by_the_default(
        self, stand_in: StandIn, front: Callable[..., Asker]
    ) -> None:
        stand_in.answer = lambda request, body: (
            problem(503, "InternalServerException") if request.path.endswith("2.0") else (200, b"1")
        )
        stand_in.routing.publish(replace(self.CANARY, percent=100.0))
        asker = front()
        assert asker.ask().content == b"1"
        assert stand_in.asked == ["2.0", "1.0"]
        noted = (asker.settings.run_dir / OUTCOMES).read_text().splitlines()
        assert [line.split()[1:3] for line in noted] == [["2.0", "1"], ["1.0", "0"]]
        assert asker.ask(f"{ANSWERS}/2.0").status_code == 503

    def test_a_paused_version_and_a_service_that_starts_are_waited_for(
        self, stand_in: StandIn, front: Callable[..., Asker]
    ) -> None:
        asker = front()
        until = time.time() + 0.5
        stand_in.routing.publish(Routing("1.0", ("1.0",), paused={"1.0": until}))
        assert asker.ask().status_code == 200
        assert time.time() >= until
        stand_in.routing.withdraw()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(asker.ask)
            time.sleep(0.3)
            assert not waiting.done()
            stand_in.routing.publish(Routing("2.0", ("2.0",)))
            assert waiting.result().status_code == 200
        assert stand_in.asked[-1] == "2.0"
        # Nobody holds for an hour: the clock was set back.
        stand_in.routing.publish(Routing("1.0", ("1.0",), paused={"1.0": time.time() + 3600}))
        assert asker.ask().status_code == 200

    def test_what_a_dying_worker_interrupts_is_asked_once_more(
        self, stand_in: StandIn, front: Callable[..., Asker]
    ) -> None:
        asker = front()
        stand_in.refuse(500, "InternalServerException", "Worker died.")
        assert problem_of(asker.ask()) == (503, "ServiceUnavailable")
        assert len(stand_in.requests) == 2

    def test_torchserve_s_errors_are_translated(
        self, stand_in: StandIn, front: Callable[..., Asker]
    ) -> None:
        asker = front()
        for status, kind, expected in (
            (503, "ServiceUnavailableException", (429, "ServiceBusy")),
            (503, "InternalServerException", (503, "ServiceUnavailable")),
            (500, "ErrorDataDecoderException", (400, "BadRequest")),
            (500, "ArrayIndexOutOfBoundsException", (400, "BadRequest")),
            (500, "NullPointerException", (503, "ServiceUnavailable")),
            (404, "ModelNotFoundException", (404, "NotServed")),
            (405, "MethodNotAllowedException", (502, "ServiceError")),
        ):
            stand_in.refuse(status, kind)
            assert problem_of(asker.ask(f"{ANSWERS}/1.0")) == expected

    def test_a_new_token_is_waited_for(
        self, stand_in: StandIn, front: Callable[..., Asker]
    ) -> None:
        asker = front()
        stand_in.answer = lambda request, body: (
            (200, b"{}")
            if request.headers["Authorization"] == "Bearer second"
            else problem(400, "InvalidKeyException")
        )
        header = asker.settings.run_dir / tokens.HEADER_FILE
        write = threading.Timer(0.4, header.write_text, ["Authorization: Bearer second\n"])
        write.start()
        assert asker.ask().status_code == 200
        write.join()
        assert [token for _, token in stand_in.requests] == ["Bearer first", "Bearer second"]


class TestNodes:
    def test_the_next_one_is_asked_where_one_fails(
        self, stand_in: StandIn, front: Callable[..., Asker]
    ) -> None:
        seen: list[tuple[Any, ...]] = []

        def answer(request: http.server.BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
            headers = request.headers
            seen.append((request.path, headers["X-API-Key"], headers["Authorization"], body))
            return 200, b"{}"

        stand_in.answer = answer
        well = stand_in.settings.inference_port
        with failing_server() as broken:
            nodes = ",".join(f"http://127.0.0.1:{port}" for port in (broken, well))
            asker = front(EDGE_NODES=nodes)
            found = [asker.ask(body=b"image").status_code for _ in range(9)]
        assert found == 9 * [200]
        assert set(seen) == {(ANSWERS, asker.key, None, b"image")}

    def test_an_edge_before_an_edge(self, asker: Asker, image: bytes, tmp_path: Path) -> None:
        settings = asker.settings.model_copy(update={"run_dir": tmp_path / "front"})
        front = run_edge(
            settings,
            EDGE_NODES=asker.edge.url,
            EDGE_NODES_CA=str(asker.edge.certificate),
            EDGE_KEYS=str(asker.settings.run_dir / "edge-keys.json"),
        )
        with Outside(front, settings) as outside:
            response = outside.ask(f"{ANSWERS}/1.0", image, key=asker.key)
            assert response.json()["label"] == "NEUTROPHIL"
            assert response.headers["X-Model-Version"] == "1.0"
            named = outside.ask(ANSWERS, b"", key=asker.key, headers={"X-Request-ID": "both"})
            assert problem_of(named) == (400, "EmptyImage")
            assert outside.ask("/readyz", None, "GET").json() == {"status": "ok"}
        assert [line["client"] for line in asker.log() if line["request_id"] == "both"] == ["lab"]


class TestWatch:
    @staticmethod
    def told(asker: Asker) -> dict[str, float]:
        registry = CollectorRegistry()
        registry.register(exporter.Edge(asker.settings))
        return {each.name: each.samples[0].value for each in registry.collect()}

    def test_it_is_watched_until_it_is_told_to_close(self, front: Callable[..., Asker]) -> None:
        asker = front()
        seen = self.told(asker)
        assert seen["bloodcells_edge_up"] == 1
        year = certificates.DAYS * edge_module.DAY
        assert seen["bloodcells_certificate_seconds"] == pytest.approx(year, abs=1000)
        asker.edge.stop()
        assert self.told(asker) == {}

    def test_one_whose_nginx_is_killed_is_missed(self, front: Callable[..., Asker]) -> None:
        asker = front()
        [nginx] = psutil.Process(asker.edge.process.pid).children()
        nginx.kill()
        assert asker.edge.process.wait(30) == 1
        assert "nginx was killed (signal 9)" in asker.edge.printed.read_text()
        # Nor do its workers serve on.
        port = int(asker.edge.url.rpartition(":")[2])
        wait(lambda: not listens(port))
        assert self.told(asker)["bloodcells_edge_up"] == 0

    def test_one_that_is_killed_is_missed(self, front: Callable[..., Asker]) -> None:
        asker = front()
        asker.edge.process.kill()
        asker.edge.process.wait(30)
        port = int(asker.edge.url.rpartition(":")[2])
        wait(lambda: not listens(port))
        assert self.told(asker)["bloodcells_edge_up"] == 0

    def test_keys_that_can_not_be_read_are_told(self, front: Callable[..., Asker]) -> None:
        asker = front()
        assert self.told(asker)["bloodcells_edge_keys_readable"] == 1
        (asker.settings.run_dir / "edge-keys.json").write_text("{")
        assert self.told(asker)["bloodcells_edge_keys_readable"] == 0

    def test_doctor_looks_at_it(self, front: Callable[..., Asker]) -> None:
        asker = front()

        def found() -> list[tuple[str, str]]:
            return [
                (each.state, each.what)
                for each in doctor.check_edge(doctor.Patient(asker.settings))
            ]

        days = certificates.DAYS - 1
        assert found() == [
            (doctor.OK, f"it answers at {asker.edge.url.removeprefix('https://')}"),
            (doctor.OK, f"its certificate is valid for {days + 1} days"),
        ]
        (asker.settings.run_dir / "edge-keys.json").write_text("{")
        assert doctor.PROBLEM in dict(found())
        asker.edge.process.kill()
        asker.edge.process.wait(30)
        wait(lambda: "does not answer" in found()[0][1])


class TestLog:
    def test_tells_of_each_request_and_of_no_person(self, asker: Asker, image: bytes) -> None:
        sent = {"X-Request-ID": "logged", "traceparent": TRACE}
        asker.ask(f"{ANSWERS}/1.0?person=somebody", image, headers=sent)
        asker.ask(key="wrong-key-wrong-key", body=image)
        (line,) = [each for each in asker.log() if each["request_id"] == "logged"]
        assert line["traceparent"] == TRACE
        assert (line["client"], line["status"], line["version"]) == ("lab", 200, "1.0")
        assert (line["path"], line["method"]) == (f"{ANSWERS}/1.0", "POST")
        assert {each["address"] for each in asker.log()} <= set(KNOWN_ADDRESSES)
        text = asker.edge.log.read_text()
        token = Tokens(asker.settings.run_dir).header("inference")["Authorization"].split()[1]
        for secret in (asker.key, "wrong-key-wrong-key", token, "somebody"):
            assert secret not in text


class TestTLS:
    @pytest.mark.parametrize(
        ("version", "opens"),
        [
            (ssl.TLSVersion.TLSv1_1, False),
            (ssl.TLSVersion.TLSv1_2, True),
            (ssl.TLSVersion.TLSv1_3, True),
        ],
    )
    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
    def test_is_at_least_1_2(self, asker: Asker, version: ssl.TLSVersion, opens: bool) -> None:
        context = ssl.create_default_context(cafile=str(asker.edge.certificate))
        # Else this side would refuse the old one by itself.
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        port = int(asker.edge.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            if opens:
                context.wrap_socket(plain, server_hostname="localhost").close()
            else:
                with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
                    context.wrap_socket(plain, server_hostname="localhost")

    def test_a_new_certificate_is_followed(
        self, tmp_path: Path, front: Callable[..., Asker]
    ) -> None:
        pair = tmp_path / "a.pem", tmp_path / "a.key"
        names = ("DNS:localhost,IP:127.0.0.1", "lab")
        certificates.sign(*pair, *names)
        asker = front(EDGE_CERTIFICATE=str(pair[0]), EDGE_CERTIFICATE_KEY=str(pair[1]))
        port = int(asker.edge.url.rpartition(":")[2])

        def shown() -> str:
            return ssl.get_server_certificate(("127.0.0.1", port))

        assert shown() == pair[0].read_text()
        # One that can't be read leaves the last ones.
        pair[1].unlink()
        certificates.sign(*pair, *names)
        wait(lambda: shown() == pair[0].read_text())

    def test_our_own_is_made_anew_where_it_must(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def made(host: str = "127.0.0.1") -> bytes:
            pair = edge_module._certificate(edge_module.EdgeSettings(host=host), tmp_path)
            return b"".join(path.read_bytes() for path in pair)

        first = made()
        assert made() == first
        other = made("edge.example")
        assert other != first
        # Clients know it by its file: it is not exchanged for want of an openssl.
        with monkeypatch.context() as without:
            without.setenv("PATH", "")
            assert made("edge.example") == other
        soon = time.time() + (certificates.DAYS - certificates.LAST_DAYS + 1) * edge_module.DAY
        monkeypatch.setattr(time, "time", lambda: soon)
        assert made("edge.example") != other

    def test_the_key_of_the_certificate_is_our_own(self, asker: Asker) -> None:
        private = asker.edge.certificate.with_suffix(".key")
        assert stat.S_IMODE(private.stat().st_mode) == 0o600


class TestSettings:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"EDGE_NODES": "somewhere"},
            {"EDGE_NODES": "http://10.0.0.1:8443"},
            {"EDGE_NODES": "http://a:1,https://b:2"},
            {"EDGE_NODES": "https://a:1"},
            {"EDGE_RATE": "0"},
            {"EDGE_PAGE": "no"},
            {"EDGE_FRONT": "10.0.0.0/8;"},
            {"EDGE_NODES_TIMEOUT": "66"},
            {"EDGE_HOST": "a; b"},
            {"EDGE_CERTIFICATE": str(ROOT / "Makefile")},
            {"EDGE_CERTIFICATE": "/nowhere", "EDGE_CERTIFICATE_KEY": "/nowhere"},
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in wrong.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SettingsError):
            edge_module.EdgeSettings.from_environment()

    def test_a_second_one_needs_a_folder_of_its_own(self, asker: Asker) -> None:
        before = (asker.settings.run_dir / "edge" / "edge.conf").read_text()
        (port,) = free_ports(1)
        done = subprocess.run(
            [sys.executable, "-m", "serving", "edge"],
            cwd=ROOT,
            env=environment_of(asker.settings) | {"EDGE_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert "An edge already runs" in done.stderr
        assert (asker.settings.run_dir / "edge" / "edge.conf").read_text() == before

    def test_a_taken_port_is_told(self, asker: Asker, tmp_path: Path) -> None:
        port = asker.edge.url.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "serving", "edge"],
            cwd=ROOT,
            env=environment_of(asker.settings) | {"EDGE_PORT": port, "RUN_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert f"port {port}" in done.stderr


class TestOverTime:
    def test_tokens_rotate_and_the_edge_closes_without_loss(
        self, tmp_path: Path, image: bytes
    ) -> None:
        """Tokens live for six seconds here; the load lasts until two were followed."""
        need_nginx()
        config = tmp_path / "config.properties"
        usual = (ROOT / "config.properties").read_text()
        config.write_text(usual.replace("token_expiration_min=60", "token_expiration_min=0.1"))
        running = run_service(free_settings(tmp_path / "run").model_copy(update={"config": config}))
        asker = Outside(run_edge(running.settings, EDGE_RATE="5000"), running.settings)
        header = running.settings.run_dir / tokens.HEADER_FILE
        seen, failed, done = {header.read_text()}, [], threading.Event()

        def load() -> int:
            count = 0
            while not done.is_set():
                count += 1
                response = asker.ask(f"{ANSWERS}/1.0", image)
                if response.status_code != 200:
                    failed.append(response.text)
            return count

        try:
            with ThreadPoolExecutor(8) as pool:
                loads = [pool.submit(load) for _ in range(8)]
                try:
                    wait(lambda: seen.add(header.read_text()) or len(seen) == 3)
                finally:
                    done.set()
                assert all(each.result() for each in loads)
            assert failed == []
            self._drains(asker, image)
        finally:
            asker.close()
            running.stop()

    def _drains(self, asker: Asker, image: bytes) -> None:
        port = int(asker.edge.url.rpartition(":")[2])
        management = ManagementClient(asker.settings)
        with ThreadPoolExecutor() as pool, stopped_workers(asker, "1.0") as resume:
            waiting = [pool.submit(asker.ask, f"{ANSWERS}/1.0", image) for _ in range(4)]
            # The first is with the worker, alone or with some; the others wait in the queue.
            wait(lambda: management.describe("1.0")["jobQueueStatus"]["pendingRequests"] >= 2)
            asker.edge.process.send_signal(signal.SIGTERM)
            wait(lambda: not listens(port))
            assert not any(each.done() for each in waiting)
            resume()
            assert [each.result().status_code for each in waiting] == 4 * [200]
        assert asker.edge.process.wait(30) == 0
        assert asker.edge.printed.read_text().endswith("the edge is closed\n")


def wait(until: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return False
    return True


@contextlib.contextmanager
def stopped_workers(asker: Asker, version: str) -> Iterator[Callable[[], None]]:
    """Stop a version's workers, so that what is asked of them waits; yield what wakes them."""
    described = ManagementClient(asker.settings).describe(version)
    workers = [psutil.Process(worker["pid"]) for worker in described["workers"]]

    def resume() -> None:
        for worker in workers:
            worker.resume()

    for worker in workers:
        worker.suspend()
    try:
        yield resume
    finally:
        resume()


@contextlib.contextmanager
def failing_server() -> Iterator[int]:
    """Run a node that answers 503 to everything; yield its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(503)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()

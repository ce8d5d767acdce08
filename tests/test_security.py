"""The running service as an attacker sees it: ports, paths, tokens, files and logs.

SECURITY.md states what must hold. The edge's own paths and limits are in test_edge.py.
"""

from __future__ import annotations

import http.client
import json
import stat
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import requests
from conftest import free_settings
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from serving.client import ManagementClient
from serving.settings import ROOT
from serving.torchserve.tokens import HEADER_FILE, KEY_FILE
from testing.service import Service, run_service

pytestmark = pytest.mark.live

BYTES = {"Content-Type": "application/octet-stream"}
REFUSED = (400, "InvalidKeyException")
MARK = "Xk7mark"
SECRETS = dict.fromkeys(
    ["FRONTEND_SECRET_KEY", "DATABASE_PASSWORD", "aws_session_token", "SOME_CREDENTIALS"], MARK
)
# Variables that could make TorchServe unsafe.
HOSTILE = {
    "TS_DISABLE_TOKEN_AUTHORIZATION": "true",
    "TS_ENABLE_MODEL_API": "true",
    "TS_INSTALL_PY_DEP_PER_MODEL": "true",
    "TS_ALLOWED_URLS": ".*",
    "TS_INFERENCE_ADDRESS": "http://0.0.0.0:8080",
}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service without the model API, with secrets and TS_* in its environment."""
    folder = tmp_path_factory.mktemp("closed")
    config = folder / "config.properties"
    usual = (ROOT / "config.properties").read_text()
    config.write_text(usual.replace("enable_model_api=true", "enable_model_api=false"))
    settings = free_settings(folder / "run").model_copy(update={"config": config})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SECRETS | HOSTILE).items():
            patch.setenv(name, value)
        running = run_service(settings)
    yield running
    running.stop()


def headers(service: Service) -> dict[str, dict[str, str]]:
    """Return the header of each kind of client: no token, a wrong one, each of the three."""
    keys = json.loads((service.settings.run_dir / KEY_FILE).read_text())
    tokens = {name: f"Bearer {keys[name]['key']}" for name in ("inference", "management", "API")}
    return {
        "none": {},
        "wrong": {"Authorization": "Bearer wrongkey"},
        **{name: {"Authorization": token} for name, token in tokens.items()},
    }


def ask(
    port: int, request: str, header: dict[str, str], body: bytes | None = None
) -> tuple[int, str]:
    """Send `METHOD PATH` without any normalization; return the status and type of the answer."""
    method, path = request.split(" ", 1)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, header)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    try:
        return response.status, json.loads(content).get("type", "")
    except (ValueError, AttributeError):
        return response.status, ""


def processes(service: Service) -> list[psutil.Process]:
    parent = psutil.Process(service.process.pid)
    return [parent, *parent.children(recursive=True)]


def listening(service: Service) -> tuple[set[tuple[str, int]], set[str]]:
    """Return where a service listens: TCP and UDP addresses, and paths of Unix sockets."""
    connections = [each for one in processes(service) for each in one.net_connections("all")]
    internet = {
        (each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)
        for each in connections
        # A bound UDP socket receives, too.
        if each.status == psutil.CONN_LISTEN or (each.type.name == "SOCK_DGRAM" and each.laddr)
    }
    unix = {each.laddr for each in connections if each.family.name == "AF_UNIX" and each.laddr}
    return internet, unix


def loopback_ports(service: Service) -> set[tuple[str, int]]:
    return {("127.0.0.1", port) for port in service.settings.ports.values()}


NOT_FOUND = (404, "ResourceNotFoundException")
NO_METHOD = (405, "MethodNotAllowedException")
NO_IMAGE = (415, "UnsupportedImage")
OK = (200, "")
# Answered on every port of TorchServe without a token: a description of its API.
OPEN = {
    "GET /": NO_METHOD,
    "TRACE /": NO_METHOD,
    "OPTIONS /": OK,
    "GET /api-description": OK,
}
# Each path is requested on each port. A port gives these answers to the holder of its token, and
# NOT_FOUND for all other paths.
WITH_INFERENCE_TOKEN = {
    "GET /ping": OK,
    "POST /predictions/bloodcells": NO_IMAGE,
    "GET /predictions/bloodcells": (400, "EmptyImage"),
    "POST /predictions/bloodcells/1.0/x/../y": NO_IMAGE,
    "POST /predictions/bloodcells/..": (404, "ModelVersionNotFoundException"),
    "POST /explanations/bloodcells": NO_IMAGE,
    "POST /invocations?model_name=bloodcells": NO_IMAGE,
    "POST /models/bloodcells/invoke": NO_IMAGE,
    "POST /v1/models/bloodcells:predict": NO_IMAGE,
    "POST /v2/models/bloodcells/infer": NO_IMAGE,
    "POST /wfpredict/x": (404, "WorkflowNotFoundException"),
}
WITH_MANAGEMENT_TOKEN = {
    "GET /models": OK,
    "GET /models/bloodcells": OK,
    "GET /models/../models": (404, "ModelNotFoundException"),
    "GET /v1/models/bloodcells": OK,
    "PUT /models/bloodcells/9.9?min_worker=1": (404, "ModelVersionNotFoundException"),
    "GET /workflows": OK,
    "POST /workflows?url=x.war": (404, "WorkflowNotFoundException"),
    "POST /models/bloodcells/invoke": NO_METHOD,
    "POST /v1/models/bloodcells:predict": NO_METHOD,
}
ELSEWHERE = ("GET /metrics", "GET /admin", "GET //models", "GET /../../etc/passwd", "GET /v2")
TOKEN = "GET /token?type=inference"
PATHS = {*WITH_INFERENCE_TOKEN, *WITH_MANAGEMENT_TOKEN, *ELSEWHERE}
PAGE = {
    "GET /": 200,
    "GET /models/..%2f..%2fetc": 404,
    "GET /static/%2e%2e/%2e%2e/.run/key_file.json": 404,
    "GET /metrics": 404,
    "GET /predictions/bloodcells": 404,
    "GET /?__debugger__=yes&cmd=resource&f=style.css": 200,
    # Without the token of its form.
    "POST /": 400,
    "DELETE /models": 405,
    "TRACE /": 405,
}
GRPC = "org.pytorch.serve.grpc"
GRPC_METHODS = {
    "inference": (
        f"/{GRPC}.inference.InferenceAPIsService",
        ("Ping", "Predictions", "StreamPredictions", "StreamPredictions2"),
    ),
    "management": (
        f"/{GRPC}.management.ManagementAPIsService",
        ("DescribeModel", "ListModels", "RegisterModel", "ScaleWorker", "UnregisterModel"),
    ),
}


class TestPorts:
    def test_only_those_of_the_settings_are_open(self, service: Service) -> None:
        internet, unix = listening(service)
        assert internet == loopback_ports(service)
        scratch = Path((service.settings.run_dir / "scratch").read_text())
        # The workers', for Java only.
        assert {Path(path).parent for path in unix} == {scratch}
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o700

    @pytest.mark.parametrize(
        ("owner", "intended"),
        [("inference", WITH_INFERENCE_TOKEN), ("management", WITH_MANAGEMENT_TOKEN)],
    )
    def test_each_accepts_its_own_token_only(
        self, service: Service, owner: str, intended: dict[str, tuple[int, str]]
    ) -> None:
        port = getattr(service.settings, f"{owner}_port")
        for who, header in headers(service).items():
            expected = {
                path: intended.get(path, NOT_FOUND) if who == owner else REFUSED for path in PATHS
            } | OPEN
            got = {path: ask(port, path, header | BYTES, _body(path)) for path in expected}
            assert got == expected, who

    def test_the_metrics_port_has_metrics_only(self, service: Service) -> None:
        port = service.settings.metrics_port
        for who, header in headers(service).items():
            expected = dict.fromkeys({*PATHS, TOKEN}, NOT_FOUND) | OPEN | {"GET /metrics": OK}
            assert {path: ask(port, path, header) for path in expected} == expected, who

    def test_only_the_api_token_renews_tokens(self, service: Service) -> None:
        port, before = service.settings.management_port, headers(service)
        for who in ("none", "wrong", "inference", "management"):
            assert ask(port, TOKEN, before[who]) == REFUSED
        assert headers(service) == before
        assert ask(port, TOKEN, before["API"]) == OK
        assert headers(service)["inference"] != before["inference"]
        # The old one is invalid at once.
        assert ask(service.settings.inference_port, "GET /ping", before["inference"]) == REFUSED

    @pytest.mark.parametrize("owner", GRPC_METHODS)
    def test_grpc_requires_the_same_tokens(self, service: Service, owner: str) -> None:
        port = getattr(service.settings, f"grpc_{owner}_port")
        api, methods = GRPC_METHODS[owner]
        for method in methods:
            for who, header in headers(service).items():
                code = call(port, f"{api}/{method}", header)
                assert (code == "PERMISSION_DENIED") == (who != owner), (method, who, code)
        assert call(port, "/grpc.reflection.v1.ServerReflection/x", {}) == "UNIMPLEMENTED"

    @pytest.mark.parametrize("owner", GRPC_METHODS)
    def test_grpc_parses_no_message_without_a_token(self, service: Service, owner: str) -> None:
        """CVE-2022-3171: parsing a message can take very long."""
        port = getattr(service.settings, f"grpc_{owner}_port")
        api, (method, *_) = GRPC_METHODS[owner]
        # A field whose length is missing.
        malformed = b"\x0a"
        codes = {
            who: call(port, f"{api}/{method}", header, malformed)
            for who, header in headers(service).items()
        }
        assert codes.pop(owner) not in ("OK", "PERMISSION_DENIED")
        assert set(codes.values()) == {"PERMISSION_DENIED"}

    def test_the_page_has_no_other_paths(self, service: Service) -> None:
        port = service.settings.frontend_port
        assert {path: ask(port, path, {})[0] for path in PAGE} == PAGE


def call(port: int, method: str, header: dict[str, str], message: bytes = b"") -> str:
    """Call a method by gRPC; return the name of the status."""
    metadata = [("protocol", "gRPC"), *((name.lower(), value) for name, value in header.items())]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(message, metadata=metadata, timeout=60)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def _body(path: str) -> bytes | None:
    asks = ("predict", "explain", "explanations", "invoke", "invocations", "infer")
    return b"x" if path.startswith("POST") and any(word in path for word in asks) else None


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Write a folder that TorchServe accepts as a model, whose code creates the file `ran`."""
    folder = tmp_path / "planted"
    (folder / "MAR-INF").mkdir(parents=True)
    model = {"modelName": "planted", "modelVersion": "1.0", "handler": "planted.py"}
    manifest = {"runtime": "python", "model": model}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return folder


def register(service: Service, url: str, who: str) -> int:
    return requests.post(
        f"{service.settings.management_url}/models",
        params={"url": url, "model_name": "planted", "initial_workers": "1"},
        headers=headers(service)[who],
        timeout=60,
    ).status_code


class TestManagement:
    def test_a_folder_can_be_registered_with_the_management_token_only(
        self, service: Service, planted: Path
    ) -> None:
        """TorchServe 0.12.0 accepts any folder from its holder, whatever `allowed_urls` is."""
        for who in ("none", "wrong", "inference", "API"):
            assert register(service, str(planted), who) == 400
        assert not (planted.parent / "ran").exists()

    def test_without_the_model_api_nothing_can_be_registered(
        self, closed: Service, planted: Path
    ) -> None:
        archives = closed.settings.archives
        for url in (str(planted), f"{archives}/bloodcells-1.0.mar", "bloodcells-1.0.mar"):
            assert register(closed, url, "management") == 405
        assert not (planted.parent / "ran").exists()
        owner = headers(closed)["management"]
        port = closed.settings.management_port
        assert ask(port, "DELETE /models/bloodcells/1.0", owner) == NO_METHOD
        method = f"{GRPC_METHODS['management'][0]}/RegisterModel"
        assert call(closed.settings.grpc_management_port, method, owner) == "PERMISSION_DENIED"
        assert "1.0" in ManagementClient(closed.settings).versions()

    def test_the_environment_gives_settings_and_secrets_to_no_process(
        self, closed: Service
    ) -> None:
        assert ask(closed.settings.inference_port, "GET /ping", {}) == REFUSED
        assert listening(closed)[0] == loopback_ports(closed)
        for process in processes(closed)[1:]:
            is_page = process.cmdline()[-1] == "frontend"
            assert is_page or not HOSTILE.keys() & process.environ().keys()
        workers = [
            each for each in processes(closed) if "model_service_worker" in each.cmdline()[1]
        ]
        assert len(workers) >= 2
        for worker in workers:
            assert not SECRETS.keys() & worker.environ().keys()
            assert MARK not in "".join(worker.environ().values())


class TestSecrets:
    def test_files_are_for_their_owner_only(self, service: Service) -> None:
        run_dir = service.settings.run_dir
        for path in [run_dir, *run_dir.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0, path
            # Our worker program is not secret.
            if path.is_file() and "torchserve-code" not in path.parts:
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path

    def test_nothing_that_is_sent_is_logged_or_shown(self, service: Service) -> None:
        answers = send_marks(service)
        for answer in answers:
            assert answer.status_code in (200, 400, 415), answer.text
            assert MARK.lower() not in (answer.text + str(answer.headers)).lower()
        # TorchServe itself quotes a request to its client.
        quoting = send_quoted_marks(service)
        assert {answer.status_code for answer in quoting} == {400, 404, 500}
        written = everything_written(service)
        commands = str([process.cmdline() for process in processes(service)])
        assert "a request failed in " in written
        assert MARK.lower() not in written.lower()
        shown = "".join(answer.text for answer in [*answers, *quoting])
        assert not [token for token in tokens_of(service) if token in written + shown + commands]
        for internal in (str(ROOT), "site-packages", "Traceback", "\tat ", "/tmp/"):
            assert internal not in shown


def tokens_of(service: Service) -> list[str]:
    values = headers(service).values()
    tokens = [value["Authorization"].split()[1] for value in values if value]
    return [token for token in tokens if token != "wrongkey"]


def everything_written(service: Service) -> str:
    """Return what the service printed and logged, and all other text in RUN_DIR."""
    paths = [service.printed, *service.settings.run_dir.rglob("*")]
    files = [path for path in paths if path.is_file() and path.name not in (KEY_FILE, HEADER_FILE)]
    assert any(path.name == "torchserve.log" for path in files)
    return "\n".join(path.read_bytes().decode(errors="replace") for path in files)


def send_marks(service: Service) -> list[requests.Response]:
    """Send the mark wherever a request can contain text."""
    address = f"{service.settings.inference_url}/predictions/bloodcells"
    owner = headers(service)["inference"]
    header = {f"X-{MARK}": MARK, "describe": MARK, "explain": MARK, "User-Agent": MARK}
    part = f'--b\r\nContent-Disposition: form-data; name="{MARK}'
    bodies: list[dict[str, Any]] = [
        {"data": MARK.encode(), "headers": BYTES | header, "params": {MARK: MARK}},
        {"data": b"x", "headers": BYTES | {"Authorization": f"Bearer {MARK}"}},
        {"data": b"x", "headers": {"Content-Type": f"text/{MARK}; charset={MARK}"}},
        {"data": f"a={MARK}", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"data": f'{{"{MARK}', "headers": {"Content-Type": "application/json"}},
        {"data": part.encode(), "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        {"json": {"instances": [{"b64": f"{MARK}!"}, {MARK: 1}, MARK], MARK: MARK}},
        {"files": {MARK: (f"../{MARK}.png", image_with_mark(), f"image/{MARK}")}},
    ]
    return [
        requests.post(address, timeout=60, **{**body, "headers": owner | body.get("headers", {})})
        for body in bodies
    ]


def send_quoted_marks(service: Service) -> list[requests.Response]:
    """Send the mark where TorchServe quotes it or fails, and to the page."""
    inference = service.settings.inference_url
    owner = headers(service)["inference"]
    disposition = 'Content-Disposition: form-data; name="a"; filename="f"'
    part = f"--b\r\n{disposition}\r\nContent-Type: text/plain; charset={MARK}\r\n\r\nx\r\n--b--\r\n"
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    predict = f"{inference}/predictions/bloodcells"
    # The name of the file contains a line break.
    hostile = {"image": (f"{MARK}\r\n.png", MARK.encode(), "image/png")}
    return [
        requests.post(f"{predict}/{MARK}%0aERROR", b"x", headers=owner | BYTES, timeout=60),
        requests.post(f"{inference}/{MARK}", b"x", headers=owner | BYTES, timeout=60),
        requests.post(predict, part.encode(), headers=owner | multipart, timeout=60),
        requests.post(predict, f"a%zz={MARK}".encode(), headers=owner | form, timeout=60),
        requests.post(f"{service.frontend_url}/api/predictions", files=hostile, timeout=60),
        requests.get(f"{service.frontend_url}/{MARK}", timeout=60),
    ]


def image_with_mark() -> bytes:
    """Return an image whose metadata contain the mark."""
    notes, file = PngInfo(), BytesIO()
    notes.add_text("Comment", MARK)
    Image.new("RGB", (80, 60), "white").save(file, "PNG", pnginfo=notes)
    return file.getvalue()

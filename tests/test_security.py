"""The running service as an attacker sees it: ports, paths, tokens, files, and what logs hold.

What SECURITY.md promises; what other files of tests show already, that one refers to.
"""

from __future__ import annotations

import http.client
import json
import stat
from collections.abc import Iterator
from dataclasses import replace
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
from serving.settings import ROOT, Settings
from serving.torchserve.config import read_properties
from serving.torchserve.tokens import KEY_FILE
from testing.service import Service, run_service

BYTES = {"Content-Type": "application/octet-stream"}
REFUSED = (400, "InvalidKeyException")
NOBODY = ("none", "wrong")
MARK = "Xk7mark"
SECRETS = {
    "FRONTEND_SECRET_KEY": f"{MARK}-1",
    "DATABASE_PASSWORD": f"{MARK}-2",
    "aws_session_token": f"{MARK}-3",
    "SOME_CREDENTIALS": f"{MARK}-4",
}
# What these would do must not happen.
HOSTILE = {
    "TS_DISABLE_TOKEN_AUTHORIZATION": "true",
    "TS_ENABLE_MODEL_API": "true",
    "TS_INSTALL_PY_DEP_PER_MODEL": "true",
    "TS_ALLOWED_URLS": ".*",
    "TS_INFERENCE_ADDRESS": "http://0.0.0.0:8080",
}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service with the model API off, secrets and TS_* in its environment, a lax umask."""
    folder = tmp_path_factory.mktemp("closed")
    config = folder / "config.properties"
    usual = (ROOT / "config.properties").read_text()
    config.write_text(usual.replace("enable_model_api=true", "enable_model_api=false"))
    settings = replace(free_settings(folder / "run"), config=config)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SECRETS | HOSTILE).items():
            patch.setenv(name, value)
        running = run_service(settings)
    yield running
    running.stop()


def headers(service: Service) -> dict[str, dict[str, str]]:
    """Return what each of those who ask sends: no token, a wrong one, each of the three."""
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
    """Send `METHOD PATH` as it is written; return the status and the type of the answer."""
    method, path = request.split(" ", 1)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
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


def family(service: Service) -> list[psutil.Process]:
    parent = psutil.Process(service.process.pid)
    return [parent, *parent.children(recursive=True)]


def listening(service: Service) -> tuple[set[tuple[str, int]], set[str]]:
    """Return where the processes of a service listen: TCP addresses, and paths of sockets."""
    connections = [each for process in family(service) for each in process.net_connections("all")]
    internet = {
        (each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)
        for each in connections
        # A UDP socket that is bound receives, too.
        if each.status == psutil.CONN_LISTEN or (each.type.name == "SOCK_DGRAM" and each.laddr)
    }
    unix = {each.laddr for each in connections if each.family.name == "AF_UNIX" and each.laddr}
    return internet, unix


NOT_FOUND = (404, "ResourceNotFoundException")
NO_METHOD = (405, "MethodNotAllowedException")
NO_IMAGE = (415, "UnsupportedImage")
OK = (200, "")
# Answered on every port of TorchServe, to anybody: a description of its API.
OPEN = {
    "GET /": NO_METHOD,
    "TRACE /": NO_METHOD,
    "OPTIONS /": OK,
    "GET /api-description": OK,
}
# Each is asked on each port; what is not named for a port is not there. The holders of the
# port's token get these answers, and nobody else does.
WITH_INFERENCE_TOKEN = {
    "GET /ping": OK,
    "POST /predictions/bloodcells": NO_IMAGE,
    "GET /predictions/bloodcells": (400, "EmptyImage"),
    "POST /predictions/bloodcells/1.0": NO_IMAGE,
    "POST /predictions/bloodcells/1.0/x/../y": NO_IMAGE,
    "POST /predictions/bloodcells/..": (404, "ModelVersionNotFoundException"),
    "POST /predictions/..%2f..%2fetc": (404, "ModelNotFoundException"),
    "POST /explanations/bloodcells": NO_IMAGE,
    "POST /invocations?model_name=bloodcells": NO_IMAGE,
    "POST /models/bloodcells/invoke": NO_IMAGE,
    "POST /bloodcells/predict": NO_IMAGE,
    "POST /v1/models/bloodcells:predict": NO_IMAGE,
    "POST /v2/models/bloodcells/infer": NO_IMAGE,
    "POST /wfpredict/x": (404, "WorkflowNotFoundException"),
}
WITH_MANAGEMENT_TOKEN = {
    "GET /models": OK,
    "GET /models/bloodcells": OK,
    "GET /models/../models": (404, "ModelNotFoundException"),
    "OPTIONS /models/bloodcells": OK,
    "GET /v1/models/bloodcells": OK,
    "PUT /models/bloodcells/9.9?min_worker=1": (404, "ModelVersionNotFoundException"),
    "PUT /models/bloodcells/9.9/set-default": (404, "ModelVersionNotFoundException"),
    "GET /workflows": OK,
    "POST /workflows?url=x.war": (404, "WorkflowNotFoundException"),
    "POST /models/bloodcells/invoke": NO_METHOD,
    "POST /v1/models/bloodcells:predict": NO_METHOD,
}
ELSEWHERE = [
    "GET /metrics",
    "GET /admin",
    "GET //models",
    "GET /MODELS",
    "GET /../../etc/passwd",
    "GET /%2e%2e/%2e%2e/etc/passwd",
    "GET /v2",
    "GET /v2/health/ready",
]
TOKEN = "GET /token?type=inference"
PATHS = {*WITH_INFERENCE_TOKEN, *WITH_MANAGEMENT_TOKEN, *ELSEWHERE}


class TestOutside:
    def test_only_the_ports_of_the_settings_are_open(self, service: Service) -> None:
        internet, unix = listening(service)
        assert internet == {("127.0.0.1", port) for port in service.settings.ports.values()}
        scratch = (service.settings.run_dir / "scratch").read_text()
        # The workers', each for Java alone.
        assert {Path(path).parent for path in unix} == {Path(scratch)}
        assert stat.S_IMODE(Path(scratch).stat().st_mode) == 0o700

    @pytest.mark.parametrize(
        ("name", "owner", "intended"),
        [
            ("inference_port", "inference", WITH_INFERENCE_TOKEN),
            ("management_port", "management", WITH_MANAGEMENT_TOKEN),
        ],
    )
    def test_only_the_ports_own_token_opens_it(
        self, service: Service, name: str, owner: str, intended: dict[str, tuple[int, str]]
    ) -> None:
        port = getattr(service.settings, name)
        for who, header in headers(service).items():
            expected = {
                path: intended.get(path, NOT_FOUND) if who == owner else REFUSED for path in PATHS
            } | OPEN
            got = {path: ask(port, path, header | BYTES, _body(path)) for path in expected}
            assert got == expected, who

    def test_the_metrics_port_has_nothing_else(self, service: Service) -> None:
        for who, header in headers(service).items():
            expected = dict.fromkeys({*PATHS, TOKEN}, NOT_FOUND) | OPEN | {"GET /metrics": OK}
            port = service.settings.metrics_port
            assert {path: ask(port, path, header) for path in expected} == expected, who

    def test_only_the_api_token_renews_tokens(self, service: Service) -> None:
        port, before = service.settings.management_port, headers(service)
        for who in ("none", "wrong", "inference", "management"):
            assert ask(port, TOKEN, before[who]) == REFUSED
        assert headers(service) == before
        assert ask(port, TOKEN, before["API"]) == OK
        assert headers(service)["inference"] != before["inference"]
        # The old one is over at once.
        assert ask(service.settings.inference_port, "GET /ping", before["inference"]) == REFUSED

    def test_grpc_asks_for_the_same_tokens(self, service: Service) -> None:
        package = "org.pytorch.serve.grpc"
        settings = service.settings
        for port, api, owner, methods in (
            (
                settings.grpc_inference_port,
                f"{package}.inference.InferenceAPIsService",
                "inference",
                ["Ping", "Predictions", "StreamPredictions", "StreamPredictions2"],
            ),
            (
                settings.grpc_management_port,
                f"{package}.management.ManagementAPIsService",
                "management",
                [
                    "DescribeModel",
                    "ListModels",
                    "RegisterModel",
                    "ScaleWorker",
                    "SetDefault",
                    "UnregisterModel",
                ],
            ),
        ):
            for method in methods:
                for who, header in headers(service).items():
                    code = call(port, f"/{api}/{method}", header)
                    assert (code == "PERMISSION_DENIED") == (who != owner), (method, who, code)
            assert call(port, "/grpc.reflection.v1.ServerReflection/x", {}) == "UNIMPLEMENTED"

    def test_the_page_has_no_other_addresses(self, service: Service) -> None:
        port = service.settings.frontend_port
        expected = {
            "GET /": 200,
            "GET /healthz": 200,
            "GET /readyz": 200,
            "GET /models": 200,
            "GET /models/1.0": 200,
            "GET /models/..%2f..%2fetc": 404,
            "GET /samples/..%2f..%2fconfig.properties": 404,
            "GET /samples/../config.properties": 404,
            "GET /static/../__init__.py": 404,
            "GET /static/..%2f__init__.py": 404,
            "GET /static/%2e%2e/%2e%2e/.run/key_file.json": 404,
            "GET /static/....//....//__init__.py": 404,
            "GET /static/%5c..%5c__init__.py": 404,
            "GET /language/xx": 404,
            "GET /metrics": 404,
            "GET /predictions/bloodcells": 404,
            "GET /console": 404,
            "GET /?__debugger__=yes&cmd=resource&f=style.css": 200,
            # Without its form's token.
            "POST /": 400,
            "POST /api/predictions": 400,
            "POST /api/explanations": 400,
            "PUT /": 405,
            "DELETE /models": 405,
            "TRACE /": 405,
        }
        assert {path: ask(port, path, {})[0] for path in expected} == expected

    @pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "page.sample"])
    def test_the_page_redirects_to_itself_alone(self, service: Service, target: str) -> None:
        address = f"{service.frontend_url}/language/en"
        answer = requests.get(
            address,
            params={"to": target},
            headers={"Referer": "https://evil.example", "X-Forwarded-Host": "evil.example"},
            allow_redirects=False,
            timeout=30,
        )
        assert (answer.status_code, answer.headers["Location"]) == (303, "/")

    def test_a_body_beyond_the_pages_limit_is_refused(self, service: Service) -> None:
        connection = http.client.HTTPConnection(
            "127.0.0.1", service.settings.frontend_port, timeout=30
        )
        # Said, not sent: it is refused before it is read.
        connection.putrequest("POST", "/api/predictions")
        connection.putheader("Content-Length", str(1 << 40))
        connection.putheader("Content-Type", "multipart/form-data; boundary=b")
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()


def call(port: int, method: str, header: dict[str, str]) -> str:
    """Call a method by gRPC with an empty message; return the name of the status."""
    metadata = [("protocol", "gRPC"), *((name.lower(), value) for name, value in header.items())]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(b"", metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def _body(path: str) -> bytes | None:
    asks = ("predict", "explain", "explanations", "invoke", "invocations", "infer")
    return b"x" if path.startswith("POST") and any(word in path for word in asks) else None


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Write a folder that TorchServe takes for a model, whose code leaves a file."""
    folder = tmp_path / "planted"
    (folder / "MAR-INF").mkdir(parents=True)
    model = {"modelName": "planted", "modelVersion": "1.0", "handler": "planted.py"}
    manifest = {"runtime": "python", "model": model}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return folder


def register(service: Service, url: str, who: str) -> requests.Response:
    return requests.post(
        f"{service.settings.management_url}/models",
        params={"url": url, "model_name": "planted", "initial_workers": "1"},
        headers=headers(service)[who],
        timeout=60,
    )


class TestManagement:
    @pytest.mark.parametrize("who", [*NOBODY, "inference", "API"])
    def test_a_folder_is_no_archive_for_others(
        self, service: Service, planted: Path, who: str
    ) -> None:
        """0.12.0 takes any folder, whatever `allowed_urls` says, from the management token."""
        assert register(service, str(planted), who).status_code == 400
        assert not (planted.parent / "ran").exists()

    def test_a_closed_model_api_registers_nothing(self, closed: Service, planted: Path) -> None:
        archives = closed.settings.archives
        for url in (str(planted), f"{archives}/bloodcells-1.0.mar", "bloodcells-1.0.mar"):
            assert register(closed, url, "management").status_code == 405
        assert not (planted.parent / "ran").exists()
        models = f"{closed.settings.management_url}/models/bloodcells/1.0"
        owner = headers(closed)["management"]
        assert requests.delete(models, headers=owner, timeout=30).status_code == 405
        code = call(
            closed.settings.grpc_management_port,
            "/org.pytorch.serve.grpc.management.ManagementAPIsService/RegisterModel",
            owner,
        )
        assert code == "PERMISSION_DENIED"
        assert "1.0" in ManagementClient(closed.settings).versions()

    def test_no_environment_variable_overrides_the_settings(self, closed: Service) -> None:
        header = headers(closed)["none"]
        assert ask(closed.settings.inference_port, "GET /ping", header) == REFUSED
        assert listening(closed)[0] == {
            ("127.0.0.1", port) for port in closed.settings.ports.values()
        }
        for process in family(closed)[1:]:
            assert not HOSTILE.keys() & process.environ().keys() or is_page(process)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("install_py_dep_per_model", "false"),
            ("enable_envvars_config", "false"),
            ("use_env_allowed_urls", "false"),
            ("disable_token_authorization", "false"),
            ("allowed_urls", "^$"),
        ],
    )
    def test_the_settings_in_force_are_the_safe_ones(
        self, service: Service, key: str, value: str
    ) -> None:
        config = read_properties(service.settings.run_dir / "config.properties")
        assert config[key] == value
        # The workflows' folder is not there, so that none can be in it.
        assert not Path(config["workflow_store"]).exists()


def is_page(process: psutil.Process) -> bool:
    return process.cmdline()[-1] == "frontend"


class TestSecrets:
    def test_workers_inherit_no_secret(self, closed: Service) -> None:
        workers = [
            process for process in family(closed) if "model_service_worker" in process.cmdline()[1]
        ]
        assert len(workers) >= 2
        for worker in workers:
            environment = worker.environ()
            assert not SECRETS.keys() & environment.keys()
            assert MARK not in "".join(environment.values())

    def test_no_command_line_holds_a_token(self, service: Service) -> None:
        commands = "\n".join(" ".join(process.cmdline()) for process in family(service))
        for token in tokens_of(service):
            assert token not in commands

    def test_files_are_for_their_owner_alone(self, service: Service) -> None:
        run_dir = service.settings.run_dir
        for path in [run_dir, *run_dir.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0, path
            # Our worker's program is no secret.
            if path.is_file() and "torchserve-code" not in path.parts:
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path

    def test_nothing_that_is_sent_comes_out_elsewhere(self, service: Service) -> None:
        for answer in send_marks(service):
            assert answer.status_code in (200, 400, 415), answer.text
            assert MARK.lower() not in (answer.text + str(answer.headers)).lower()
        # These answers of TorchServe itself quote what was asked, to the one who asked.
        quoting = send_quoted_marks(service)
        assert {answer.status_code for answer in quoting} == {400, 404, 500}
        written = everything_written(service)
        assert "a request failed in " in written
        assert MARK.lower() not in written.lower()
        for token in tokens_of(service):
            assert token not in written
            assert all(token not in answer.text for answer in quoting)

    def test_a_failure_shows_no_path_and_no_traceback(self, service: Service) -> None:
        for answer in [*send_marks(service), *send_quoted_marks(service)]:
            for inside in (str(ROOT), "site-packages", "Traceback", "\tat ", "/tmp/"):
                assert inside not in answer.text


def tokens_of(service: Service) -> list[str]:
    values = headers(service).values()
    tokens = [value["Authorization"].split()[1] for value in values if value]
    return [token for token in tokens if token != "wrongkey"]


def everything_written(service: Service) -> str:
    """Return what the service printed and logged, and what else it left in files of text."""
    kept = (KEY_FILE, "inference.header")
    paths = [service.printed, *service.settings.run_dir.rglob("*")]
    files = [path for path in paths if path.is_file() and path.name not in kept]
    assert any(path.name == "torchserve.log" for path in files)
    return "\n".join(path.read_bytes().decode(errors="replace") for path in files)


def send_marks(service: Service) -> list[requests.Response]:
    """Send marked text wherever a request of a client can hold some."""
    address = f"{service.settings.inference_url}/predictions/bloodcells"
    owner = headers(service)["inference"]
    header = BYTES | {f"X-{MARK}": MARK, "describe": MARK, "explain": MARK, "User-Agent": MARK}
    part = f'--b\r\nContent-Disposition: form-data; name="{MARK}'
    bodies: list[dict[str, Any]] = [
        {"data": MARK.encode(), "headers": header},
        {"data": b"x", "headers": BYTES, "params": {MARK: MARK}},
        {"data": b"x", "headers": BYTES | {"Authorization": f"Bearer {MARK}"}},
        {"data": b"x", "headers": {"Content-Type": f"text/{MARK}; charset={MARK}"}},
        {"data": f"a={MARK}", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"data": f'{{"{MARK}', "headers": {"Content-Type": "application/json"}},
        {"data": part.encode(), "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        {"json": {"instances": [{"b64": f"{MARK}!"}, {MARK: 1}, MARK], MARK: MARK}},
        {"files": {MARK: (f"{MARK}.png", MARK.encode(), f"image/{MARK}")}},
        {"files": {MARK: (f"../{MARK}.png", noted_image(), "image/png")}},
    ]
    answers = []
    for body in bodies:
        sent = {**body, "headers": owner | body.get("headers", {})}
        answers.append(requests.post(address, timeout=30, **sent))
    return answers


def send_quoted_marks(service: Service) -> list[requests.Response]:
    """Send marked text that is quoted in the answer, or makes TorchServe fail, or is the page's."""
    inference = service.settings.inference_url
    owner = headers(service)["inference"]
    disposition = 'Content-Disposition: form-data; name="a"; filename="f"'
    part = f"--b\r\n{disposition}\r\nContent-Type: text/plain; charset={MARK}\r\n\r\nx\r\n--b--\r\n"
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    predict = f"{inference}/predictions/bloodcells"
    # A name of a file that would be a line of its own.
    hostile = {"image": (f"{MARK}\r\n.png", MARK.encode(), "image/png")}
    return [
        requests.post(f"{predict}/{MARK}%0aERROR", b"x", headers=owner | BYTES, timeout=30),
        requests.post(f"{inference}/{MARK}", b"x", headers=owner | BYTES, timeout=30),
        requests.post(predict, part.encode(), headers=owner | multipart, timeout=30),
        requests.post(predict, f"a%zz={MARK}".encode(), headers=owner | form, timeout=30),
        requests.post(f"{service.frontend_url}/api/predictions", files=hostile, timeout=30),
        requests.get(f"{service.frontend_url}/{MARK}", timeout=30),
    ]


def noted_image() -> bytes:
    """Return an image whose metadata hold the mark."""
    notes, file = PngInfo(), BytesIO()
    notes.add_text("Comment", MARK)
    Image.new("RGB", (80, 60), "white").save(file, "PNG", pnginfo=notes)
    return file.getvalue()


def test_the_default_settings_listen_on_loopback_alone() -> None:
    config = read_properties(Settings().config)
    addresses = {name: value for name, value in config.items() if name.endswith("_address")}
    assert len(addresses) == 5
    for value in addresses.values():
        assert value.removeprefix("http://").partition(":")[0] == "127.0.0.1"

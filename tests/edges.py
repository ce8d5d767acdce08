"""A client of an edge, and edges over a stand-in for TorchServe that tests share."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from stand_in import StandIn

from serving.edge import certificates
from serving.edge.keys import MAY, KeyFile
from serving.settings import Settings
from testing.service import Edge, run_edge

HAS_NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


# Files of keys with wrong types; HASH stands for the hash of a key.
ENTRY: dict[str, Any] = {"client": "lab", "allow": ["predict"]}
DAMAGED: list[Any] = [
    [],
    "HASH",
    *(
        {"HASH": each}
        for each in (
            None,
            [],
            "lab",
            {"client": "lab"},
            ENTRY | {"client": None},
            ENTRY | {"client": ""},
            ENTRY | {"client": 1},
            ENTRY | {"client": "a b"},
            ENTRY | {"allow": "predict"},
            ENTRY | {"allow": None},
            ENTRY | {"allow": ["predict", "x"]},
            ENTRY | {"allow": ["predict", 1]},
            ENTRY | {"allow": [1]},
            ENTRY | {"revoked": False},
            ENTRY | {"revoked": ""},
        )
    ),
]


def need_nginx() -> None:
    """Skip without nginx, but not in CI."""
    if not HAS_NGINX and not os.environ.get("CI"):
        pytest.skip("nginx is not installed")


class Asker:
    """A client of an edge, with the key of `lab`."""

    def __init__(self, edge: Edge, settings: Settings, stand_in: StandIn | None = None) -> None:
        self.edge, self.settings, self.stand_in = edge, settings, stand_in
        self.port = int(edge.url.rpartition(":")[2])
        self.keys = KeyFile(settings.run_dir / "edge-keys.json")
        self.key = self.keys.add("lab", MAY)
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(edge.certificate)

    def ask(
        self,
        path: str = "/predictions/bloodcells",
        body: Any = b"x",
        method: str = "POST",
        key: str | None = "",
        **kwargs: Any,
    ) -> requests.Response:
        """Send a request, with the key of `lab` unless another or None is given."""
        headers = kwargs.pop("headers", {})
        if key is not None:
            headers = {"X-API-Key": key or self.key, **headers}
        return self.session.request(
            method, self.edge.url + path, data=body, headers=headers, timeout=60, **kwargs
        )

    def get(self, path: str, **kwargs: Any) -> requests.Response:
        """Get without a key."""
        return self.ask(path, None, "GET", None, **kwargs)

    def exchange(self, data: bytes) -> bytes:
        """Send bytes, and return the whole answer."""
        with self.connect() as connection:
            connection.sendall(data)
            return connection.makefile("rb").read()

    def raw(self, data: bytes, address: str = "127.0.0.1") -> bytes:
        """Send bytes from an address, and return the answer up to the end of its JSON."""
        received = b""
        with self.connect(address) as connection:
            connection.sendall(data)
            try:
                while b"}" not in received and (part := connection.recv(65536)):
                    received += part
            except ConnectionError:
                pass
        return received

    def head(self, *lines: str, path: str = "/predictions/bloodcells", key: str = "") -> bytes:
        """Return the head of a POST request, with the key of `lab` unless another is given."""
        first = (f"POST {path} HTTP/1.1", "Host: a", f"X-API-Key: {key or self.key}")
        return "\r\n".join((*first, *lines, "\r\n")).encode()

    def connect(self, address: str = "127.0.0.1") -> ssl.SSLSocket:
        """Connect from an address of this machine, which are many (127.0.0.0/8)."""
        context = ssl.create_default_context(cafile=str(self.session.verify))
        plain = socket.create_connection(("127.0.0.1", self.port), 60, (address, 0))
        return context.wrap_socket(plain, server_hostname="localhost")

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=60).close()
        except ConnectionError:
            return False
        return True

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.edge.log.read_text().splitlines()]

    def logged(self, request_id: str) -> dict[str, Any]:
        """Return the line of a request, which is written after the answer."""

        def lines() -> list[dict[str, Any]]:
            return [each for each in self.log() if each["request_id"] == request_id]

        wait(lines)
        (line,) = lines()
        return line

    def close(self) -> None:
        self.session.close()
        if self.edge.process.poll() is None:
            self.edge.stop()
        if self.stand_in:
            self.stand_in.__exit__()


def edge_over_stand_in(run_dir: Path, **variables: str) -> Asker:
    """Start an edge over a stand-in for TorchServe and for the page."""
    need_nginx()
    run_dir.mkdir(exist_ok=True)
    stand_in = StandIn(run_dir)
    page = {"frontend_port": stand_in.settings.inference_port}
    settings = stand_in.settings.model_copy(update=page)
    return Asker(run_edge(settings, **variables), settings, stand_in)


class Configured:
    """An edge whose settings all differ from the defaults."""

    def __init__(self, folder: Path) -> None:
        self.pair = folder / "certificate.pem", folder / "certificate.key"
        certificates.create(*self.pair, ["localhost", "127.0.0.1"])
        self.keys = KeyFile(folder / "keys.json")
        self.mounted = folder / "mounted.json"
        self.key = self.add_key("first")
        left = folder / "run" / "edge" / "in-flight"
        left.mkdir(parents=True)
        (left / "1.0~1~left").touch()
        self.edge = edge_over_stand_in(
            folder / "run",
            EDGE_CERTIFICATE=str(self.pair[0]),
            EDGE_CERTIFICATE_KEY=str(self.pair[1]),
            EDGE_KEYS=str(self.mounted),
            EDGE_RATE="1",
            EDGE_PAGE="off",
            EDGE_FRONT="127.0.0.0/8",
            FRONTEND_PORT="1",
        )
        self.edge.session.verify = str(self.pair[0])

    def add_key(self, name: str) -> str:
        """Add a key as Kubernetes updates a Secret: a link then leads to another file."""
        key = self.keys.add(name)
        link, copy = self.mounted.with_suffix(".new"), self.mounted.with_name(name)
        shutil.copy(self.keys._path, copy)
        link.symlink_to(copy)
        link.replace(self.mounted)
        return key


def wait(until: Callable[[], object]) -> None:
    """Wait until a condition is true; only a hang reaches the limit."""
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def problem_of(response: requests.Response) -> tuple[int, str]:
    """Return status and type of an error, which must have the project's format."""
    document = response.json()
    assert set(document) == {"code", "type", "message"}
    assert document["code"] == response.status_code
    assert response.headers["Content-Type"] == "application/json"
    return response.status_code, document["type"]

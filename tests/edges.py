"""The edge as tests ask it: by name and key, by raw bytes, over what stands in for TorchServe."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
from typing import Any

import pytest
import requests

from serving.edge.keys import MAY, KeyFile
from serving.settings import Settings
from testing.service import Edge

HAS_NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def need_nginx() -> None:
    """Skip without nginx, but not in CI."""
    if not HAS_NGINX and not os.environ.get("CI"):
        pytest.skip("no nginx")


class Asker:
    """Asks an edge, as a client with a key."""

    def __init__(self, edge: Edge, settings: Settings) -> None:
        self.edge = edge
        self.settings = settings
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

    def raw(self, data: bytes) -> bytes:
        """Send bytes as they are; return what comes until the edge closes, or pauses."""
        with self.connect() as connection:
            connection.sendall(data)
            received = b""
            try:
                while part := connection.recv(65536):
                    received += part
                    if b"}" in part:
                        break
            except (ConnectionError, TimeoutError):
                pass
            return received

    def connect(self) -> ssl.SSLSocket:
        port = int(self.edge.url.rpartition(":")[2])
        context = ssl.create_default_context(cafile=str(self.edge.certificate))
        plain = socket.create_connection(("127.0.0.1", port), timeout=30)
        return context.wrap_socket(plain, server_hostname="localhost")

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.edge.log.read_text().splitlines()]

    def close(self) -> None:
        self.session.close()
        if self.edge.process.poll() is None:
            self.edge.stop()


def problem_of(response: requests.Response) -> tuple[int, str]:
    """Return status and type of an error, which must be of the project's shape."""
    document = response.json()
    assert set(document) == {"code", "type", "message"}
    assert document["code"] == response.status_code
    assert response.headers["Content-Type"] == "application/json"
    return response.status_code, document["type"]

"""What stands in for the service behind the page, and what its tests send."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from types import SimpleNamespace
from typing import Any

from flask import Flask
from PIL import Image
from waitress import wasyncore
from werkzeug.test import encode_multipart

from frontend.__main__ import bind
from serving.client import ServiceError
from serving.deployment.routing import Routing

SECRET = "upstream said: /srv/secret/model.py line 7"
HEAT_MAP = "aGVhdA=="

CONFIDENT = {
    "model": "bloodcells",
    "version": "1.0",
    "label": "NEUTROPHIL",
    "verdict": "confident",
    "probabilities": {
        "EOSINOPHIL": 0.0213,
        "LYMPHOCYTE": 0.0007,
        "MONOCYTE": 0.0101,
        "NEUTROPHIL": 0.9679,
    },
}


class StandIn:
    """A client of the inference service that answers what it is told to."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = dict(CONFIDENT)
        self.error: Exception | None = None
        self.images: list[bytes] = []
        self.versions: list[str | None] = []
        self.clients: list[str | None] = []
        self.serves: Routing | None = Routing("1.0", ("1.0",))
        self.routing = SimpleNamespace(read=lambda: self.serves)

    def predict(
        self, image: bytes, version: str | None = None, client: str | None = None
    ) -> dict[str, Any]:
        """Return the answer, or raise the error."""
        self.images.append(image)
        self.versions.append(version)
        self.clients.append(client)
        if self.error:
            raise self.error
        return self.answer

    def explain(self, image: bytes, version: str) -> dict[str, Any]:
        """Return the answer with a heat map, or raise the error."""
        return self.predict(image, version) | {"heat_map": HEAT_MAP}

    def check_ready(self) -> None:
        """Raise the error, if any."""
        if self.error:
            raise self.error


def failure(kind: str) -> ServiceError:
    """Return an error of a kind, whose status and message must never reach a person."""
    return ServiceError(599, kind, SECRET)


def picture(kind: str = "PNG", size: tuple[int, int] = (80, 60)) -> bytes:
    """Return a small image of a kind."""
    file = BytesIO()
    Image.new("RGB", size, (200, 170, 190)).save(file, kind)
    return file.getvalue()


def token(page: str) -> str:
    """Return the CSRF token of a page."""
    match = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert match
    return match[1]


def encoded(data: dict[str, Any]) -> dict[str, Any]:
    """Return a form as the test client takes it, whose own would put large ones into files."""
    boundary, body = encode_multipart(data)
    return {"data": body, "content_type": f'multipart/form-data; boundary="{boundary}"'}


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    """Serve a page by waitress, as `python -m frontend` does; yield its address."""
    server = bind(app, 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.effective_port}"
    # By the thread that waits on these connections: it would fail if another closed them.
    server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map))
    thread.join(timeout=30)
    server.task_dispatcher.shutdown()

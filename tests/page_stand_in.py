"""A stand-in for the service behind the page, which answers or fails as a test configures."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from flask import Flask
from PIL import Image
from waitress import wasyncore
from werkzeug.test import encode_multipart

from frontend import create_app, samples
from frontend.__main__ import bind
from serving.client import ServiceError
from serving.deployment.routing import Routing
from training.protocol import FIELD_CLASSES

if TYPE_CHECKING:
    from playwright.sync_api import Page

SECRET = "upstream said: /srv/secret/model.py line 7"

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
    """A client of the inference service that gives the answer that a test sets."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = dict(CONFIDENT)
        self.error: Exception | None = None
        self.images: list[bytes] = []
        self.versions: list[str | None] = []
        self.clients: list[str | None] = []
        self.embeddings: list[Container[str]] = []
        self.checks = 0
        self.serves: Routing | None = Routing("1.0", ("1.0",))
        self.routing = SimpleNamespace(read=lambda: self.serves)

    def predict(
        self,
        image: bytes,
        version: str | None = None,
        client: str | None = None,
        embeddings: Container[str] = (),
    ) -> dict[str, Any]:
        """Return the answer, or raise the error."""
        self.embeddings.append(embeddings)
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
        self.checks += 1
        if self.error:
            raise self.error


class DrawingsStandIn(StandIn):
    """A service that knows the drawings: a cell each, four in the field, none among red cells."""

    def __init__(self) -> None:
        super().__init__()
        self.serves = Routing("3.0", ("1.0", "3.0"))
        self.classes: tuple[str, ...] = FIELD_CLASSES

    def predict(
        self,
        image: bytes,
        version: str | None = None,
        client: str | None = None,
        embeddings: Container[str] = (),
    ) -> dict[str, Any]:
        """Return the answer for a drawing; raise the error of a file that is not an image."""
        super().predict(image, version, client, embeddings)
        drawn = samples.drawn()
        drawing = next((each for each in drawn if image.startswith(each.path.read_bytes())), None)
        if drawing is None:
            raise failure("UnsupportedImage")
        several = FIELD_CLASSES if drawing.name.startswith("field") else ()
        labels = [drawing.label] if drawing.label else several
        cells = [
            self.cell(label, 0.9 - 0.1 * index, [100 + 100 * index, 60, 180 + 100 * index, 140])
            for index, label in enumerate(labels)
        ]
        best = cells[0] if cells else self.cell(None, 0.4)
        version = version or "3.0"
        if version in embeddings:
            # Cells of the same drawing are alike, and others are not.
            place = [float(each == drawing) for each in drawn]
            cells = [cell | {"embedding": place} for cell in cells]
        return {"model": "bloodcells", "version": version, **best, "cells": cells}

    def cell(self, label: str | None, top: float, box: list[int] | None = None) -> dict[str, Any]:
        """Return a cell of an answer: uncertain below 0.65, rejected without a label."""
        verdict = "rejected" if label is None else "confident" if top > 0.65 else "uncertain"
        rest = (1 - top) / (len(self.classes) - 1)
        shares = dict.fromkeys(self.classes, rest) | {label or self.classes[0]: top}
        found = {"label": label, "verdict": verdict, "probabilities": shares}
        return found | {"box": box} if box else found


def failure(kind: str) -> ServiceError:
    """Return an error of a kind, whose status and message must never reach a visitor."""
    return ServiceError(599, kind, SECRET)


def picture(kind: str = "PNG", size: tuple[int, int] = (80, 60)) -> bytes:
    """Return a small image of a kind."""
    file = BytesIO()
    Image.new("RGB", size, (200, 170, 190)).save(file, kind)
    return file.getvalue()


def copies(folder: Path, image: Path, count: int) -> list[Path]:
    """Write files that show the same image, but differ: the page adds the same file once."""
    written = [folder / f"{number}-{image.name}" for number in range(count)]
    for number, path in enumerate(written):
        path.write_bytes(image.read_bytes() + b"%d" % number)
    return written


HEAT_MAP = base64.b64encode(picture()).decode()


def token(page: str) -> str:
    """Return the CSRF token of a page."""
    match = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert match
    return match[1]


def encoded(data: dict[str, Any]) -> dict[str, Any]:
    """Return a form in memory; the test client's own would write large ones to files."""
    boundary, body = encode_multipart(data)
    return {"data": body, "content_type": f'multipart/form-data; boundary="{boundary}"'}


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    """Serve a page by waitress, as `python -m frontend` does; yield its address."""
    server = bind(app, 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.effective_port}"
    # In the thread that polls these connections: it would fail if another closed them. The lock
    # keeps it from closing the trigger, too, before that is pulled.
    with server.trigger.lock:
        server.trigger.thunks.append(lambda: wasyncore.close_all(server._map))
        server.trigger._physical_pull()
    thread.join(timeout=60)
    server.task_dispatcher.shutdown()


@contextmanager
def serving_drawings() -> Iterator[tuple[str, DrawingsStandIn]]:
    """Serve a page whose service knows the drawings; yield its address and that service."""
    service = DrawingsStandIn()
    with serving(create_app({"CLIENT": service})) as address:
        yield address, service


def choose(page: Page, *images: Path) -> None:
    """Choose images in the browser; where the page has no script, send the form, too."""
    send = page.locator("button[type=submit]")
    without_script = send.is_visible()
    if not without_script:
        page.wait_for_selector("#image[multiple]", state="attached")
    page.locator("#image").set_input_files(list(images))
    if without_script:
        send.click()


def choose_and_wait(page: Page, *images: Path) -> None:
    """Choose images, and wait until all are analysed."""
    choose(page, *images)
    page.wait_for_selector(".workbench[aria-busy=false]")


def save_count(page: Page, folder: Path) -> Path:
    """Save the count to a file in a folder, and return it."""
    with page.expect_download() as download:
        page.locator("[data-do=project]").click()
    saved = folder / download.value.suggested_filename
    download.value.save_as(saved)
    return saved


def download_as(page: Page, format: str) -> Path:
    """Export the count in a format, and return the file."""
    page.locator("#format").select_option(format)
    with page.expect_download() as download:
        page.locator("[data-do=export]").click()
    return Path(download.value.path())

"""The page in front of a stand-in for its service, which answers or fails as configured."""

import base64
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from html import unescape
from io import BytesIO
from typing import Any

import pytest
import requests
import werkzeug.formparser
from flask import Flask
from flask.testing import FlaskClient
from page_stand_in import SECRET, StandIn, encoded, failure, picture, token
from PIL import Image
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse

from frontend import create_app, errors, images
from serving.client import NotServed
from serving.deployment.routing import Routing

MEBIBYTE = 1024 * 1024
SEVERAL = Routing("3.0", ("1.0", "10.0", "3.0"))


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


def send(
    client: FlaskClient,
    image: bytes | None,
    name: str = "cell.png",
    kind: str = "image/png",
    language: str = "en",
    **fields: str,
) -> TestResponse:
    """Send the form as a browser does."""
    headers = {"Accept-Language": language}
    data: dict[str, Any] = fields | {"csrf_token": token(client.get("/", headers=headers).text)}
    if image is not None:
        data["image"] = FileStorage(BytesIO(image), filename=name, content_type=kind)
    return client.post("/", headers=headers, **encoded(data))


def text(page: str) -> str:
    """Return the text that a visitor reads."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def title(kind: str) -> str:
    """Return the title of a problem in English."""
    return str(errors.UPLOAD[kind].title)


def bars(page: str) -> list[tuple[str, str]]:
    """Return the rows of the table of probabilities."""
    row = r'<th scope="row">(.*?)</th>.*?<span class="percent">(.*?)</span>'
    return re.findall(row, page, re.DOTALL)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_answer(client: FlaskClient, stand_in: StandIn, kind: str) -> None:
    image = picture(kind)
    # The type that the browser claims is not trusted.
    response = send(client, image, kind="text/html")
    assert response.status_code == 200
    assert stand_in.images == [image]
    assert f'src="{images.data_uri(image, f"image/{kind.lower()}")}"' in response.text
    assert bars(response.text) == [
        ("Neutrophil", "96.8%"),
        ("Eosinophil", "2.1%"),
        ("Monocyte", "1.0%"),
        ("Lymphocyte", "0.1%"),
    ]
    assert '<rect width="96.79"' in response.text
    assert "model bloodcells, version 1.0" in response.text
    assert response.headers["X-Model-Version"] == "1.0"
    assert response.text.count("Not for diagnosis") == 1
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("language", "verdict", "label", "heading", "percent"),
    [
        ("en", "uncertain", "NEUTROPHIL", "Uncertain Neutrophil?", "96.8%"),
        ("en", "rejected", None, "Not recognised Another cell type", "96.8%"),
        ("pt-BR", "confident", "NEUTROPHIL", "Neutrófilo", "96,8%"),
    ],
)
def test_verdicts(
    client: FlaskClient,
    stand_in: StandIn,
    language: str,
    verdict: str,
    label: str | None,
    heading: str,
    percent: str,
) -> None:
    stand_in.answer |= {"verdict": verdict, "label": label}
    response = send(client, picture(), language=language)
    assert response.status_code == 200
    assert f'<html lang="{language}">' in response.text
    assert heading in text(response.text)
    assert len(bars(response.text)) == 4
    assert bars(response.text)[0][1] == percent


def options(page: str) -> list[tuple[str, str]]:
    """Return the versions that the form offers: value and name, a star at the selected one."""
    choice = page.partition('<select id="version"')[2].partition("</select>")[0]
    found = re.findall(r'<option value="(.*?)" ?(selected)?>(.*?)</option>', choice)
    return [(value, name + "*" * bool(selected)) for value, selected, name in found]


def test_a_chosen_version_answers_and_stays_chosen(client: FlaskClient, stand_in: StandIn) -> None:
    for serves in (None, Routing("3.0", ("3.0",))):
        stand_in.serves = serves
        assert not options(client.get("/").text)
        assert not options(send(client, picture()).text)
    stand_in.versions.clear()
    stand_in.serves = SEVERAL
    assert options(client.get("/").text) == [
        ("", "recommended"),
        ("10.0", "version 10.0"),
        ("3.0", "version 3.0"),
        ("1.0", "version 1.0"),
    ]
    for fields, chosen in (({}, []), ({"version": ""}, []), ({"version": "1.0"}, ["1.0"])):
        page = send(client, picture(), **fields).text
        assert [value for value, name in options(page) if "*" in name] == chosen
    assert stand_in.versions == [None, None, "1.0"]
    # Also next to an error.
    for response in (send(client, None, version="1.0"), client.post("/", data={"version": "1.0"})):
        assert response.status_code == 400
        assert options(response.text)[-1] == ("1.0", "version 1.0*")
    stand_in.error = NotServed("0.9")
    response = send(client, picture(), version="0.9")
    assert response.status_code == 409
    assert title("NotServed") in response.text
    assert not any("*" in name for _, name in options(response.text))


def test_a_malformed_version_is_refused(client: FlaskClient, stand_in: StandIn) -> None:
    stand_in.serves = SEVERAL
    for version in ("../../models", "1.0/x", "1.0\n", " ", "é", "x" * 9999 + "?"):
        response = send(client, picture(), version=version)
        assert response.status_code == 409, version
        assert title("NotServed") in response.text
    assert not stand_in.images


def test_a_visitor_is_always_the_same_client(app: Flask, stand_in: StandIn) -> None:
    for visitor in (app.test_client(), app.test_client()):
        send(visitor, picture())
        visitor.get("/language/pt_BR")
        send(visitor, picture(), version="1.0")
    first, again, other, other_again = stand_in.clients
    assert first == again
    assert other == other_again
    assert len({None, first, other}) == 3


# The other kinds: test_api.
@pytest.mark.parametrize(
    ("raised", "kind", "status"),
    [
        ("ImageTooLarge", "ImageTooLarge", 413),
        ("ServiceBusy", "ServiceBusy", 503),
        ("NeverHeardOfIt", "ServiceError", 502),
        (None, None, 500),
    ],
)
def test_service_errors(
    client: FlaskClient, stand_in: StandIn, raised: str | None, kind: str | None, status: int
) -> None:
    stand_in.error = failure(raised) if raised else RuntimeError(SECRET)
    response = send(client, picture())
    assert response.status_code == status
    assert (title(kind) if kind else str(errors.PAGES[500].title)) in text(response.text)
    for hidden in (SECRET, "Traceback", "%("):
        assert hidden not in response.text
    assert "599" not in text(response.text)
    assert ('type="file"' in response.text) == bool(kind)
    assert ("Retry-After" in response.headers) == (status == 503)


@pytest.mark.parametrize(
    ("image", "name", "kind"),
    [
        (None, "", "NoImage"),
        (b"", "", "NoImage"),
        (b"", "cell.png", "EmptyImage"),
        (bytes(8 * MEBIBYTE + 1), "cell.png", "ImageTooLarge"),
        (bytes(9 * MEBIBYTE), "cell.png", "ImageTooLarge"),
    ],
)
def test_bad_uploads(
    client: FlaskClient, stand_in: StandIn, image: bytes | None, name: str, kind: str
) -> None:
    stand_in.serves = SEVERAL
    response = send(client, image, name)
    problem = errors.UPLOAD[kind]
    assert response.status_code == problem.status
    assert str(problem.advice).replace("%(limit)s", "8") in text(response.text)
    assert len(options(response.text)) == 4
    assert not stand_in.images


def test_csrf(client: FlaskClient, stand_in: StandIn) -> None:
    earlier = token(create_app({"CLIENT": stand_in}).test_client().get("/").text)
    for value in (None, "", "forged", earlier):
        client.get("/")
        data: dict[str, Any] = {"image": (BytesIO(picture()), "cell.png")}
        if value is not None:
            data["csrf_token"] = value
        response = client.post("/", data=data)
        assert response.status_code == 400
        assert title("ExpiredForm") in response.text
        assert not stand_in.images
    # The form on this error page works.
    again = {"image": (BytesIO(picture()), "cell.png"), "csrf_token": token(response.text)}
    assert client.post("/", data=again).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/language/xx", 404), ("PUT", "/", 405)],
)
def test_error_pages(client: FlaskClient, method: str, path: str, status: int) -> None:
    response = client.open(path, method=method)
    assert response.status_code == status
    assert f"<h1>{errors.PAGES[status].title}</h1>" in response.text
    assert response.mimetype == "text/html"
    assert ("Allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/", "/nowhere", "/healthz", "/static/js/page.js"])
def test_headers(client: FlaskClient, path: str) -> None:
    with client.get(path) as response:
        headers = response.headers
    policy = headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    expected = {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    assert expected.items() <= dict(headers).items()
    assert "camera=()" in headers["Permissions-Policy"]
    assert (headers["Cache-Control"] == "no-store") == (path != "/static/js/page.js")
    cookie = headers.get("Set-Cookie", "")
    assert bool(cookie) == (path == "/")
    assert not cookie or ("HttpOnly" in cookie and "SameSite=Lax" in cookie)


def test_nothing_inline_and_nothing_from_elsewhere(client: FlaskClient) -> None:
    for page in (client.get("/").text, send(client, picture()).text, client.get("/no").text):
        assert not re.search(
            r"<style|\sstyle=|\son\w+=|<script(?![^>]*\s(?:src=|type=\"application/json\"))", page
        )
        assert not re.search(r"""(?:src|href|action)=["'](?:https?:)?//""", page)


def test_hostile_file_names(client: FlaskClient) -> None:
    for name in ('"><script>alert(1)</script>.png', "' onerror='alert(1).png", "{{ 7 * 191 }}.png"):
        page = send(client, picture(), name=name).text
        assert "<script>alert" not in page
        assert "' onerror='" not in page
        assert "1337" not in text(page)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "svg+xml"),
        (b"<!doctype html><script>alert(1)</script>", "png"),
        (b"II*\0 no real TIFF", "tiff"),
    ],
)
def test_a_file_that_is_no_picture_is_not_shown(
    client: FlaskClient, image: bytes, kind: str
) -> None:
    page = send(client, image, kind=f"image/{kind}").text
    assert "data:" not in page.replace("data-", "")
    assert "placeholder-picture" in page


def test_tiff_is_shown_as_a_small_png(client: FlaskClient) -> None:
    large = picture("TIFF", (1600, 1200))
    assert 'src="data:image/png;base64,' in send(client, large, name="cell.tif").text
    address, size = images.shown(large)
    assert size == (1600, 1200)
    assert address
    with Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))) as png:
        assert (png.format, png.size) == ("PNG", (640, 480))


def test_a_file_that_is_expensive_to_read_is_not_read_by_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("read by Pillow")

    monkeypatch.setattr(Image, "open", refuse)
    start, rest = picture("JPEG")[:2], picture("JPEG")[2:]
    # Of 8 MB, Pillow joins the EXIF for a minute, and skips other segments for two seconds.
    for segment, size in ((b"\xff\xe1\0\x08Exif\0\0", None), (b"\xff\xe5\0\2", (80, 60))):
        assert images.shown(start + 1000 * segment + rest).size == size


def test_language_of_the_browser(client: FlaskClient) -> None:
    for header, language in (
        ("pt-BR", "pt-BR"),
        ("pt-PT,pt;q=0.9,en;q=0.8", "pt-BR"),
        ("en-GB,pt;q=0.9", "en"),
        ("fr,pt;q=0.5,en;q=0.4", "pt-BR"),
        ("pt;q=0,fr", "en"),
        ("*", "en"),
        ("", "en"),
    ):
        response = client.get("/", headers={"Accept-Language": header})
        assert f'<html lang="{language}">' in response.text, header
        assert {"Accept-Language", "Cookie"} <= set(response.vary.as_set(preserve_casing=True))


def test_language_switch(client: FlaskClient) -> None:
    response = client.get("/language/pt_BR?next=https://example.org")
    assert (response.status_code, response.location) == (303, "/")
    assert '<html lang="pt-BR">' in client.get("/").text
    client.get("/language/en")
    page = client.get("/", headers={"Accept-Language": "pt-BR"}).text
    assert '<html lang="en">' in page
    client.set_cookie("language", "../../etc")
    assert '<html lang="en">' in client.get("/").text


def test_healthz_and_readyz(client: FlaskClient, stand_in: StandIn) -> None:
    stand_in.error = failure("ServiceUnavailable")
    assert client.get("/healthz").json == {"status": "ok"}
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json == {"status": "unavailable", "type": "ServiceUnavailable"}


def test_upload_never_reaches_the_disk(
    address: str, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn
) -> None:
    opened: list[str] = []

    def refuse(*args: Any, **options: Any) -> Any:
        opened.append("a temporary file")
        raise OSError("no temporary files")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    monkeypatch.setattr(werkzeug.formparser, "SpooledTemporaryFile", refuse)
    image = picture("BMP").ljust(8 * MEBIBYTE, b"\0")
    with requests.Session() as session:
        page = session.get(address, timeout=60)
        assert "Server" not in page.headers
        data = {"csrf_token": token(page.text)}
        for body, status in ((image, 200), (image + image, 413), (picture("TIFF"), 200)):
            files = {"image": ("cell", body)}
            response = session.post(address, data=data, files=files, timeout=60)
            assert response.status_code == status
    assert stand_in.images == [image, picture("TIFF")]
    assert not opened


# Answers only when it reads a line.
HELD = """
import sys
from frontend import create_app
from frontend.__main__ import bind, run

class Held:
    def check_ready(self):
        print("asked", flush=True)
        sys.stdin.readline()

server = bind(create_app({"CLIENT": Held()}), 0)
print(server.effective_port, flush=True)
run(server)
"""


def test_open_requests_are_answered_before_it_stops() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HELD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdin
            assert process.stdout
            port = int(process.stdout.readline())
            statuses: list[int] = []

            def ask() -> None:
                answer = requests.get(f"http://127.0.0.1:{port}/readyz", timeout=60)
                statuses.append(answer.status_code)

            asking = threading.Thread(target=ask)
            asking.start()
            assert process.stdout.readline() == "asked\n"
            process.send_signal(signal.SIGTERM)
            refused = False
            while not refused:
                with socket.socket() as late:
                    refused = late.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
            assert not statuses
            process.stdin.write("answer\n")
            process.stdin.flush()
            asking.join(60)
            assert statuses == [200]
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_secret_key_from_environment(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    monkeypatch.setenv("FRONTEND_SECRET_KEY", "from outside")
    assert create_app({"CLIENT": stand_in}).config["SECRET_KEY"] == "from outside"


@pytest.mark.parametrize("parts", [5, 2000])
def test_too_many_parts(client: FlaskClient, parts: int) -> None:
    data = {f"part{number}": "x" for number in range(parts)}
    response = client.post("/", data=data, content_type="multipart/form-data")
    assert response.status_code == 413

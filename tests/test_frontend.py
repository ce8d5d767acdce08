"""The page without its service: a stand-in answers, or fails, as a test asks it to."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
import werkzeug.formparser
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.frontend import parse_mapping_cfg
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from flask import Flask
from flask.testing import FlaskClient
from page_stand_in import SECRET, StandIn, encoded, failure, picture, serving, token
from PIL import Image
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse

import frontend
from frontend import create_app, images
from serving.client import NotServed
from serving.deployment.routing import Routing

ROOT = Path(frontend.__file__).parent
CATALOG = ROOT / "translations" / "pt_BR" / "LC_MESSAGES"
MEBIBYTE = 1024 * 1024

PROBLEMS = [
    ("EmptyImage", 400, "The file is empty", "O arquivo está vazio"),
    ("CorruptImage", 400, "The image cannot be read", "Não foi possível ler a imagem"),
    ("ImageTooLarge", 413, "The image is too large", "A imagem é grande demais"),
    (
        "UnsupportedImage",
        415,
        "This kind of file is not supported",
        "Este tipo de arquivo não é aceito",
    ),
    ("NotServed", 409, "This version no longer answers", "Esta versão não responde mais"),
    (
        "ServiceUnavailable",
        503,
        "The model is not available at the moment",
        "O modelo não está disponível no momento",
    ),
    ("ServiceBusy", 503, "The model is busy", "O modelo está ocupado"),
    (
        "ServiceTimeout",
        504,
        "The model took too long to answer",
        "O modelo demorou demais para responder",
    ),
    (
        "ServiceError",
        502,
        "The model gave no usable answer",
        "O modelo não deu uma resposta utilizável",
    ),
    (
        "NeverHeardOfIt",
        502,
        "The model gave no usable answer",
        "O modelo não deu uma resposta utilizável",
    ),
]


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def address(app: Flask) -> Iterator[str]:
    """Serve the page."""
    with serving(app) as address:
        yield address


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
    """Return what a person reads of a page."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def cells(page: str) -> list[tuple[str, str]]:
    """Return the rows of the table of probabilities."""
    return re.findall(
        r'<th scope="row">(.*?)</th>.*?<span class="percent">(.*?)</span>', page, re.DOTALL
    )


def test_form(client: FlaskClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert 'type="file"' in response.text
    assert response.text.count("Not for diagnosis") == 1
    assert "not stored" in response.text


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_answer(client: FlaskClient, stand_in: StandIn, kind: str) -> None:
    image = picture(kind)
    # What the browser says of the file is not believed.
    response = send(client, image, kind="text/html")
    assert response.status_code == 200
    assert stand_in.images == [image]
    assert f'src="{images.data_uri(image, f"image/{kind.lower()}")}"' in response.text
    assert cells(response.text) == [
        ("Neutrophil", "96.8%"),
        ("Eosinophil", "2.1%"),
        ("Monocyte", "1.0%"),
        ("Lymphocyte", "0.1%"),
    ]
    assert '<rect width="96.79"' in response.text
    assert "The model is sure of this answer." in response.text
    assert "model bloodcells, version 1.0" in response.text
    assert response.text.count("Not for diagnosis") == 1


def test_answer_in_portuguese(client: FlaskClient) -> None:
    response = send(client, picture(), language="pt-BR")
    assert '<html lang="pt-BR">' in response.text
    assert cells(response.text) == [
        ("Neutrófilo", "96,8%"),
        ("Eosinófilo", "2,1%"),
        ("Monócito", "1,0%"),
        ("Linfócito", "0,1%"),
    ]
    assert "O modelo está seguro desta resposta." in response.text
    assert "Resposta do modelo bloodcells, versão 1.0" in response.text


@pytest.mark.parametrize(
    ("verdict", "label", "language", "heading", "badge"),
    [
        ("uncertain", "NEUTROPHIL", "en", "Neutrophil, perhaps", "Uncertain"),
        ("uncertain", "NEUTROPHIL", "pt", "Neutrófilo, talvez", "Incerto"),
        ("rejected", None, "en", "None of the four cells", "No answer"),
        ("rejected", None, "pt", "Nenhuma das quatro células", "Sem resposta"),
    ],
)
def test_verdicts(
    client: FlaskClient,
    stand_in: StandIn,
    verdict: str,
    label: str | None,
    language: str,
    heading: str,
    badge: str,
) -> None:
    stand_in.answer |= {"verdict": verdict, "label": label}
    response = send(client, picture(), language=language)
    assert response.status_code == 200
    assert f"{badge} {heading}" in text(response.text)
    assert f"<title>{heading}" in response.text
    assert len(cells(response.text)) == 4


def options(page: str) -> list[tuple[str, str]]:
    """Return the versions that the form offers: value and name, a star at what is selected."""
    choice = page.partition('<select id="version"')[2].partition("</select>")[0]
    found = re.findall(r'<option value="(.*?)" ?(selected)?>(.*?)</option>', choice)
    return [(value, name + "*" * bool(selected)) for value, selected, name in found]


SEVERAL = Routing("2.0", ("1.0", "10.0", "2.0"))


@pytest.mark.parametrize(
    ("language", "label", "offered"),
    [
        ("en", "Model version", ["recommended", "version 10.0", "version 2.0"]),
        ("pt-BR", "Versão do modelo", ["recomendada", "versão 10.0", "versão 2.0"]),
    ],
)
def test_versions_are_offered_newest_first(
    client: FlaskClient, stand_in: StandIn, language: str, label: str, offered: list[str]
) -> None:
    stand_in.serves = SEVERAL
    page = client.get("/", headers={"Accept-Language": language}).text
    assert f'<label for="version">{label}</label>' in page
    assert [value for value, _ in options(page)] == ["", "10.0", "2.0", "1.0"]
    assert [name for _, name in options(page)][:3] == offered


@pytest.mark.parametrize("serves", [None, Routing("2.0", ("2.0",))])
def test_without_a_choice_of_versions_none_is_offered(
    client: FlaskClient, stand_in: StandIn, serves: Routing | None
) -> None:
    stand_in.serves = serves
    for page in (client.get("/").text, send(client, picture()).text):
        assert 'type="file"' in page
        assert not options(page)


def test_the_routing_decides_unless_a_version_is_chosen(
    client: FlaskClient, stand_in: StandIn
) -> None:
    stand_in.serves = SEVERAL
    for page in (send(client, picture()).text, send(client, picture(), version="").text):
        assert not any("*" in name for _, name in options(page))
    assert stand_in.versions == [None, None]


def test_a_chosen_version_answers_and_stays_chosen(client: FlaskClient, stand_in: StandIn) -> None:
    stand_in.serves = SEVERAL
    page = send(client, picture(), version="1.0").text
    assert stand_in.versions == ["1.0"]
    assert options(page)[-1] == ("1.0", "version 1.0*")
    assert "*" not in options(client.get("/").text)[-1][1]


def test_a_chosen_version_stays_chosen_beside_a_problem(
    client: FlaskClient, stand_in: StandIn
) -> None:
    stand_in.serves = SEVERAL
    for response in (
        send(client, None, version="1.0"),
        client.post("/", data={"version": "1.0"}),
    ):
        assert response.status_code == 400
        assert options(response.text)[-1] == ("1.0", "version 1.0*")


def test_the_form_is_offered_again_after_too_large_a_body(
    client: FlaskClient, stand_in: StandIn
) -> None:
    stand_in.serves = SEVERAL
    response = send(client, bytes(9 * MEBIBYTE), version="1.0")
    assert response.status_code == 413
    assert len(options(response.text)) == 4


@pytest.mark.parametrize(
    "version", ["../../models", "1.0/x", "1.0\n", " ", "-1", "é", "x" * 9999 + "?"]
)
def test_what_is_no_version_is_refused(
    client: FlaskClient, stand_in: StandIn, version: str
) -> None:
    stand_in.serves = SEVERAL
    response = send(client, picture(), version=version)
    assert response.status_code == 409
    assert "This version no longer answers" in response.text
    assert not stand_in.images


def test_a_version_that_was_retired_meanwhile(client: FlaskClient, stand_in: StandIn) -> None:
    stand_in.serves, stand_in.error = SEVERAL, NotServed("0.9")
    response = send(client, picture(), version="0.9", language="pt-BR")
    assert response.status_code == 409
    assert "Esta versão não responde mais" in response.text
    assert "a versão recomendada responde" in response.text
    assert not any("*" in name for _, name in options(response.text))


def test_a_person_is_always_the_same_client(app: Flask, stand_in: StandIn) -> None:
    for person in (app.test_client(), app.test_client()):
        send(person, picture())
        person.get("/language/pt_BR")
        send(person, picture(), version="1.0")
    first, again, other, other_again = stand_in.clients
    assert first
    assert first == again
    assert other == other_again
    assert first != other


@pytest.mark.parametrize(
    ("version", "header"), [("2.0", "2.0"), ("2.0\r\nSet-Cookie: a=b", None), ("", None)]
)
def test_the_answer_names_its_version_in_a_header(
    client: FlaskClient, stand_in: StandIn, version: str, header: str | None
) -> None:
    stand_in.answer["version"] = version
    response = send(client, picture())
    assert response.status_code == 200
    assert response.headers.get("X-Model-Version") == header


@pytest.mark.parametrize(("kind", "status", "english", "portuguese"), PROBLEMS)
@pytest.mark.parametrize("language", ["en", "pt-BR"])
def test_service_errors(
    client: FlaskClient,
    stand_in: StandIn,
    kind: str,
    status: int,
    english: str,
    portuguese: str,
    language: str,
) -> None:
    stand_in.error = failure(kind)
    response = send(client, picture(), language=language)
    assert response.status_code == status
    assert (english if language == "en" else portuguese) in text(response.text)
    assert SECRET not in response.text
    assert "599" not in text(response.text)
    assert "%(" not in response.text
    assert 'type="file"' in response.text
    assert ("Retry-After" in response.headers) == (status == 503)


@pytest.mark.parametrize(
    "broken",
    [
        {"verdict": "sure"},
        {"label": "PLATELET"},
        {"label": None},
        {"probabilities": None},
        {"probabilities": {"NEUTROPHIL": "much"}},
        {"probabilities": {"NEUTROPHIL": 1.5}},
        {"probabilities": {"NEUTROPHIL": float("nan")}},
        {"probabilities": {"PLATELET": 1.0}},
    ],
)
def test_answer_out_of_contract(
    client: FlaskClient, stand_in: StandIn, broken: dict[str, Any]
) -> None:
    stand_in.answer |= broken
    response = send(client, picture())
    assert response.status_code == 502
    assert "The model gave no usable answer" in response.text


def test_no_file(client: FlaskClient, stand_in: StandIn) -> None:
    for response in (send(client, None), send(client, b"", name="")):
        assert response.status_code == 400
        assert "No image was chosen" in response.text
    assert not stand_in.images


def test_empty_file(client: FlaskClient, stand_in: StandIn) -> None:
    response = send(client, b"")
    assert response.status_code == 400
    assert "The file is empty" in response.text
    assert not stand_in.images


@pytest.mark.parametrize("over", [1, MEBIBYTE])
def test_too_large_a_file(client: FlaskClient, stand_in: StandIn, over: int) -> None:
    response = send(client, bytes(8 * MEBIBYTE + over), language="pt")
    assert response.status_code == 413
    assert "A imagem é grande demais" in response.text
    assert "no máximo 8 MB" in text(response.text)
    assert not stand_in.images


def test_the_largest_file(client: FlaskClient, stand_in: StandIn) -> None:
    assert send(client, picture().ljust(8 * MEBIBYTE, b"\0")).status_code == 200
    assert len(stand_in.images[0]) == 8 * MEBIBYTE


@pytest.mark.parametrize("parts", [20, 2000])
def test_too_many_parts(client: FlaskClient, parts: int) -> None:
    data = {f"part{number}": "x" for number in range(parts)}
    response = client.post("/", data=data, content_type="multipart/form-data")
    assert response.status_code == 413


@pytest.mark.parametrize("language", ["en", "pt-BR"])
@pytest.mark.parametrize("value", [None, "", "forged"])
def test_csrf(client: FlaskClient, stand_in: StandIn, language: str, value: str | None) -> None:
    client.get("/")
    data: dict[str, Any] = {"image": (BytesIO(picture()), "cell.png")}
    if value is not None:
        data["csrf_token"] = value
    response = client.post("/", data=data, headers={"Accept-Language": language})
    assert response.status_code == 400
    sentence = {"en": "This page was no longer valid", "pt-BR": "Esta página não era mais válida"}
    assert sentence[language] in response.text
    assert not stand_in.images
    # The page that says so holds a form that works.
    again = {"image": (BytesIO(picture()), "cell.png"), "csrf_token": token(response.text)}
    assert client.post("/", data=again).status_code == 200


def test_csrf_token_of_an_earlier_process(stand_in: StandIn) -> None:
    old, new = (create_app({"CLIENT": stand_in}) for _ in range(2))
    assert old.config["SECRET_KEY"] != new.config["SECRET_KEY"]
    page = old.test_client().get("/")
    response = new.test_client().post(
        "/",
        data={"image": (BytesIO(picture()), "cell.png"), "csrf_token": token(page.text)},
        headers={"Cookie": page.headers["Set-Cookie"].partition(";")[0]},
    )
    assert response.status_code == 400
    assert "This page was no longer valid" in response.text


def test_secret_key_from_environment(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    monkeypatch.setenv("FRONTEND_SECRET_KEY", "from outside")
    assert create_app({"CLIENT": stand_in}).config["SECRET_KEY"] == "from outside"


@pytest.mark.parametrize(
    ("method", "path", "status", "english", "portuguese"),
    [
        ("GET", "/nowhere", 404, "There is no such page", "Esta página não existe"),
        ("GET", "/language/xx", 404, "There is no such page", "Esta página não existe"),
        (
            "PUT",
            "/",
            405,
            "This page cannot be used like that",
            "Esta página não pode ser usada assim",
        ),
    ],
)
def test_error_pages(
    client: FlaskClient, method: str, path: str, status: int, english: str, portuguese: str
) -> None:
    for language, title in (("en", english), ("pt-BR", portuguese)):
        response = client.open(path, method=method, headers={"Accept-Language": language})
        assert response.status_code == status
        assert f"<h1>{title}</h1>" in response.text
        assert response.mimetype == "text/html"
    assert ("Allow" in response.headers) == (status == 405)


def test_unforeseen_error(client: FlaskClient, stand_in: StandIn) -> None:
    stand_in.error = RuntimeError(SECRET)
    response = send(client, picture(), language="pt-BR")
    assert response.status_code == 500
    assert "Algo deu errado aqui" in response.text
    assert SECRET not in response.text
    assert "Traceback" not in response.text


@pytest.mark.parametrize("path", ["/", "/nowhere", "/healthz", "/static/js/page.js"])
def test_headers(client: FlaskClient, path: str) -> None:
    with client.get(path) as response:
        headers = response.headers
    policy = headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "camera=()" in headers["Permissions-Policy"]
    assert (headers["Cache-Control"] == "no-store") == (path != "/static/js/page.js")


def test_result_is_not_cached(client: FlaskClient) -> None:
    assert send(client, picture()).headers["Cache-Control"] == "no-store"


def test_cookies(client: FlaskClient) -> None:
    for path in ("/", "/language/pt_BR"):
        cookie = client.get(path).headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
    assert "Set-Cookie" not in client.get("/healthz").headers


def test_nothing_inline_and_nothing_from_elsewhere(client: FlaskClient) -> None:
    for page in (client.get("/").text, send(client, picture()).text, client.get("/no").text):
        assert not re.search(
            r"<style|\sstyle=|\son\w+=|<script(?![^>]*\s(?:src=|type=\"application/json\"))", page
        )
        assert not re.search(r"""(?:src|href|action)=["'](?:https?:)?//""", page)


@pytest.mark.parametrize(
    "name", ['"><script>alert(1)</script>.png', "' onerror='alert(1).png", "{{ 7 * 191 }}.png"]
)
def test_hostile_file_name(client: FlaskClient, name: str) -> None:
    # As browsers write it: quotes escaped, everything else as it is.
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
def test_what_is_no_picture_is_not_shown(client: FlaskClient, image: bytes, kind: str) -> None:
    page = send(client, image, kind=f"image/{kind}").text
    assert "data:" not in page.replace("data-", "")
    assert "Browsers cannot show this kind of image" in page


def test_tiff_is_shown_as_a_small_png(client: FlaskClient) -> None:
    page = send(client, picture("TIFF", (1600, 1200)), name="cell.tif").text
    match = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert match
    png = images.thumbnail(picture("TIFF", (1600, 1200)))
    assert png is not None
    with Image.open(BytesIO(png)) as shown:
        assert (shown.format, shown.size) == ("PNG", (640, 480))


def test_thumbnail_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 80 * 60 - 1)
    assert images.thumbnail(picture("TIFF")) is None
    assert images.thumbnail(picture("PNG")) is None


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("pt-BR", "pt-BR"),
        ("pt", "pt-BR"),
        ("pt-PT,pt;q=0.9,en;q=0.8", "pt-BR"),
        ("en-GB,pt;q=0.9", "en"),
        ("fr,pt;q=0.5,en;q=0.4", "pt-BR"),
        ("pt;q=0,fr", "en"),
        ("fr", "en"),
        ("*", "en"),
        ("", "en"),
    ],
)
def test_language_of_the_browser(client: FlaskClient, header: str, language: str) -> None:
    response = client.get("/", headers={"Accept-Language": header})
    assert f'<html lang="{language}">' in response.text
    assert {"Accept-Language", "Cookie"} <= set(response.vary.as_set(preserve_casing=True))


def test_language_switch(client: FlaskClient) -> None:
    response = client.get("/language/pt_BR?next=https://example.org")
    assert response.status_code == 303
    assert response.location == "/"
    assert "Que glóbulo branco é este?" in client.get("/").text
    client.get("/language/en")
    page = client.get("/", headers={"Accept-Language": "pt-BR"}).text
    assert "Which white blood cell is this?" in page


def test_unknown_language_in_the_cookie(client: FlaskClient) -> None:
    client.set_cookie("language", "../../etc")
    assert '<html lang="en">' in client.get("/").text


def test_translations_are_complete() -> None:
    with (ROOT / "babel.cfg").open() as file:
        methods, options = parse_mapping_cfg(file)  # type: ignore[no-untyped-call]
    found = extract_from_dir(ROOT, methods, options, keywords=DEFAULT_KEYWORDS | {"_l": None})
    wanted = {message for _, _, message, _, _ in found}
    with (CATALOG / "messages.po").open("rb") as file:
        catalog = read_po(file, abort_invalid=True)
    translated = {message.id for message in catalog if message.id and message.string}
    assert wanted == translated
    for message in catalog:
        assert not message.fuzzy or not message.id
        assert not list(message.check(catalog)), message.id


def test_compiled_translations_are_fresh() -> None:
    with (CATALOG / "messages.po").open("rb") as file:
        source = {message.id: message.string for message in read_po(file) if message.id}
    with (CATALOG / "messages.mo").open("rb") as file:
        compiled = {message.id: message.string for message in read_mo(file) if message.id}
    assert compiled == source, "run: pybabel compile -d frontend/translations"


def test_healthz_and_readyz(client: FlaskClient, stand_in: StandIn) -> None:
    assert (client.get("/healthz").status_code, client.get("/readyz").status_code) == (200, 200)
    stand_in.error = failure("ServiceUnavailable")
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json == {"status": "unavailable", "type": "ServiceUnavailable"}
    assert SECRET not in response.text
    assert client.get("/healthz").json == {"status": "ok"}


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
        data = {"csrf_token": token(session.get(address, timeout=10).text)}
        for body, status in ((image, 200), (image + image, 413), (picture("TIFF"), 200)):
            files = {"image": ("cell", body)}
            response = session.post(address, data=data, files=files, timeout=30)
            assert response.status_code == status
    assert stand_in.images == [image, picture("TIFF")]
    assert not opened


def test_server_does_not_name_itself(address: str) -> None:
    assert "Server" not in requests.get(address, timeout=10).headers


SLOW = """
import sys, time
from frontend import create_app
from frontend.__main__ import bind, run

class Slow:
    def check_ready(self):
        print("asked", flush=True)
        time.sleep(3)

server = bind(create_app({"CLIENT": Slow()}), 0)
print(server.effective_port, flush=True)
run(server)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_after_what_is_in_flight(number: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout
            port = int(process.stdout.readline())
            statuses: list[int] = []

            def ask() -> None:
                answer = requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10)
                statuses.append(answer.status_code)

            asking = threading.Thread(target=ask)
            asking.start()
            assert process.stdout.readline() == "asked\n"
            process.send_signal(number)
            # Nobody else is let in while it still answers.
            refused = False
            while asking.is_alive() and not refused:
                with socket.socket() as late:
                    refused = late.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
                time.sleep(0.05)
            assert refused
            assert asking.is_alive()
            asking.join()
            assert statuses == [200]
            assert process.wait(10) == 0
        finally:
            process.kill()

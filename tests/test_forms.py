"""Requests of an attacker to the page: malformed, or expensive to read."""

import logging
from collections.abc import Iterator
from io import BytesIO

import pytest
import werkzeug.formparser
from flask.testing import FlaskClient
from page_stand_in import StandIn, picture, token

from frontend import errors, forms

MULTIPART = "multipart/form-data; boundary=b"
END = b"\r\n--b--\r\n"


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture(autouse=True)
def nothing_fails(stand_in: StandIn, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that no request of a test is passed on, or logged with a traceback."""
    yield
    assert not stand_in.images
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def part(disposition: bytes) -> bytes:
    return b"--b\r\nContent-Disposition: form-data" + disposition + b"\r\n\r\nx"


@pytest.mark.parametrize("path", ["/", "/api/predictions"])
def test_a_long_form_without_an_image_is_not_parsed(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    parsed: list[int] = []
    parse = werkzeug.formparser.parse_qsl
    monkeypatch.setattr(
        werkzeug.formparser,
        "parse_qsl",
        lambda text, **options: parsed.append(len(text)) or parse(text, **options),
    )
    kind = "application/x-www-form-urlencoded"
    headers = {"X-CSRFToken": token(client.get("/").text)}
    for size, status in ((forms.ALLOWANCE + 2, 413), (forms.ALLOWANCE, 400)):
        body = b"a&" * (size // 2)
        response = client.post(path, data=body, content_type=kind, headers=headers)
        assert response.status_code == status
    assert parsed == [forms.ALLOWANCE]


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n".join([part(b"; name=a")] * 5),
        part(b"; name=a" + b"; a=b" * 40_000),
        part(b"; name=a\r\n" + b"a: b\r\n" * 40_000),
        b"preamble" * 25_000 + b"\r\n" + part(b"; name=a"),
        part(b"; name=a") + b"x" * 200_000,
    ],
    ids=["parts", "parameters", "headers", "preamble", "field"],
)
def test_too_much_beside_the_image(client: FlaskClient, body: bytes) -> None:
    response = client.post("/", data=body + END, content_type=MULTIPART)
    assert response.status_code == 413


@pytest.mark.parametrize("disposition", [b"", b"; name=", b"; filename=a"])
def test_a_part_without_a_name(client: FlaskClient, disposition: bytes) -> None:
    data = part(disposition) + END
    response = client.post("/api/predictions", data=data, content_type=MULTIPART)
    assert (response.status_code, response.json) == (400, {"type": "IncompleteUpload"})


@pytest.mark.parametrize(
    "referrer", ["https://[::1", "http://[", "https://localhost:abc/", "https://localhost:-1/"]
)
def test_a_referrer_that_is_no_address(client: FlaskClient, referrer: str) -> None:
    headers = {
        "X-CSRFToken": token(client.get("/").text),
        "X-Forwarded-Proto": "https",
        "Referer": referrer,
    }
    data = {"image": (BytesIO(picture()), "cell")}
    response = client.post("/api/predictions", data=data, headers=headers)
    assert (response.status_code, response.json) == (400, {"type": "ExpiredForm"})


@pytest.mark.parametrize("valid", [True, False])
def test_a_browser_that_sends_no_referrer(client: FlaskClient, valid: bool) -> None:
    headers = {
        # Another token would not help.
        "X-CSRFToken": token(client.get("/").text) if valid else "",
        "X-Forwarded-Proto": "https",
    }
    for path in ("/api/predictions", "/"):
        data = {"image": (BytesIO(picture()), "cell")}
        response = client.post(path, data=data, headers=headers)
        assert response.status_code == 400
        if path == "/":
            assert str(errors.UPLOAD["NoReferrer"].title) in response.text
        else:
            assert response.json == {"type": "NoReferrer"}


@pytest.mark.parametrize("host", ["...", "a..b", "a" * 64, f"{'a' * 300}.example"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/"), ("GET", "/healthz")])
def test_a_host_that_is_no_name(client: FlaskClient, host: str, method: str, path: str) -> None:
    response = client.open(path, method=method, headers={"Host": host})
    assert response.status_code == 400
    assert "Content-Security-Policy" in response.headers


@pytest.mark.parametrize("path", ["/models//3.0", "/static//icon.svg"])
def test_no_redirect_names_a_host_of_the_request(client: FlaskClient, path: str) -> None:
    response = client.get(path, headers={"Host": "elsewhere.example"})
    assert response.status_code == 404
    assert str(errors.PAGES[404].title) in response.text

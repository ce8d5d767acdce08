"""The page as the edge uses it: over HTTPS, with the address and the uploads of its visitors."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from edges import need_nginx, wait
from flask import Flask, request
from flask.testing import FlaskClient
from page_stand_in import StandIn, picture, serving, token

from serving.settings import Settings
from testing.service import run_edge


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def address(app: Flask) -> Iterator[str]:
    """Serve the page."""
    with serving(app) as address:
        yield address


@pytest.mark.parametrize(
    ("proto", "referrer", "status"),
    [
        ("https", "https://localhost/", 200),
        # The edge's value is the last.
        ("http, https", "https://localhost/models", 200),
        ("https", None, 400),
        ("https", "http://localhost/", 400),
        ("https", "https://localhost:8443/", 400),
        ("https", "https://elsewhere.example/", 400),
        # Without the edge, a browser may send none.
        (None, None, 200),
        ("https, http", None, 200),
    ],
)
def test_behind_the_edge_the_referrer_is_compared(
    client: FlaskClient, proto: str | None, referrer: str | None, status: int
) -> None:
    sent = {"X-Forwarded-Proto": proto, "Referer": referrer}
    data = {"image": (BytesIO(picture()), "cell.png"), "csrf_token": token(client.get("/").text)}
    headers = {name: value for name, value in sent.items() if value}
    assert client.post("/", data=data, headers=headers).status_code == status


def test_the_server_passes_the_header_of_the_edge_on(address: str) -> None:
    with requests.Session() as session:
        data = {"csrf_token": token(session.get(address, timeout=60).text)}
        for referrer, status in ((address.replace("http", "https"), 200), (address, 400)):
            headers = {"X-Forwarded-Proto": "https", "Referer": f"{referrer}/"}
            files = {"image": ("cell", picture())}
            response = session.post(address, data, headers=headers, files=files, timeout=60)
            assert response.status_code == status


@pytest.mark.live
def test_the_edge_tells_the_page_that_it_is_https(address: str, tmp_path: Path) -> None:
    need_nginx()
    settings = Settings(run_dir=tmp_path, frontend_port=int(address.rpartition(":")[2]))
    edge = run_edge(settings)
    try:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(edge.certificate)
            data = {"csrf_token": token(session.get(edge.url, timeout=60).text)}
            for referrer, status in (
                (edge.url, 200),
                (None, 400),
                ("https://elsewhere.example", 400),
                (edge.url.replace("https", "http"), 400),
            ):
                # A client cannot replace the edge's value.
                headers = {"X-Forwarded-Proto": "http", "Referer": referrer}
                files = {"image": ("cell", picture())}
                url = f"{edge.url}/api/predictions"
                response = session.post(url, data, files=files, headers=headers, timeout=60)
                assert response.status_code == status, referrer
    finally:
        edge.stop()


def test_no_other_header_of_a_proxy_is_trusted(app: Flask) -> None:
    seen: list[tuple[str, str | None, str]] = []

    @app.before_request
    def note() -> None:
        seen.append((request.url, request.remote_addr, request.script_root))

    others = {
        "X-Forwarded-For": "10.9.9.9",
        "X-Forwarded-Host": "elsewhere.example",
        "X-Forwarded-Port": "9",
        "X-Forwarded-Prefix": "/elsewhere",
        "Forwarded": "for=10.9.9.9;host=elsewhere.example;proto=https",
    }
    for headers in (others, others | {"X-Forwarded-Proto": "https"}):
        response = app.test_client().get("/language/en", headers=headers)
        assert response.location == "/"
        assert "Secure" not in response.headers["Set-Cookie"]
    address = "://localhost/language/en"
    assert seen == [(f"{scheme}{address}", "127.0.0.1", "") for scheme in ("http", "https")]


def test_uploads_that_wait_for_the_service_keep_no_visitor_out(
    address: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, predict = threading.Event(), stand_in.predict

    def held(*args: Any, **options: Any) -> dict[str, Any]:
        answer = predict(*args, **options)
        assert released.wait(60)
        return answer

    monkeypatch.setattr(stand_in, "predict", held)
    session = requests.Session()
    form = {"csrf_token": token(session.get(address, timeout=60).text)}

    def upload(_: int) -> int:
        files = {"image": ("cell", picture())}
        cookies = session.cookies.get_dict()
        return requests.post(address, form, files=files, cookies=cookies, timeout=60).status_code

    # As many as the edge passes on from one address.
    with ThreadPoolExecutor(16) as pool:
        uploads = pool.map(upload, range(16))
        wait(lambda: len(stand_in.images) == 16)
        assert requests.get(address, timeout=60).status_code == 200
        released.set()
        assert list(uploads) == 16 * [200]

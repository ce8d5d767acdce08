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
from page_stand_in import StandIn, picture, token
from requests.adapters import HTTPAdapter

from serving.settings import Settings
from testing.service import Edge, run_edge


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def edge(address: str, tmp_path: Path) -> Iterator[Edge]:
    """Run an edge in front of the page."""
    need_nginx()
    settings = Settings(run_dir=tmp_path, frontend_port=int(address.rpartition(":")[2]))
    edge = run_edge(settings)
    yield edge
    edge.stop()


class From(HTTPAdapter):
    """Connections from an address of this machine."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, source_address=(self._address, 0))


def visitor(edge: Edge, address: str = "127.0.0.1") -> requests.Session:
    """Return a browser of the page behind the edge."""
    session = requests.Session()
    session.trust_env = False
    session.verify = str(edge.certificate)
    session.headers["Referer"] = f"{edge.url}/"
    session.mount("https://", From(address))
    return session


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
def test_the_edge_tells_the_page_that_it_is_https(edge: Edge) -> None:
    with visitor(edge) as session:
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


@pytest.mark.live
def test_uploads_that_wait_for_the_service_keep_no_visitor_out(
    edge: Edge, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, predict = threading.Event(), stand_in.predict

    def held(*args: Any, **options: Any) -> dict[str, Any]:
        answer = predict(*args, **options)
        assert released.wait(60)
        return answer

    monkeypatch.setattr(stand_in, "predict", held)

    def upload(number: int) -> int:
        with visitor(edge, f"127.0.0.{2 + number % 4}") as session:
            form = {"csrf_token": token(session.get(edge.url, timeout=60).text)}
            files = {"image": ("cell", picture())}
            url = f"{edge.url}/api/predictions"
            return session.post(url, form, files=files, timeout=60).status_code

    with ThreadPoolExecutor(36) as pool, visitor(edge) as other:
        uploads = [pool.submit(upload, number) for number in range(36)]
        try:
            wait(lambda: len(stand_in.images) + sum(each.done() for each in uploads) == 36)
            assert len(stand_in.images) == 24
            assert other.get(edge.url, timeout=60).status_code == 200
        finally:
            released.set()
        statuses = [each.result() for each in uploads]
    assert sorted(statuses) == 24 * [200] + 12 * [429]


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

"""Shared fixtures: the data set, the sample image, and the real service on free ports."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import hypothesis
import pytest
import torch
from edges import Asker, Configured, edge_over_stand_in, need_nginx
from flask import Flask
from flask.testing import FlaskClient
from page_stand_in import DrawingsStandIn, serving, serving_drawings
from stand_in import StandIn

from frontend import create_app
from serving import deployment
from serving.deployment import canary
from serving.settings import ROOT, Settings
from testing import chromium
from testing import service as of_its_own
from testing.service import Service, run_edge, run_service
from training import data

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

DEPLOYMENT = deployment.load(ROOT / "deployment.yaml")
# The versions that the service loads: the first answers by default.
SERVED = sorted(DEPLOYMENT.versions, key=lambda version: version != DEPLOYMENT.default)
# The finished versions.
CARDS = {
    path.parent.name: json.loads((path.parent / "card.json").read_text())
    for path in sorted(ROOT.glob("models/*/golden.json"))
}
# Versions adapted by a laboratory (`make train FROM=...`) are not tested here.
VERSIONS = [version for version, card in CARDS.items() if "adapted_from" not in card]

# pytest-xdist runs a process for each core, and results do not depend on the number of threads.
torch.set_num_threads(1)

# The same examples each time, and no time limit for one.
for profile, examples in (("quick", 40), ("full", 400)):
    hypothesis.settings.register_profile(
        profile, max_examples=examples, deadline=None, derandomize=True, database=None
    )
# `make test-all` selects the other profile with --hypothesis-profile.
hypothesis.settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a slow fixture in one process of pytest-xdist.

    The tests with a browser go first, those of the running service second, then the other
    modules, so that no long group starts last.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "browser" in fixtures:
            group, marks = "browser", ["browser"]
        elif "service" in fixtures:
            group, marks = "service", ["live"]
        else:
            group, marks = item.nodeid.partition("::")[0], []
        item.add_marker(pytest.mark.xdist_group(group))
        for mark in marks + (["data"] if "blood_cells" in fixtures else []):
            item.add_marker(mark)
    order = {"browser": 0, "service": 1}
    items.sort(key=lambda item: order.get(_group(item), 2))


def _group(item: pytest.Item) -> str:
    marker = item.get_closest_marker("xdist_group")
    return str(marker.args[0]) if marker else ""


@pytest.fixture(scope="session")
def blood_cells() -> Path:
    """Return the folder of the data set; without it, skip, but not in CI."""
    try:
        return data.data_root()
    except data.DataError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def app(stand_in: Any) -> Flask:
    """Build the page in front of a stand-in for its service, which each test module defines."""
    return create_app({"CLIENT": stand_in, "SECRET_KEY": "test"})


@pytest.fixture
def address(app: Flask) -> Iterator[str]:
    """Serve the page, and return its address."""
    with serving(app) as address:
        yield address


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture(scope="session")
def sample_image() -> Path:
    return ROOT / "serving" / "samples" / "neutrophil.png"


def free_settings(run_dir: Path) -> Settings:
    """Return settings with free ports, and with their own folder and deployment."""
    return of_its_own.free_settings(run_dir, DEPLOYMENT)


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    """Run a stand-in for TorchServe."""
    with StandIn(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def shared_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    """Run an edge over a stand-in for TorchServe."""
    running = edge_over_stand_in(tmp_path_factory.mktemp("edge") / "run")
    yield running
    running.close()


@pytest.fixture
def edge(shared_edge: Asker) -> Asker:
    """Return the shared edge, over a stand-in that is reset."""
    assert shared_edge.stand_in
    shared_edge.stand_in.reset()
    (shared_edge.settings.run_dir / canary.FILE).unlink(missing_ok=True)
    return shared_edge


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Configured]:
    made = Configured(tmp_path_factory.mktemp("configured"))
    yield made
    made.edge.close()


@pytest.fixture
def received(edge: Asker) -> list[dict[str, str]]:
    """Return the headers of the requests that pass the shared edge."""
    seen: list[dict[str, str]] = []

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        seen.append(dict(request.headers.items()))
        return 200, b"{}"

    assert edge.stand_in
    edge.stand_in.answer = answer
    return seen


@pytest.fixture(scope="module")
def real_edge(service: Service) -> Iterator[Asker]:
    """Run an edge over the real service."""
    need_nginx()
    asker = Asker(run_edge(service.settings, EDGE_RATE="5000"), service.settings)
    yield asker
    asker.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run the whole service for as long as tests need it."""
    running = run_service(free_settings(tmp_path_factory.mktemp("run")))
    yield running
    if running.process.poll() is None:
        running.stop()


CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Chromium logs this for every status above 399 and for no answer, even if the test expects it.
STATUS_LINE = "Failed to load resource: "

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium. Playwright's event loop prevents other loops until it ends."""
    playwright_api = pytest.importorskip("playwright.sync_api", reason="no Playwright")
    program = chromium.find()
    if not program:
        if os.environ.get("CI"):
            pytest.fail(chromium.MISSING)
        pytest.skip(chromium.MISSING)
    with playwright_api.sync_playwright() as playwright:
        # Only a hang reaches this limit; the default is 5 s.
        playwright_api.expect.set_options(timeout=60_000)
        started = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def drawings() -> Iterator[tuple[str, DrawingsStandIn]]:
    """Serve the page in front of a service that knows the drawings; yield both."""
    with serving_drawings() as running:
        yield running


@pytest.fixture
def open_address(browser: Browser) -> Iterator[Open]:
    """Return a function that opens an address in a fresh browser profile.

    When the test is over, nothing may have gone wrong in a console, or gone to another host.
    """
    complaints: list[str] = []
    hosts: set[str] = set()
    own: set[str] = set()
    contexts = []
    dropped: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(STATUS_LINE):
            complaints.append(message.text)

    def note_failure(request: Request) -> None:
        # Chromium drops all requests when a network interface comes or goes on this machine.
        if request.failure == "net::ERR_NETWORK_CHANGED":
            dropped.append(request.url)

    def open_one(address: str, locale: str = "en-US", **options: Any) -> Page:
        context = browser.new_context(locale=locale, **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("requestfailed", note_failure)
        page.goto(address)
        while dropped:
            dropped.clear()
            page.reload()
        own.add(urlsplit(address).netloc)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not complaints
    # Pictures in data: and blob: addresses have no host.
    assert hosts - {""} == own


@pytest.fixture
def open_page(open_address: Open, service: Service) -> Open:
    """Return a function that opens the page of the running service."""

    def open_one(locale: str = "en-US", path: str = "/", **options: Any) -> Page:
        return open_address(service.frontend_url + path, locale, **options)

    return open_one

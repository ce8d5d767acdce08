"""How long the page takes to answer, for Prometheus.

Where PROMETHEUS_MULTIPROC_DIR is set, the numbers go to a file that
serving/supervisor/exporter.py reads.
"""

import logging
import os
from pathlib import Path
from time import perf_counter

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Histogram

from handler.metrics import FOLDER, make_room

logger = logging.getLogger(__name__)

METHODS = {"GET", "HEAD", "POST", "OPTIONS"}
# What asks the service, and the ways in which that fails.
ASKING = ("api.predict", "api.explain", "page.classify")
FAILURES = (500, 502, 503, 504)
# More than all endpoints with all their statuses take.
ROOM = 1 << 20
SECONDS = Histogram(
    "bloodcells_page_request_seconds",
    "Time until the page has an answer.",
    ["endpoint", "method", "status"],
    registry=CollectorRegistry(),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def init_app(app: Flask) -> None:
    """Measure the requests to `app`; where there is no room for that, it serves all the same."""
    if folder := os.environ.get(FOLDER):
        try:
            make_room(Path(folder), "histogram", ROOM)
        except OSError as error:
            logger.error("No request is measured: %s", error)
            return
    begin_at_0()
    app.before_request(begin)
    app.after_request(measure)


def begin_at_0() -> None:
    """Let the failures be there before the first of them: a rate needs to see them at 0."""
    for endpoint in ASKING:
        for status in FAILURES:
            SECONDS.labels(endpoint, "POST", status)


def begin() -> None:
    g.begun = perf_counter()


def measure(response: Response) -> Response:
    """Count the request by what it was for: never by its path, which anyone may choose."""
    SECONDS.labels(
        request.endpoint or "none",
        request.method if request.method in METHODS else "other",
        response.status_code,
    ).observe(perf_counter() - g.begun if "begun" in g else 0)
    return response

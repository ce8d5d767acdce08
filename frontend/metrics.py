"""How long the page takes to answer, for Prometheus.

If PROMETHEUS_MULTIPROC_DIR is set, the metrics go to a file that the exporter
(serving/supervisor/exporter.py) reads.
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
# The endpoints that send requests to the service, and the statuses of its failures.
ASKING = ("api.predict", "api.explain", "page.classify")
FAILURES = (500, 502, 503, 504)
# More than all endpoints with all their statuses need.
ROOM = 1 << 20
SECONDS = Histogram(
    "bloodcells_page_request_seconds",
    "Time until the page has an answer.",
    ["endpoint", "method", "status"],
    registry=CollectorRegistry(),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def init_app(app: Flask) -> None:
    """Measure the requests to `app`. Without disk space, nothing is measured."""
    if folder := os.environ.get(FOLDER):
        try:
            make_room(Path(folder), "histogram", ROOM)
        except OSError as error:
            logger.error("requests are not measured: %s", error)
            return
    begin_at_0()
    app.before_request(begin)
    app.after_request(measure)


def begin_at_0() -> None:
    """Start the counts of failures at 0, so that a rate sees the first failure."""
    for endpoint in ASKING:
        for status in FAILURES:
            SECONDS.labels(endpoint, "POST", status)


def begin() -> None:
    g.begun = perf_counter()


def measure(response: Response) -> Response:
    """Record the request by its endpoint, never by its path, which clients choose freely."""
    SECONDS.labels(
        request.endpoint or "none",
        request.method if request.method in METHODS else "other",
        response.status_code,
    ).observe(perf_counter() - g.begun if "begun" in g else 0)
    return response

"""The service's metrics on one port, as Prometheus reads them.

Four kinds: what workers and page have written to RUN_DIR/metrics (handler/metrics.py), added up
over their processes; the state of the service, looked up at each scrape; TorchServe's own metrics,
which it tells on loopback alone; and whether the edge lives, where one runs beside the service.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import requests
from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from handler.metrics import FOLDER
from serving import deployment
from serving.client import ManagementClient, ServiceError
from serving.deployment import Deployment, DeploymentError
from serving.edge import status as edge_watch
from serving.http import local_session
from serving.settings import HOST, ROOT, Settings
from serving.torchserve.tokens import KINDS, TokenError, Tokens

# Prometheus waits 10 s for an answer.
TIMEOUT = (1.0, 4.0)

Descriptions = Mapping[str, Mapping[str, Any]]
# A WSGI application.
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def environment(settings: Settings) -> dict[str, str]:
    """Return what tells workers and page where to write what they count."""
    return {FOLDER: str(settings.metrics)}


def clear(settings: Settings) -> None:
    """Begin to count anew, as a service does at its start."""
    shutil.rmtree(settings.metrics, ignore_errors=True)
    settings.metrics.mkdir(mode=0o700, parents=True)


@contextlib.contextmanager
def exported(
    settings: Settings,
    restarts: Mapping[str, int],
    processes: Callable[[], Mapping[str, int]],
) -> Iterator[None]:
    """Answer Prometheus meanwhile; OSError if the port can't be used.

    `restarts` tells how often each part was started again, `processes` what each runs as.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(settings.metrics))
    registry.register(State(settings, restarts, processes))
    registry.register(TorchServe(settings))
    registry.register(Edge(settings))
    server, thread = start_http_server(settings.exporter_port, settings.exporter_host, registry)
    server.set_app(with_liveness(make_wsgi_app(registry)))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def with_liveness(metrics: Application) -> Application:
    """Answer GET /livez beside the metrics.

    Each request has its own thread, so neither uploads nor scrapes delay the answer.
    """

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/livez":
            return metrics(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"ok\n"]

    return app


class State(Collector):
    """How the service is: versions, workers, queues, tokens, memory, and what to expect of it."""

    def __init__(
        self,
        settings: Settings,
        restarts: Mapping[str, int],
        processes: Callable[[], Mapping[str, int]],
        models: Path = ROOT / "models",
    ) -> None:
        self._settings, self._restarts, self._processes = settings, restarts, processes
        self._models = models
        self._tokens = Tokens(settings.run_dir)
        self._management = ManagementClient(settings, TIMEOUT)
        # One scrape at a time: neither tokens nor clients need be asked twice at once.
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Look everything up; what can't be is left out."""
        with self._lock:
            described = self._described()
            up = GaugeMetricFamily("bloodcells_up", "Whether TorchServe answers.")
            up.add_metric([], described is not None)
            yield up
            yield from self._of_versions(described or {})
            yield self._token_life()
            yield self._restarted()
            yield self._memory()

    def describe(self) -> list[Metric]:
        """Return nothing, so that to register this looks nothing up."""
        return []

    def _described(self) -> Descriptions | None:
        try:
            return self._management.versions()
        except ServiceError:
            return None

    def _of_versions(self, described: Descriptions) -> Iterator[Metric]:
        wanted = self._wanted()
        yield _readable(wanted)
        # While nobody knows which are wanted, those that TorchServe has.
        yield _ready(wanted.versions if wanted else described, described)
        yield from _queues(described)
        if wanted:
            yield _roles(wanted)
            yield _asked(wanted)
            yield from _expected(wanted, self._models)

    def _wanted(self) -> Deployment | None:
        try:
            return deployment.load(self._settings.deployment)
        except DeploymentError:
            # Someone is editing it, or it is broken.
            return None

    def _token_life(self) -> Metric:
        life = GaugeMetricFamily(
            "bloodcells_token_seconds", "Seconds until a token expires.", labels=["kind"]
        )
        for kind in KINDS:
            with contextlib.suppress(TokenError, KeyError, ValueError):
                life.add_metric([kind], self._tokens.expires(kind).timestamp() - time.time())
        return life

    def _restarted(self) -> Metric:
        restarts = CounterMetricFamily(
            "bloodcells_restarts", "How often a part was started again.", labels=["part"]
        )
        for part, count in self._restarts.items():
            restarts.add_metric([part], count)
        return restarts

    def _memory(self) -> Metric:
        memory = GaugeMetricFamily(
            "bloodcells_memory_bytes", "Resident memory of a part's processes.", labels=["part"]
        )
        for part, pid in self._processes().items():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                memory.add_metric([part], process.memory_info().rss)
                if part == "torchserve":
                    memory.add_metric(["workers"], sum(map(_resident, process.children())))
        return memory


class TorchServe(Collector):
    """What TorchServe counts itself: requests, their status codes, their time in its queue."""

    def __init__(self, settings: Settings) -> None:
        self._url = f"http://{HOST}:{settings.metrics_port}/metrics"

    def collect(self) -> Iterator[Metric]:
        """Hand its metrics on, each counter with a name in `_total`; none while it is away."""
        with contextlib.suppress(requests.RequestException, ValueError), local_session() as session:
            response = session.get(self._url, timeout=TIMEOUT)
            response.raise_for_status()
            yield from text_string_to_metric_families(response.text)

    def describe(self) -> list[Metric]:
        """Return nothing, so that to register this asks nothing."""
        return []


def _readable(wanted: Deployment | None) -> Metric:
    readable = GaugeMetricFamily(
        "bloodcells_deployment_readable", "Whether deployment.yaml can be read."
    )
    readable.add_metric([], wanted is not None)
    return readable


class Edge(Collector):
    """The edge that runs beside the service, from its start until it is told to close."""

    def __init__(self, settings: Settings) -> None:
        self._note = settings.edge_note

    def collect(self) -> Iterator[Metric]:
        """Ask it whether it lives; tell nothing where there is none."""
        seen = edge_watch.look(self._note)
        if seen is None:
            return
        yield GaugeMetricFamily("bloodcells_edge_up", "Whether the edge answers.", seen.answers)
        yield GaugeMetricFamily(
            "bloodcells_edge_keys_readable",
            "Whether the edge's keys can be read.",
            seen.keys_fault is None,
        )
        if seen.expires:
            yield GaugeMetricFamily(
                "bloodcells_certificate_seconds",
                "Seconds until the edge's certificate expires.",
                seen.expires - time.time(),
            )

    def describe(self) -> list[Metric]:
        """Return nothing, so that to register this asks nothing."""
        return []


def _roles(wanted: Deployment) -> Metric:
    info = GaugeMetricFamily(
        "bloodcells_version_info", "1 for each version, and its role.", labels=["version", "role"]
    )
    canary = wanted.canary and wanted.canary.version
    for version in wanted.versions:
        role = {wanted.default: "default", canary: "canary"}.get(version, "standby")
        info.add_metric([version, role], 1)
    return info


def _asked(wanted: Deployment) -> Metric:
    asked = GaugeMetricFamily(
        "bloodcells_workers_wanted", "Workers by deployment.yaml.", labels=["version"]
    )
    for version, each in wanted.versions.items():
        asked.add_metric([version], each.workers)
    return asked


def _ready(versions: Iterable[str], described: Descriptions) -> Metric:
    """Count each version's workers that are ready; 0 for a version that is not described."""
    ready = GaugeMetricFamily(
        "bloodcells_workers_ready", "Workers that are ready.", labels=["version"]
    )
    for version in versions:
        workers = described.get(version, {}).get("workers", [])
        ready.add_metric([version], sum(worker["status"] == "READY" for worker in workers))
    return ready


def _queues(described: Descriptions) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "bloodcells_queue_waiting", "Requests that wait for a worker.", labels=["version"]
    )
    room = GaugeMetricFamily(
        "bloodcells_queue_room", "Requests that may wait besides.", labels=["version"]
    )
    for version, each in described.items():
        queue = each["jobQueueStatus"]
        waiting.add_metric([version], queue["pendingRequests"])
        room.add_metric([version], queue["remainingCapacity"])
    return iter((waiting, room))


def _expected(wanted: Deployment, models: Path) -> Iterator[Metric]:
    """Return what each version said of the images of its card; none where that is not measured."""
    share = GaugeMetricFamily(
        "bloodcells_expected_share",
        "Share of a label among the answers to the card's TEST images.",
        labels=["version", "label"],
    )
    doubt = GaugeMetricFamily(
        "bloodcells_expected_doubt",
        "Share of answers to the card's TEST images that were not confident.",
        labels=["version"],
    )
    for version in wanted.versions:
        with contextlib.suppress(OSError, ValueError, KeyError):
            folder = models / version
            labels = json.loads((folder / "card.json").read_text())["labels"]
            measured = json.loads((folder / "metrics.json").read_text())
            said = [sum(column) for column in zip(*measured["test"]["confusion"], strict=True)]
            verdicts = measured["test_verdicts"]
            for label, count in zip(labels, said, strict=True):
                share.add_metric([version, label], count / sum(said))
            doubt.add_metric([version], verdicts["uncertain"] + verdicts["rejected"])
    return iter((share, doubt))


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0

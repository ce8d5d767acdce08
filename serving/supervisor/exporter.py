"""Export the service's metrics to Prometheus, on one port.

There are four sources: what workers and page count in files in RUN_DIR/metrics
(handler/metrics.py), added up over their processes; the state of the service, looked up at each
scrape; TorchServe's own metrics, which it serves on loopback only; and the edge, if one runs.
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
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from handler.metrics import FOLDER, make_room
from serving import deployment
from serving.client import ManagementClient, ServiceError
from serving.deployment import Deployment, DeploymentError
from serving.edge import status as edge_status
from serving.http import local_session
from serving.settings import HOST, ROOT, Settings
from serving.torchserve.tokens import KINDS, TokenError, Tokens

# Prometheus waits 10 s for an answer.
TIMEOUT = (1.0, 4.0)
# In place of a process id: the counts of all processes that have ended.
ENDED = "ended"
# Much more than the counts of all versions need.
ROOM = 1 << 20

Descriptions = Mapping[str, Mapping[str, Any]]
# A WSGI application.
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables that set where workers and page count."""
    return {FOLDER: str(settings.metrics)}


def clear(settings: Settings) -> None:
    """Reset all counts, as at the start of a service."""
    shutil.rmtree(settings.metrics, ignore_errors=True)
    settings.metrics.mkdir(mode=0o700, parents=True)


@contextlib.contextmanager
def exported(
    settings: Settings, restarts: Mapping[str, int], processes: Callable[[], Mapping[str, int]]
) -> Iterator[None]:
    """Answer Prometheus meanwhile; raise OSError if the port can't be used.

    `restarts` holds how often each part was restarted; `processes` returns their process ids.
    """
    registry = CollectorRegistry()
    for collector in (
        Counts(settings.metrics),
        State(settings, restarts, processes),
        TorchServe(settings),
        Edge(settings),
    ):
        registry.register(collector)
    server, thread = start_http_server(settings.exporter_port, settings.exporter_host, registry)
    server.set_app(with_liveness(make_wsgi_app(registry)))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def with_liveness(metrics: Application) -> Application:
    """Answer GET /livez in addition to the metrics.

    Each request has its own thread, so neither uploads nor scrapes delay the answer.
    """

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/livez":
            return metrics(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"ok\n"]

    return app


class Lookup(Collector):
    """A collector that looks its metrics up at each scrape."""

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering this looks nothing up."""
        return []


class Counts(Lookup):
    """What workers and page have counted, added up over their processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            merge_ended(self._folder)
            yield from MultiProcessCollector(None, path=str(self._folder)).collect()


def merge_ended(folder: Path) -> None:
    """Add the counts of processes that have ended to one file, and remove theirs."""
    for path in folder.glob("*_[0-9]*.db"):
        kind, _, process = path.stem.partition("_")
        if psutil.pid_exists(int(process)):
            continue
        with contextlib.suppress(OSError):
            # A full disk has no room: try again at the next scrape.
            make_room(folder, kind, ROOM, ENDED)
            total = MmapedDict(str(folder / f"{kind}_{ENDED}.db"))
            for name, value, _, _ in list(MmapedDict.read_all_values_from_file(str(path))):
                total.write_value(name, total.read_value(name)[0] + value, 0.0)
            total.close()
            path.unlink()


class State(Lookup):
    """The state of the service: versions, workers, queues, tokens, memory, expected answers."""

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
        # One scrape at a time: the clients are not thread-safe.
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Look up all metrics; omit those that are not available."""
        with self._lock:
            described = self._described()
            yield GaugeMetricFamily(
                "bloodcells_up", "Whether TorchServe answers.", described is not None
            )
            yield from self._of_versions(described or {})
            yield self._token_life()
            yield GaugeMetricFamily(
                "bloodcells_disk_free_bytes",
                "Free space on the disk of RUN_DIR.",
                shutil.disk_usage(self._settings.run_dir).free,
            )
            yield self._restarted()
            yield self._memory()

    def _described(self) -> Descriptions | None:
        try:
            return self._management.versions()
        except ServiceError:
            return None

    def _of_versions(self, described: Descriptions) -> Iterator[Metric]:
        wanted = self._wanted()
        yield GaugeMetricFamily(
            "bloodcells_deployment_readable",
            "Whether deployment.yaml can be read.",
            wanted is not None,
        )
        # Without a deployment, count the workers of the versions that TorchServe has.
        yield _ready(wanted.versions if wanted else described, described)
        yield from _queues(described)
        if wanted:
            yield _roles(wanted)
            yield _wanted_workers(wanted)
            yield from _expected(wanted, self._models)

    def _wanted(self) -> Deployment | None:
        try:
            return deployment.load(self._settings.deployment)
        except DeploymentError:
            return None

    def _token_life(self) -> Metric:
        left: dict[str, float] = {}
        for kind in KINDS:
            with contextlib.suppress(TokenError, KeyError, ValueError):
                left[kind] = self._tokens.expires(kind).timestamp() - time.time()
        return _gauge("token_seconds", "Seconds until a token expires.", "kind", left)

    def _restarted(self) -> Metric:
        restarts = CounterMetricFamily(
            "bloodcells_restarts", "How often a part was restarted.", labels=["part"]
        )
        for part, count in self._restarts.items():
            restarts.add_metric([part], count)
        return restarts

    def _memory(self) -> Metric:
        resident = {}
        for part, pid in self._processes().items():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                resident[part] = process.memory_info().rss
                if part == "torchserve":
                    resident["workers"] = sum(map(_resident, process.children()))
        return _gauge("memory_bytes", "Resident memory of a part's processes.", "part", resident)


class TorchServe(Lookup):
    """TorchServe's own counts: requests, their status codes, their time in its queue."""

    def __init__(self, settings: Settings) -> None:
        self._url = f"http://{HOST}:{settings.metrics_port}/metrics"

    def collect(self) -> Iterator[Metric]:
        """Forward its metrics, each counter with a name in `_total`; none while it is down."""
        with contextlib.suppress(requests.RequestException, ValueError), local_session() as session:
            response = session.get(self._url, timeout=TIMEOUT)
            response.raise_for_status()
            yield from text_string_to_metric_families(response.text)


class Edge(Lookup):
    """The edge of the service, from its start until it is stopped."""

    def __init__(self, settings: Settings) -> None:
        self._note = settings.edge_note

    def collect(self) -> Iterator[Metric]:
        """Query the edge; return nothing if none runs."""
        seen = edge_status.look(self._note)
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


def _roles(wanted: Deployment) -> Metric:
    info = GaugeMetricFamily(
        "bloodcells_version_info", "1 for each version and its role.", labels=["version", "role"]
    )
    canary = wanted.canary and wanted.canary.version
    for version in wanted.versions:
        role = {wanted.default: "default", canary: "canary"}.get(version, "standby")
        info.add_metric([version, role], 1)
    return info


def _wanted_workers(wanted: Deployment) -> Metric:
    workers = {version: each.workers for version, each in wanted.versions.items()}
    return _gauge("workers_wanted", "Workers according to deployment.yaml.", "version", workers)


def _ready(versions: Iterable[str], described: Descriptions) -> Metric:
    """Count each version's ready workers; 0 for a version that TorchServe does not have."""
    workers = {version: described.get(version, {}).get("workers", []) for version in versions}
    ready = {name: sum(one["status"] == "READY" for one in own) for name, own in workers.items()}
    return _gauge("workers_ready", "Ready workers.", "version", ready)


def _queues(described: Descriptions) -> Iterator[Metric]:
    queues = {version: each["jobQueueStatus"] for version, each in described.items()}
    for name, text, key in (
        ("queue_waiting", "Requests in the queue.", "pendingRequests"),
        ("queue_room", "Free places in the queue.", "remainingCapacity"),
    ):
        counts = {version: queue[key] for version, queue in queues.items()}
        yield _gauge(name, text, "version", counts)


def _expected(wanted: Deployment, models: Path) -> Iterator[Metric]:
    """Return how each version answered the test images of its card, where that is measured."""
    share = GaugeMetricFamily(
        "bloodcells_expected_share",
        "Share of a label among the answers to the card's test images.",
        labels=["version", "label"],
    )
    doubts = {}
    for version in wanted.versions:
        with contextlib.suppress(OSError, ValueError, KeyError):
            card, measured = (
                json.loads((models / version / f"{name}.json").read_text())
                for name in ("card", "metrics")
            )
            test, verdicts = measured["test"], measured["test_verdicts"]
            columns = zip(*test["confusion"], strict=True)
            # Images without a cell have no label.
            said = dict.fromkeys(card["classes"], 0) | {
                label: sum(column)
                for label, column in zip(test["predicted"], columns, strict=True)
                if label in card["classes"]
            }
            for label, count in said.items():
                share.add_metric([version, label], count / sum(said.values()))
            doubts[version] = verdicts["uncertain"] + verdicts["rejected"]
    yield share
    text = "Share of answers to the card's test images that were not confident."
    yield _gauge("expected_doubt", text, "version", doubts)


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a metric with one label, and a value for each of its names."""
    metric = GaugeMetricFamily(f"bloodcells_{name}", text, labels=[label])
    for each, value in values.items():
        metric.add_metric([each], value)
    return metric


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0

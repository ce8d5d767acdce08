"""What operators see: what is counted, what Prometheus makes of it, and what the alerts say."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import requests
import yaml
from conftest import DEPLOYMENT, free_settings
from edges import need_nginx
from flask import Flask
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from frontend import __main__ as page_program
from frontend import create_app
from frontend import metrics as page_metrics
from handler import metrics
from handler.preprocessing import InputError, corrupt
from serving import deployment
from serving.client import InferenceClient, ManagementClient, Unreachable
from serving.deployment import Canary, Deployment, VersionSpec, known_answers
from serving.edge import status as edge_watch
from serving.settings import ROOT, Settings
from serving.supervisor import exporter
from serving.supervisor.exporter import State
from serving.torchserve.tokens import Tokens
from testing import prometheus
from testing.prometheus import DEPLOY, Prometheus
from testing.service import Service, free_ports, run_edge

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
RULES = yaml.safe_load((DEPLOY / "rules.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
RECORDED = {
    rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule
}
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
# What Prometheus says of a target, and of the alerts, by itself.
OWN = {"up", "ALERTS"}
REJECTS = "bloodcells_rejects_total"
PAGE_COUNT = "bloodcells_page_request_seconds_count"


def parsed(text: str) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(folder: Path) -> Series:
    """Return all that was counted into a folder, as the exporter adds it up."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))
    return parsed(generate_latest(registry).decode())


def key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def said(label: str | None, verdict: str, **more: Any) -> dict[str, Any]:
    return {"label": label, "verdict": verdict, **more}


# What a worker counts


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> metrics.Metrics:
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    return metrics.start("2.0")


def test_answers_and_rejects(counted: metrics.Metrics, tmp_path: Path) -> None:
    counted.answered(
        [
            said("MONOCYTE", "confident"),
            said("MONOCYTE", "confident", heat_map="..."),
            said("MONOCYTE", "uncertain"),
            said(None, "rejected"),
            corrupt(),
            corrupt(),
            InputError(400, "EmptyImage", "It is empty."),
        ]
    )
    seen = {name: value for name, value in read(tmp_path).items() if value and name[1] != ()}
    name = "bloodcells_predictions_total"
    assert seen == {
        key(name, version="2.0", label="MONOCYTE", verdict="confident"): 2,
        key(name, version="2.0", label="MONOCYTE", verdict="uncertain"): 1,
        key(name, version="2.0", label="none", verdict="rejected"): 1,
        key(REJECTS, version="2.0", type="CorruptImage"): 2,
        key(REJECTS, version="2.0", type="EmptyImage"): 1,
        key("bloodcells_worker_starts_total", version="2.0"): 1,
    }
    assert read(tmp_path)[key("bloodcells_explanations_total")] == 1


def test_every_class_and_verdict_is_there_at_0(counted: metrics.Metrics, tmp_path: Path) -> None:
    zeros = [name for name, _ in read(tmp_path) if name == "bloodcells_predictions_total"]
    assert len(zeros) == len(metrics.SAID) == 9


def test_every_reject_is_there_at_0(counted: metrics.Metrics, tmp_path: Path) -> None:
    """Else the first of a kind were no increase."""
    code = "".join(path.read_text() for path in (ROOT / "handler").glob("*.py"))
    named = set(re.findall(r'InputError\(\s*\d+,\s*"(\w+)"', code))
    assert code.count("InputError(") == len(re.findall(r"InputError\(\s*\d+", code)) + 1
    assert named == set(metrics.REFUSED)
    rejects = {each: at for each, at in read(tmp_path).items() if each[0] == REJECTS}
    assert rejects == {key(REJECTS, version="2.0", type=kind): 0 for kind in named}


def test_a_reject_that_nobody_foresaw_is_counted(counted: metrics.Metrics, tmp_path: Path) -> None:
    counted.answered([InputError(400, "New", "Of another day.")])
    assert read(tmp_path)[key(REJECTS, version="2.0", type="New")] == 1


def test_the_room_suffices_also_for_a_long_name(tmp_path: Path) -> None:
    metrics.Counted(tmp_path, "2.0" + 60 * "x")
    for file in tmp_path.iterdir():
        used = int.from_bytes(file.read_bytes()[:4], sys.byteorder)
        assert 0 < used < metrics.ROOM * 0.6, file


@pytest.mark.parametrize(
    ("seconds", "within"),
    [(0.0, "0.001"), (0.001, "0.001"), (0.0011, "0.0025"), (2.5, "2.5"), (60.0, "+Inf")],
)
def test_a_bound_holds_what_equals_it(
    counted: metrics.Metrics, tmp_path: Path, seconds: float, within: str
) -> None:
    counted.decoded(3, seconds)
    seen = read(tmp_path)
    bounds = [*map(str, metrics.SECONDS), "+Inf"]
    name = "bloodcells_decode_seconds"
    for at, bound in enumerate(bounds):
        count = seen[key(f"{name}_bucket", version="2.0", le=bound)]
        assert count == (at >= bounds.index(within))
    assert seen[key(f"{name}_sum", version="2.0")] == seconds
    assert seen[key("bloodcells_batch_size_sum", version="2.0")] == 3


def test_workers_add_up_also_those_of_the_same_number(tmp_path: Path) -> None:
    for _ in range(3):
        metrics.Counted(tmp_path, "2.0").answered([said("NEUTROPHIL", "confident")])
    metrics.Counted(tmp_path, "1.0").answered([said("NEUTROPHIL", "confident")])
    seen, name = read(tmp_path), "bloodcells_predictions_total"
    assert seen[key(name, version="2.0", label="NEUTROPHIL", verdict="confident")] == 3
    assert seen[key(name, version="1.0", label="NEUTROPHIL", verdict="confident")] == 1


def test_room_on_the_disk_is_made_at_once(counted: metrics.Metrics, tmp_path: Path) -> None:
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert all(file.stat().st_blocks * 512 >= metrics.ROOM for file in files)


def test_a_full_file_says_so(tmp_path: Path) -> None:
    numbers = metrics.Numbers(tmp_path, "counter")
    with pytest.raises(IndexError, match="no room for"):
        [numbers.add("m", "m_total", {"number": str(at)}, "Many.") for at in range(1000)]
    # What was there before still reads.
    assert len(read(tmp_path)) > 50


def test_without_the_variable_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.FOLDER, raising=False)
    assert isinstance(metrics.start("2.0"), metrics.Uncounted)


def test_where_it_cannot_count_it_answers_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path / "missing"))
    assert isinstance(metrics.start("2.0"), metrics.Uncounted)
    assert "Nothing is counted" in caplog.text


# What the page counts


@pytest.fixture
def stand_in() -> SimpleNamespace:
    """Stand in for the service's client: no test here asks it."""
    return SimpleNamespace()


def page_counts() -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in page_metrics.SECONDS.collect()
        for sample in family.samples
        if sample.name.endswith("_count")
    }


@pytest.mark.parametrize(
    ("method", "path", "endpoint", "counted_as", "status"),
    [
        ("GET", "/healthz", "page.healthz", "GET", "200"),
        ("GET", "/some/patient's/name", "none", "GET", "404"),
        ("BREW", "/some/where", "none", "other", "404"),
        ("POST", "/api/predictions", "api.predict", "POST", "400"),
        ("DELETE", "/healthz", "none", "other", "405"),
    ],
)
def test_requests_are_counted_by_what_they_are_for(
    app: Flask, method: str, path: str, endpoint: str, counted_as: str, status: str
) -> None:
    before = page_counts()
    app.test_client().open(path, method=method)
    counted = key(PAGE_COUNT, endpoint=endpoint, method=counted_as, status=status)
    new = {each: value - before.get(each, 0) for each, value in page_counts().items()}
    assert {each: value for each, value in new.items() if value} == {counted: 1}


def test_the_page_makes_room_for_what_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Any
) -> None:
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    create_app({"CLIENT": stand_in, "SECRET_KEY": "test"})
    [file] = tmp_path.iterdir()
    assert file.name == f"histogram_{os.getpid()}.db"
    assert file.stat().st_blocks * 512 >= page_metrics.ROOM


def test_what_a_dead_page_of_the_same_number_counted_stays(tmp_path: Path) -> None:
    page_metrics.make_room(tmp_path)
    [file] = tmp_path.iterdir()
    file.write_bytes(b"counts")
    page_metrics.make_room(tmp_path)
    assert file.read_bytes() == b"counts"


def test_a_page_without_room_is_not_measured_and_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stand_in: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(file: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    app = create_app({"CLIENT": stand_in, "SECRET_KEY": "test"})
    before = page_counts()
    assert [app.test_client().get("/healthz").status_code for _ in range(3)] == [200] * 3
    assert page_counts() == before
    # An empty file would make the exporter fail.
    assert list(tmp_path.iterdir()) == []
    [message] = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert message == "No request is measured: [Errno 28] No space left on device"


# Python as the supervisor starts the page; no file may grow beyond the bound, if there is one.
PAGE = """
import resource, runpy, sys
if bound := int(sys.argv.pop()):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bound, bound))
runpy.run_module("frontend", run_name="__main__")
"""


@contextlib.contextmanager
def page(folder: Path, port: int, bound: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run the page by itself, counting into a folder."""
    environment = os.environ | {metrics.FOLDER: str(folder), "FRONTEND_PORT": str(port)}
    command = [sys.executable, "-c", PAGE, str(bound)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def printed_until(process: subprocess.Popen[str], end: str) -> str:
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if end in line:
            break
    return "".join(lines)


def test_every_failure_of_the_page_is_there_at_0(tmp_path: Path) -> None:
    with page(tmp_path, *free_ports(1)) as process:
        assert "serving on" in printed_until(process, "serving on")
        seen = read(tmp_path)
        assert {each: count for each, count in seen.items() if each[0] == PAGE_COUNT} == {
            key(PAGE_COUNT, endpoint=endpoint, method="POST", status=status): 0
            for endpoint in ("api.predict", "api.explain", "page.classify")
            for status in ("500", "502", "503", "504")
        }
        [file] = tmp_path.iterdir()
        assert file.stat().st_size == page_metrics.ROOM
        assert int.from_bytes(file.read_bytes()[:4], sys.byteorder) < page_metrics.ROOM / 10


def test_what_asks_the_service_is_what_the_page_has_at_0(app: Flask) -> None:
    posts = {rule.endpoint for rule in app.url_map.iter_rules() if "POST" in (rule.methods or ())}
    assert posts == set(page_metrics.ASKING)


def test_a_page_that_may_write_nothing_serves_all_the_same(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with page(tmp_path, port, bound=page_metrics.ROOM // 2) as process:
        told = printed_until(process, "serving on")
        assert told.count("No request is measured: ") == 1
        for path in ("/", "/healthz", "/healthz"):
            assert requests.get(f"http://127.0.0.1:{port}{path}", timeout=30).ok
        assert process.poll() is None
    assert list(tmp_path.iterdir()) == []


def test_only_a_port_that_is_taken_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with page(tmp_path, port) as process:
            assert f"Cannot listen on 127.0.0.1:{port}: Address" in printed_until(process, "Cannot")
            assert process.wait(30) == 1

    def broken() -> Flask:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(page_program, "create_app", broken)
    with pytest.raises(OSError, match="Input/output"):
        page_program.main()


# The service's state


class Management:
    """TorchServe's management API, with what it describes."""

    described: Mapping[str, Any] | None = None

    def __init__(self, *_: object) -> None: ...

    def versions(self) -> Mapping[str, Any]:
        if self.described is None:
            raise Unreachable("nothing listens")
        return self.described


def described(*statuses: str) -> dict[str, Any]:
    return {
        "workers": [{"status": status} for status in statuses],
        "jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": 28},
    }


Collect = Callable[[], Series]


@pytest.fixture
def collect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Collect:
    """Return a function that looks the state up."""
    monkeypatch.setattr(exporter, "ManagementClient", Management)
    monkeypatch.setattr(Management, "described", None)
    settings = Settings(run_dir=tmp_path, deployment=tmp_path / "deployment.yaml")
    wanted = Deployment(
        "2.0",
        {"1.0": VersionSpec(1), "2.0": VersionSpec(2), "9.9": VersionSpec(1)},
        Canary("1.0", 10),
    )
    deployment.save(wanted, settings.deployment)

    def look() -> Series:
        registry = CollectorRegistry()
        registry.register(State(settings, {"page": 3}, lambda: {"supervisor": os.getpid()}))
        return parsed(generate_latest(registry).decode())

    return look


def test_state_of_a_service_that_is_well(collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"1.0": described("READY"), "2.0": described("READY", "UNLOADED")}
    monkeypatch.setattr(Management, "described", versions)
    seen = collect()
    assert seen[key("bloodcells_up")] == 1
    assert seen[key("bloodcells_deployment_readable")] == 1
    assert seen[key("bloodcells_workers_wanted", version="2.0")] == 2
    assert seen[key("bloodcells_workers_ready", version="2.0")] == 1
    # Wanted, but TorchServe knows nothing of it.
    assert seen[key("bloodcells_workers_ready", version="9.9")] == 0
    assert seen[key("bloodcells_queue_waiting", version="1.0")] == 28
    assert seen[key("bloodcells_queue_room", version="1.0")] == 100
    assert seen[key("bloodcells_restarts_total", part="page")] == 3
    assert seen[key("bloodcells_memory_bytes", part="supervisor")] > 1e6
    roles = {
        dict(labels)["version"]: dict(labels)["role"]
        for name, labels in seen
        if name == "bloodcells_version_info"
    }
    assert roles == {"1.0": "canary", "2.0": "default", "9.9": "standby"}


def test_state_while_torchserve_is_away(collect: Collect) -> None:
    seen = collect()
    assert seen[key("bloodcells_up")] == 0
    assert seen[key("bloodcells_workers_ready", version="2.0")] == 0
    assert seen[key("bloodcells_workers_wanted", version="2.0")] == 2
    assert not any(name == "bloodcells_token_seconds" for name, _ in seen)


@pytest.mark.parametrize("text", ["default: ", "}", None])
def test_state_while_the_deployment_cannot_be_read(
    collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    """What TorchServe says is told, so that alerts of it still come; no more."""
    versions = {"1.0": described("UNLOADED"), "2.0": described("READY", "READY")}
    monkeypatch.setattr(Management, "described", versions)
    file = tmp_path / "deployment.yaml"
    file.write_text(text) if text else file.unlink()
    seen = collect()
    told = {each: value for each, value in seen.items() if dict(each[1]).get("version")}
    assert seen[key("bloodcells_up")] == 1
    assert seen[key("bloodcells_deployment_readable")] == 0
    assert told == {
        key("bloodcells_workers_ready", version="1.0"): 0,
        key("bloodcells_workers_ready", version="2.0"): 2,
        key("bloodcells_queue_waiting", version="1.0"): 28,
        key("bloodcells_queue_waiting", version="2.0"): 28,
        key("bloodcells_queue_room", version="1.0"): 100,
        key("bloodcells_queue_room", version="2.0"): 100,
    }


def test_a_version_on_trial_is_not_missed(
    collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it loads, it has no worker yet, and nobody wants it yet."""
    monkeypatch.setattr(Management, "described", {"3.0": described()})
    assert key("bloodcells_workers_ready", version="3.0") not in collect()


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_is_expected_is_what_the_card_measured(collect: Collect, version: str) -> None:
    measured = json.loads((ROOT / "models" / version / "metrics.json").read_text())
    seen = collect()
    shares = {
        dict(labels)["label"]: value
        for (name, labels), value in seen.items()
        if name == "bloodcells_expected_share" and dict(labels)["version"] == version
    }
    assert set(shares) == set(measured["test"]["classes"])
    assert sum(shares.values()) == pytest.approx(1)
    confusion = measured["test"]["confusion"]
    first = sum(row[0] for row in confusion) / measured["test"]["images"]
    assert shares["EOSINOPHIL"] == pytest.approx(first)
    doubt = seen[key("bloodcells_expected_doubt", version=version)]
    assert doubt == pytest.approx(1 - measured["test_verdicts"]["confident"], abs=1e-3)


class TestEdge:
    @pytest.fixture
    def told(self, tmp_path: Path) -> Callable[[], Series]:
        def look() -> Series:
            registry = CollectorRegistry()
            registry.register(exporter.Edge(Settings(run_dir=tmp_path)))
            return parsed(generate_latest(registry).decode())

        return look

    def test_where_there_is_none_nothing_is_told(self, told: Callable[[], Series]) -> None:
        assert told() == {}

    def test_one_that_does_not_answer_is_told(
        self, told: Callable[[], Series], tmp_path: Path
    ) -> None:
        (port,) = free_ports(1)
        note = Settings(run_dir=tmp_path).edge_note
        note.parent.mkdir()
        edge_watch.note(note, "127.0.0.1", port, tmp_path / "keys.json")
        assert told() == {key("bloodcells_edge_up"): 0, key("bloodcells_edge_keys_readable"): 1}


class TestTorchServesOwn:
    @staticmethod
    def told(port: int) -> Series:
        registry = CollectorRegistry()
        registry.register(exporter.TorchServe(Settings(metrics_port=port)))
        return parsed(generate_latest(registry).decode())

    @pytest.mark.parametrize(
        ("status", "text", "seen"),
        [
            (200, "# TYPE Requests5XX counter\nRequests5XX 3.0\n", {key("Requests5XX_total"): 3.0}),
            (500, "# TYPE Requests5XX counter\nRequests5XX 3.0\n", {}),
            (200, "Requests5XX three\n", {}),
        ],
    )
    def test_it_is_handed_on(self, status: int, text: str, seen: Series) -> None:
        answer = f"HTTP/1.0 {status} -\r\n\r\n{text}".encode()
        with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
            told = pool.submit(self.told, server.getsockname()[1])
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
            assert told.result(10) == seen

    def test_it_is_left_out_while_torchserve_is_away(self) -> None:
        (port,) = free_ports(1)
        assert self.told(port) == {}


def test_prometheus_may_be_let_in_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORTER_HOST", "127.0.0.2")
    host = Settings.from_environment().exporter_host
    settings = free_settings(tmp_path).model_copy(update={"exporter_host": host})
    exporter.clear(settings)
    with exporter.exported(settings, {}, dict):
        port = settings.exporter_port
        assert "bloodcells_up 0.0" in requests.get(f"http://127.0.0.2:{port}", timeout=10).text
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{port}", timeout=10)


def test_nothing_is_expected_of_a_version_that_was_not_measured(collect: Collect) -> None:
    versions = {dict(labels)["version"] for name, labels in collect() if "expected" in name}
    assert versions == {"1.0", "2.0"}


# The files for Prometheus and Grafana


@pytest.fixture(scope="module")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return promtool; without it, skip, but not in CI."""
    if not prometheus.is_installed():
        if os.environ.get("CI"):
            pytest.fail(prometheus.MISSING)
        pytest.skip(prometheus.MISSING)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["promtool", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_the_files_are_valid(promtool: Any) -> None:
    for what, name in (("config", "prometheus.yml"), ("rules", "rules.yml")):
        checked = promtool("check", what, DEPLOY / name)
        assert checked.returncode == 0, checked.stderr


def test_alerts_come_when_they_should_and_tests_see_when_not(promtool: Any, tmp_path: Path) -> None:
    """Run the rules' tests on them as they are, with alerts that never come, and that always do."""
    folders = {
        "as they are": tmp_path / "as",
        "never": tmp_path / "never",
        "always": tmp_path / "always",
    }
    for name, folder in folders.items():
        folder.mkdir()
        rules = yaml.safe_load((DEPLOY / "rules.yml").read_text())
        if name != "as they are":
            # What they record is asked for no more.
            rules["groups"] = rules["groups"][-1:]
        for rule in rules["groups"][-1]["rules"]:
            if name == "never":
                rule["expr"] = "vector(0) > 1"
            if name == "always":
                rule.pop("for", None)
                rule["expr"] = "vector(1)"
        (folder / "rules.yml").write_text(yaml.safe_dump(rules, sort_keys=False))
        (folder / "rules.test.yml").write_text((DEPLOY / "rules.test.yml").read_text())
    with ThreadPoolExecutor() as pool:
        told = dict(
            zip(
                folders,
                pool.map(
                    lambda each: promtool("test", "rules", each / "rules.test.yml"),
                    folders.values(),
                ),
                strict=True,
            )
        )
    assert told["as they are"].returncode == 0, told["as they are"].stdout
    names = {rule["alert"] for rule in ALERTS}
    for name in ("never", "always"):
        output = told[name].stdout + told[name].stderr
        failed = set(re.findall(r"alertname: ?(\w+)", output))
        assert told[name].returncode != 0
        assert failed == names, name


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_is_and_where_to_read_on(alert: Mapping[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"]
    path, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_port_is_the_default() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    default = Settings()
    target = f"{default.exporter_host}:{default.exporter_port}"
    assert job["static_configs"] == [{"targets": [target]}]


def test_panels_do_not_overlap() -> None:
    taken = [
        (panel["gridPos"]["x"] + across, panel["gridPos"]["y"] + down)
        for panel in DASHBOARD["panels"]
        for across in range(panel["gridPos"]["w"])
        for down in range(panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


# A real Prometheus beside a real service


@pytest.fixture(scope="module")
def watcher(
    promtool: Any, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    with prometheus.watching(service.settings, tmp_path_factory.mktemp("prometheus")) as watcher:
        yield watcher


@pytest.fixture
def send(service: Service) -> Callable[..., requests.Response]:
    def post(kind: str = "predictions", path: str = "", **what: Any) -> requests.Response:
        token = Tokens(service.settings.run_dir).header("inference")
        url = f"{service.settings.inference_url}/{kind}/bloodcells{path}"
        headers = what.pop("headers", {}) | token
        return requests.post(url, headers=headers, timeout=60, **what)

    return post


BYTES = {"Content-Type": "application/octet-stream"}


def exported(service: Service) -> Series:
    url = f"http://127.0.0.1:{service.settings.exporter_port}/metrics"
    return parsed(requests.get(url, timeout=10).text)


def counters(seen: Series) -> Series:
    """Return what the project itself counts."""
    own = re.compile("bloodcells_.+_total")
    return {each: value for each, value in seen.items() if own.fullmatch(each[0])}


def growth(before: Series, after: Series) -> Series:
    """Return what has grown, and by how much; nothing may have fallen."""
    new = {each: value - before.get(each, 0) for each, value in after.items()}
    assert all(value >= 0 for value in new.values())
    return {each: value for each, value in new.items() if value}


def watched(watcher: Prometheus, expression: str, name: str) -> Series:
    """Return the series of one name as Prometheus holds them, without what it adds."""
    return {
        key(
            name,
            **{k: v for k, v in each["metric"].items() if k not in ("job", "instance", "__name__")},
        ): float(each["value"][1])
        for each in watcher.query(expression)
    }


def test_prometheus_finds_what_was_asked(
    watcher: Prometheus, service: Service, send: Callable[..., requests.Response]
) -> None:
    before = counters(exported(service))
    samples = {path.stem.upper(): path.read_bytes() for path in known_answers.SAMPLES.glob("*.png")}
    answers = [send(headers=BYTES, data=image).json() for image in samples.values()]
    assert send(headers=BYTES, data=samples["MONOCYTE"][:2000]).status_code == 400
    assert send(headers=BYTES, data=b"no image").status_code == 415
    files = samples | {"damaged": b"no image"}
    answers += send(path="/1.0", files=files).json()["predictions"]
    asked = growth(before, counters(exported(service)))

    told = [answer for answer in answers if "verdict" in answer]
    assert len(told) == 8
    expected: Series = {}
    for answer in told:
        labels = {"label": answer["label"] or "none", "verdict": answer["verdict"]}
        each = key("bloodcells_predictions_total", version=answer["version"], **labels)
        expected[each] = expected.get(each, 0) + 1
    expected[key(REJECTS, version="2.0", type="CorruptImage")] = 1
    expected[key(REJECTS, version="2.0", type="UnsupportedImage")] = 1
    expected[key(REJECTS, version="1.0", type="UnsupportedImage")] = 1
    assert asked == expected

    # And so does Prometheus, at its next look.
    names = ("bloodcells_predictions_total", REJECTS)
    now = counters(exported(service))
    wanted = {each: value for each, value in now.items() if each[0] in names}
    deadline = time.monotonic() + 60
    while True:
        seen = watched(watcher, names[0], names[0]) | watched(watcher, REJECTS, REJECTS)
        if seen == wanted or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert seen == wanted


def test_an_explanation_is_counted_as_one(
    service: Service, send: Callable[..., requests.Response], sample_image: Path
) -> None:
    before = counters(exported(service))
    answer = send("explanations", "/1.0", headers=BYTES, data=sample_image.read_bytes()).json()
    assert growth(before, counters(exported(service))) == {
        key("bloodcells_explanations_total"): 1,
        key(
            "bloodcells_predictions_total",
            version="1.0",
            label=answer["label"],
            verdict=answer["verdict"],
        ): 1,
    }


def test_known_images_that_try_the_service_are_not_counted(service: Service) -> None:
    before = counters(exported(service))
    client = InferenceClient(service.settings)
    client.check_ready()
    client.close()
    assert requests.get(f"{service.frontend_url}/readyz", timeout=30).ok
    assert growth(before, counters(exported(service))) == {}


def test_seconds_and_sizes_of_batches(
    service: Service, send: Callable[..., requests.Response], sample_image: Path
) -> None:
    before = exported(service)
    for _ in range(3):
        send(headers=BYTES, data=sample_image.read_bytes())
    send(headers=BYTES, data=b"no image")
    new = growth(
        {},
        {
            e: v - before.get(e, 0)
            for e, v in exported(service).items()
            if "_seconds_" in e[0] or "_size_" in e[0]
        },
    )
    assert new[key("bloodcells_batch_size_count", version="2.0")] == 4
    assert new[key("bloodcells_batch_size_sum", version="2.0")] == 4
    assert new[key("bloodcells_decode_seconds_count", version="2.0")] == 4
    # What is no image reaches no network.
    assert new[key("bloodcells_network_seconds_count", version="2.0")] == 3
    assert 0 < new[key("bloodcells_network_seconds_sum", version="2.0")] < 60


def test_the_page_is_measured(service: Service) -> None:
    before = exported(service)
    for path in ("/", "/nobody", "/nowhere"):
        requests.get(service.frontend_url + path, timeout=30)
    after = exported(service)
    for endpoint, status, count in (("page.index", "200", 1), ("none", "404", 2)):
        each = key(PAGE_COUNT, endpoint=endpoint, method="GET", status=status)
        assert after[each] - before.get(each, 0) == count


def test_what_a_killed_worker_counted_is_not_lost(
    service: Service, send: Callable[..., requests.Response], sample_image: Path
) -> None:
    assert send(headers=BYTES, path="/1.0", data=sample_image.read_bytes()).ok
    before = counters(exported(service))
    management = ManagementClient(service.settings)
    [worker] = management.describe("1.0")["workers"]
    os.kill(worker["pid"], signal.SIGKILL)
    started = key("bloodcells_worker_starts_total", version="1.0")
    ready = key("bloodcells_workers_ready", version="1.0")
    deadline = time.monotonic() + 60
    while True:
        after = exported(service)
        growth(before, counters(after))
        if after[started] > before[started] and after[ready] == 1:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    management.close()
    assert growth(before, counters(after)) == {started: 1}
    assert send(headers=BYTES, path="/1.0", data=sample_image.read_bytes()).ok
    grown = growth(before, counters(exported(service)))
    assert [name for name, _ in sorted(grown)] == [
        "bloodcells_predictions_total",
        "bloodcells_worker_starts_total",
    ]


def test_every_rule_can_be_evaluated(watcher: Prometheus) -> None:
    """All of them, on the series of a real service: no error, and no clash of labels."""
    deadline = time.monotonic() + 60
    while True:
        groups = requests.get(f"{watcher.url}/api/v1/rules", timeout=10).json()["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        if all(rule["health"] != "unknown" for rule in rules) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    bad = {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"}
    assert bad == {}
    assert len(rules) == len(ALERTS) + len(RECORDED)


def test_rules_and_dashboard_ask_for_what_there_is(
    watcher: Prometheus, service: Service, send: Callable[..., requests.Response]
) -> None:
    send(headers=BYTES, data=b"no image")
    need_nginx()
    edge = run_edge(service.settings)
    url = f"http://127.0.0.1:{service.settings.exporter_port}/metrics"
    live = requests.get(url, timeout=10).text
    edge.stop()
    # Some only get a value when something fails, but they are announced.
    exists = set(re.findall(r"^(?:# TYPE )?(\w+)", live, re.MULTILINE)) | OWN | RECORDED
    asked = set()
    for expression in [
        rule["expr"] for group in RULES["groups"] for rule in group["rules"]
    ] + QUERIES:
        watcher.query(expression)
        asked |= set(re.findall(r"\b(?:bloodcells[_:]|ts_|Requests\d)[\w:]*|\bup\b", expression))
    assert asked - exists == set()
    assert len(asked) > 20


def test_the_exporter_listens_on_loopback_alone(service: Service) -> None:
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(service.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.port == service.settings.exporter_port
    ]
    assert listening == ["127.0.0.1"]


def test_roles_of_the_running_service(service: Service) -> None:
    seen = exported(service)
    assert seen[key("bloodcells_version_info", version=DEPLOYMENT.default, role="default")] == 1
    assert seen[key("bloodcells_up")] == 1
    assert 0 < seen[key("bloodcells_token_seconds", kind="inference")] <= 3600
    assert seen[key("bloodcells_memory_bytes", part="workers")] > 5e7


def test_neither_logs_nor_metrics_name_anybody(
    service: Service, send: Callable[..., requests.Response], sample_image: Path
) -> None:
    """Ask with a person's name in all places that a client chooses."""
    name = "Maria-Silva"
    image = sample_image.read_bytes()
    for content in (image, image[:2000], b"no image"):
        send(files={name: (f"{name}.png", content)}, params={"patient": name})
        send(headers=BYTES | {"X-Patient": name}, data=content)
        requests.post(
            f"{service.frontend_url}/{name}",
            files={"image": (f"{name}.png", content)},
            headers={"User-Agent": name},
            timeout=30,
        )
    written = [*(service.settings.run_dir / "logs").iterdir(), *service.settings.metrics.iterdir()]
    told = b"".join(file.read_bytes() for file in [*written, service.printed])
    assert b"refused" in told or b"ready after" in told
    assert name.encode() not in told
    token = Tokens(service.settings.run_dir).header("inference")["Authorization"]
    assert token.removeprefix("Bearer ").encode() not in told

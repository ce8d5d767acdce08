"""A real service and a real Prometheus: the effect of requests on the metrics."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prometheus
import psutil
import pytest
import requests
from conftest import DEPLOYMENT
from series import INPUT_ERRORS, PAGE_COUNT, Series, key, parsed
from test_metrics import ALERTS, DASHBOARD, RULES

from frontend import metrics as page_metrics
from serving.client import InferenceClient, ManagementClient
from serving.deployment import known_answers
from serving.torchserve.tokens import Tokens
from testing.service import Service

PATIENCE = 60
BYTES = {"Content-Type": "application/octet-stream"}
PREDICTIONS = "bloodcells_predictions_total"
EXPRESSIONS = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]
RECORDED = {
    rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule
}
# From Prometheus itself, and from an edge (tests/test_edge.py).
OTHERS = {"up", "ALERTS", "bloodcells_certificate_seconds"}
OTHERS |= {"bloodcells_edge_up", "bloodcells_edge_keys_readable"}

Send = Callable[..., requests.Response]


@pytest.fixture
def send(service: Service) -> Send:
    def post(kind: str = "predictions", path: str = "", **what: Any) -> requests.Response:
        token = Tokens(service.settings.run_dir).header("inference")
        url = f"{service.settings.inference_url}/{kind}/bloodcells{path}"
        headers = what.pop("headers", {}) | token
        return requests.post(url, headers=headers, timeout=PATIENCE, **what)

    return post


def eventually(condition: Callable[[], Any]) -> Any:
    """Return the first true value of a condition."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def exported(service: Service) -> Series:
    url = f"http://127.0.0.1:{service.settings.exporter_port}/metrics"
    return parsed(requests.get(url, timeout=PATIENCE).text)


def counters(service: Service) -> Series:
    """Return the project's own counters."""
    own = re.compile("bloodcells_.+_total")
    return {each: value for each, value in exported(service).items() if own.fullmatch(each[0])}


def growth(before: Series, after: Series) -> Series:
    """Return the counters that grew, and by how much; none may have decreased."""
    new = {each: value - before.get(each, 0) for each, value in after.items()}
    assert all(value >= 0 for value in new.values())
    return {each: value for each, value in new.items() if value}


def test_every_answer_is_counted(service: Service, send: Send) -> None:
    before = counters(service)
    samples = {path.stem.upper(): path.read_bytes() for path in known_answers.SAMPLES.glob("*.png")}
    answers = [send(headers=BYTES, data=image).json() for image in samples.values()]
    assert send(headers=BYTES, data=samples["MONOCYTE"][:2000]).status_code == 400
    assert send(headers=BYTES, data=b"no image").status_code == 415
    files = samples | {"damaged": b"no image"}
    answers += send(path="/1.0", files=files).json()["predictions"]
    explained = send("explanations", "/1.0", headers=BYTES, data=samples["MONOCYTE"]).json()
    after = counters(service)

    classified = [answer for answer in [*answers, explained] if "verdict" in answer]
    assert len(classified) == 9
    expected: Series = {
        key(INPUT_ERRORS, version="3.0", type="CorruptImage"): 1,
        key(INPUT_ERRORS, version="3.0", type="UnsupportedImage"): 1,
        key(INPUT_ERRORS, version="1.0", type="UnsupportedImage"): 1,
        key("bloodcells_explanations_total"): 1,
    }
    for answer in classified:
        labels = {"label": answer["label"] or "none", "verdict": answer["verdict"]}
        each = key(PREDICTIONS, version=answer["version"], **labels)
        expected[each] = expected.get(each, 0) + 1
    assert growth(before, after) == expected


def test_known_images_of_health_checks_are_not_counted(service: Service) -> None:
    before = counters(service)
    client = InferenceClient(service.settings)
    client.check_ready()
    client.close()
    assert requests.get(f"{service.frontend_url}/readyz", timeout=PATIENCE).ok
    assert growth(before, counters(service)) == {}


def test_batches_and_the_page_are_measured(
    service: Service, send: Send, sample_image: Path
) -> None:
    before = exported(service)
    send(headers=BYTES, data=sample_image.read_bytes())
    send(headers=BYTES, data=b"no image")
    for path in ("/", "/nobody", "/nowhere"):
        requests.get(service.frontend_url + path, timeout=PATIENCE)
    after = exported(service)
    new = {each: value - before.get(each, 0) for each, value in after.items()}
    assert new[key("bloodcells_batch_size_count", version="3.0")] == 2
    assert new[key("bloodcells_batch_size_sum", version="3.0")] == 2
    assert new[key("bloodcells_decode_seconds_count", version="3.0")] == 2
    # What is not an image does not reach the networks.
    assert new[key("bloodcells_network_seconds_count", version="3.0")] == 1
    for endpoint, status, count in (("page.index", "200", 1), ("none", "404", 2)):
        assert new[key(PAGE_COUNT, endpoint=endpoint, method="GET", status=status)] == count
    [page] = service.settings.metrics.glob(f"histogram_{page_process(service)}.db")
    assert page.stat().st_size == page_metrics.ROOM
    assert int.from_bytes(page.read_bytes()[:4], "little") < page_metrics.ROOM / 10


def page_process(service: Service) -> int:
    [page] = [
        each.pid
        for each in psutil.Process(service.process.pid).children()
        if "frontend" in each.cmdline()
    ]
    return page


def test_the_counts_of_a_killed_worker_are_kept(
    service: Service, send: Send, sample_image: Path
) -> None:
    assert send(headers=BYTES, path="/1.0", data=sample_image.read_bytes()).ok
    before = counters(service)
    management = ManagementClient(service.settings)
    [worker] = management.describe("1.0")["workers"]
    management.close()
    os.kill(worker["pid"], signal.SIGKILL)
    started = key("bloodcells_worker_starts_total", version="1.0")
    ready = key("bloodcells_workers_ready", version="1.0")

    def replaced() -> bool:
        after = exported(service)
        return after[started] > before[started] and after[ready] == 1

    eventually(replaced)
    assert growth(before, counters(service)) == {started: 1}
    # Its own files are merged into those of all that have ended.
    assert list(service.settings.metrics.glob(f"*_{worker['pid']}.db")) == []
    assert send(headers=BYTES, path="/1.0", data=sample_image.read_bytes()).ok
    assert {name for name, _ in growth(before, counters(service))} == {PREDICTIONS, started[0]}


def test_prometheus_can_evaluate_every_rule_and_panel(service: Service, tmp_path: Path) -> None:
    """On the series of a real service: no error, and no clash of labels."""
    if not prometheus.is_installed():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(prometheus.MISSING)
    with prometheus.watching(service.settings, tmp_path) as watcher:

        def evaluated() -> list[dict[str, Any]]:
            answer = requests.get(f"{watcher.url}/api/v1/rules", timeout=PATIENCE).json()
            rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
            return rules if all(rule["health"] != "unknown" for rule in rules) else []

        eventually(lambda: watcher.query(PREDICTIONS))
        rules = eventually(evaluated)
        for expression in EXPRESSIONS:
            watcher.query(expression)
    errors = {each["name"]: each.get("lastError") for each in rules if each["health"] != "ok"}
    assert errors == {}
    assert len(rules) == len(ALERTS) + len(RECORDED)


def test_rules_and_dashboard_use_metrics_that_exist(service: Service, send: Send) -> None:
    send(headers=BYTES, data=b"no image")
    url = f"http://127.0.0.1:{service.settings.exporter_port}/metrics"
    live = requests.get(url, timeout=PATIENCE).text
    # Some have no value before a failure, but are announced.
    exist = set(re.findall(r"^(?:# TYPE )?(\w+)", live, re.MULTILINE)) | RECORDED | OTHERS
    used: set[str] = set()
    for expression in EXPRESSIONS:
        used |= set(re.findall(r"\b(?:bloodcells[_:]|ts_|Requests\d)[\w:]*|\bup\b", expression))
    assert used - exist == set()
    assert len(used) > 20


def test_the_state_of_the_running_service(service: Service) -> None:
    seen = exported(service)
    assert seen[key("bloodcells_version_info", version=DEPLOYMENT.default, role="default")] == 1
    assert seen[key("bloodcells_up")] == 1
    assert 0 < seen[key("bloodcells_token_seconds", kind="inference")] <= 3600
    assert seen[key("bloodcells_memory_bytes", part="workers")] > 5e7

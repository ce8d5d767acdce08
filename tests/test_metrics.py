"""Counters, exporter, rules and dashboard, without a service."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import prometheus
import pytest
import requests
import yaml
from conftest import CARDS, free_settings
from flask import Flask
from prometheus import DEPLOY
from prometheus_client import values
from series import INPUT_ERRORS, PAGE_COUNT, Series, collected, key, read

from frontend import create_app
from frontend import metrics as page_metrics
from handler import metrics
from handler.bounds import InputError, corrupt
from serving import deployment
from serving.client import Unreachable
from serving.deployment import Canary, Deployment, VersionSpec
from serving.settings import ROOT, Settings
from serving.supervisor import exporter

RULES = yaml.safe_load((DEPLOY / "rules.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
# No process has this number: it is above the kernel's maximum.
NOBODY = (1 << 22) + 1
CLASSES = ("MONOCYTE", "NEUTROPHIL", "BASOPHIL", "BLAST")


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make prometheus_client count in files, as if the variable were set from the start."""
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.MultiProcessValue())
    yield tmp_path
    values.close_all_multiprocess_files()


def run_worker(folder: Path, process: int, *answers: Any, version: str = "3.0") -> None:
    """Make a worker with another process id count its start and some answers, and exit."""
    values.ValueClass = values.MultiProcessValue(lambda: process)
    metrics.Metrics(version, CLASSES).answered(answers)
    values.close_all_multiprocess_files()


def said(label: str | None, verdict: str, **more: Any) -> dict[str, Any]:
    return {"label": label, "verdict": verdict, **more}


@pytest.fixture
def counted(folder: Path) -> metrics.Metrics:
    return metrics.start("3.0", CLASSES)


def test_answers_and_input_errors(counted: metrics.Metrics, folder: Path) -> None:
    counted.answered(
        [
            said("MONOCYTE", "confident"),
            said("MONOCYTE", "confident", heat_map="..."),
            said("MONOCYTE", "uncertain"),
            said(None, "rejected"),
            corrupt(),
            corrupt(),
            InputError(400, "EmptyImage", "It is empty."),
            InputError(400, "Unforeseen", "It is new."),
        ]
    )
    name = "bloodcells_predictions_total"
    seen = read(folder)
    counted.decoded(3, 0.0025)
    counted.examined(60)
    assert {each: count for each, count in seen.items() if count} == {
        key(name, version="3.0", label="MONOCYTE", verdict="confident"): 2,
        key(name, version="3.0", label="MONOCYTE", verdict="uncertain"): 1,
        key(name, version="3.0", label="none", verdict="rejected"): 1,
        key(INPUT_ERRORS, version="3.0", type="CorruptImage"): 2,
        key(INPUT_ERRORS, version="3.0", type="EmptyImage"): 1,
        key(INPUT_ERRORS, version="3.0", type="Unforeseen"): 1,
        key("bloodcells_explanations_total"): 1,
        key("bloodcells_worker_starts_total", version="3.0"): 1,
    }
    seen = read(folder)
    assert seen[key("bloodcells_batch_size_sum", version="3.0")] == 3
    for bound in metrics.SECONDS:
        count = seen[key("bloodcells_decode_seconds_bucket", version="3.0", le=str(bound))]
        assert count == (bound >= 0.0025)
    assert seen[key("bloodcells_network_seconds_count", version="3.0")] == 1


def test_all_series_start_at_0(counted: metrics.Metrics, folder: Path) -> None:
    """Prometheus would not see an increase to the first value otherwise."""
    seen = read(folder)
    name = "bloodcells_predictions_total"
    answers = {each: count for each, count in seen.items() if each[0] == name}
    verdicts = [*product(CLASSES, ("confident", "uncertain")), ("none", "rejected")]
    assert answers == {
        key(name, version="3.0", label=label, verdict=verdict): 0 for label, verdict in verdicts
    }
    code = "".join(path.read_text() for path in (ROOT / "handler").glob("*.py"))
    named = set(re.findall(r'InputError\(\s*\d+,\s*"(\w+)"', code))
    assert code.count("InputError(") == len(re.findall(r"InputError\(\s*\d+", code)) + 1
    errors = {each: count for each, count in seen.items() if each[0] == INPUT_ERRORS}
    # It is counted by itself.
    named.remove("ServiceBusy")
    assert seen[key("bloodcells_put_off_total", version="3.0")] == 0
    assert errors == {key(INPUT_ERRORS, version="3.0", type=kind): 0 for kind in named}


def test_without_room_nothing_is_counted_and_all_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    metrics.start("3.0", CLASSES).answered([said("MONOCYTE", "confident")])
    assert caplog.messages == ["No metrics are exported: [Errno 28] No space left on device"]
    app = create_app({"CLIENT": None, "SECRET_KEY": "test"})
    before = counts()
    assert app.test_client().get("/healthz").status_code == 200
    assert counts() == before
    assert list(folder.iterdir()) == []


def test_ended_workers_are_merged(folder: Path) -> None:
    metrics.start("3.0", CLASSES).answered([said("NEUTROPHIL", "confident")])
    for file in folder.iterdir():
        assert file.stat().st_blocks * 512 >= file.stat().st_size == metrics.ROOM
    for number in range(5):
        run_worker(folder, NOBODY + number, said("NEUTROPHIL", "confident"))
        read(folder)
    run_worker(folder, NOBODY, said("NEUTROPHIL", "confident"), version="1.0")
    for _ in range(2):
        seen, name = read(folder), "bloodcells_predictions_total"
        assert seen[key(name, version="3.0", label="NEUTROPHIL", verdict="confident")] == 6
        assert seen[key(name, version="1.0", label="NEUTROPHIL", verdict="confident")] == 1
        assert seen[key("bloodcells_worker_starts_total", version="3.0")] == 6
    # Only two files for all that have ended.
    assert {path.name for path in folder.iterdir()} == {
        f"{kind}_{owner}.db"
        for kind in ("counter", "histogram")
        for owner in (os.getpid(), "ended")
    }


def test_on_a_full_disk_files_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_worker(folder, NOBODY, said("NEUTROPHIL", "confident"))
    started = key("bloodcells_worker_starts_total", version="3.0")
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", no_room)
        assert read(folder)[started] == 1
        assert (folder / f"counter_{NOBODY}.db").exists()
    assert read(folder)[started] == 1
    assert not (folder / f"counter_{NOBODY}.db").exists()


@pytest.fixture
def stand_in() -> None:
    """A stand-in for the service's client, which no test here uses."""


def counts() -> Series:
    return {
        key(sample.name, **sample.labels): sample.value
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
    ],
)
def test_requests_are_counted_by_endpoint(
    app: Flask, method: str, path: str, endpoint: str, counted_as: str, status: str
) -> None:
    before = counts()
    app.test_client().open(path, method=method)
    counted = key(PAGE_COUNT, endpoint=endpoint, method=counted_as, status=status)
    new = {each: count - before.get(each, 0) for each, count in counts().items()}
    assert {each: count for each, count in new.items() if count} == {counted: 1}


def test_a_page_that_cannot_write_its_metrics_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Also as root, nothing can be written below a file.
    (tmp_path / "read-only").touch()
    monkeypatch.setenv(page_metrics.FOLDER, str(tmp_path / "read-only" / "metrics"))
    app = create_app({"CLIENT": None})
    assert app.test_client().get("/healthz").status_code == 200
    assert "requests are not measured" in caplog.text


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


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Series]:
    """Return a function that looks the state up."""
    monkeypatch.setattr(exporter, "ManagementClient", Management)
    described_versions = {"1.0": described("READY"), "3.0": described("READY", "UNLOADED")}
    monkeypatch.setattr(Management, "described", described_versions)
    settings = Settings(run_dir=tmp_path, deployment=tmp_path / "deployment.yaml")
    versions = {"1.0": VersionSpec(1), "3.0": VersionSpec(2), "9.9": VersionSpec(1)}
    deployment.save(Deployment("3.0", versions, Canary("1.0", 10)), settings.deployment)
    processes = {"supervisor": os.getpid()}
    return lambda: collected(exporter.State(settings, {"page": 3}, lambda: processes))


def test_state_of_a_service(look: Callable[[], Series], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = look()
    expected: Series = {
        key("bloodcells_up"): 1,
        key("bloodcells_deployment_readable"): 1,
        key("bloodcells_workers_wanted", version="3.0"): 2,
        key("bloodcells_workers_ready", version="3.0"): 1,
        # Not in TorchServe.
        key("bloodcells_workers_ready", version="9.9"): 0,
        key("bloodcells_queue_waiting", version="1.0"): 28,
        key("bloodcells_queue_room", version="1.0"): 100,
        key("bloodcells_restarts_total", part="page"): 3,
        key("bloodcells_version_info", version="1.0", role="canary"): 1,
        key("bloodcells_version_info", version="3.0", role="default"): 1,
        key("bloodcells_version_info", version="9.9", role="standby"): 1,
    }
    assert expected.items() <= seen.items()
    assert seen[key("bloodcells_memory_bytes", part="supervisor")] > 1e6
    assert seen[key("bloodcells_disk_free_bytes")] > 1e6
    measured = json.loads((ROOT / "models" / "3.0" / "metrics.json").read_text())
    doubt = seen[key("bloodcells_expected_doubt", version="3.0")]
    assert doubt == pytest.approx(1 - measured["test_verdicts"]["confident"], abs=1e-3)
    shares = {each: value for each, value in seen.items() if each[0] == "bloodcells_expected_share"}
    # Nothing is expected of a version without measurements.
    assert {dict(each[1])["version"] for each in shares} == {"1.0", "3.0"}
    assert sum(shares.values()) == pytest.approx(2)
    assert len(shares) == sum(len(CARDS[version]["classes"]) for version in ("1.0", "3.0"))
    # A version that loads has no worker and is not in the deployment yet.
    monkeypatch.setattr(Management, "described", {"4.0": described()})
    assert key("bloodcells_workers_ready", version="4.0") not in look()
    # TorchServe is down.
    monkeypatch.setattr(Management, "described", None)
    seen = look()
    assert seen[key("bloodcells_up")] == 0
    assert seen[key("bloodcells_workers_ready", version="3.0")] == 0
    assert seen[key("bloodcells_workers_wanted", version="3.0")] == 2
    assert not any(name == "bloodcells_token_seconds" for name, _ in seen)


def test_shares_are_of_the_labels_that_a_version_can_give(tmp_path: Path) -> None:
    """Also of those that it never gave, and without the images that got no label."""
    (tmp_path / "3.0").mkdir()
    test = {"predicted": ["NEUTROPHIL", "BASOPHIL", "no cell"], "confusion": [[3, 1, 6]]}
    measured = {"test": test, "test_verdicts": {"uncertain": 0.25, "rejected": 0.125}}
    (tmp_path / "3.0" / "metrics.json").write_text(json.dumps(measured))
    (tmp_path / "3.0" / "card.json").write_text(json.dumps({"classes": CLASSES}))
    wanted = Deployment("3.0", {"3.0": VersionSpec(1)})
    share, doubt = exporter._expected(wanted, tmp_path)
    found = {sample.labels["label"]: sample.value for sample in share.samples}
    assert found == {"MONOCYTE": 0, "NEUTROPHIL": 0.75, "BASOPHIL": 0.25, "BLAST": 0}
    assert [sample.value for sample in doubt.samples] == [0.375]


@pytest.mark.parametrize("text", ["default: ", "}", None])
def test_while_the_deployment_cannot_be_read(
    look: Callable[[], Series], tmp_path: Path, text: str | None
) -> None:
    """TorchServe's own versions are exported, so that their alerts still fire."""
    file = tmp_path / "deployment.yaml"
    file.write_text(text) if text else file.unlink()
    seen = look()
    assert seen[key("bloodcells_deployment_readable")] == 0
    by_version = {each: value for each, value in seen.items() if dict(each[1]).get("version")}
    assert by_version == {
        key(f"bloodcells_{name}", version=version): value
        for version in ("1.0", "3.0")
        for name, value in (("workers_ready", 1), ("queue_waiting", 28), ("queue_room", 100))
    }


@pytest.mark.parametrize(
    ("status", "text", "seen"),
    [
        (200, "# TYPE Requests5XX counter\nRequests5XX 3.0\n", {key("Requests5XX_total"): 3.0}),
        (500, "# TYPE Requests5XX counter\nRequests5XX 3.0\n", {}),
        (200, "Requests5XX three\n", {}),
        (None, "", {}),
    ],
)
def test_torchserves_own_metrics_are_forwarded(status: int | None, text: str, seen: Series) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        torchserve = exporter.TorchServe(Settings(metrics_port=server.getsockname()[1]))
        forwarded = pool.submit(collected, torchserve)
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            if status:
                connection.sendall(f"HTTP/1.0 {status} -\r\n\r\n{text}".encode())
        assert forwarded.result(60) == seen


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run promtool; without it, skip, but not in CI."""
    if not prometheus.is_installed():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(prometheus.MISSING)
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("kind", "name"), [("config", "prometheus.yml"), ("rules", "rules.yml")])
def test_is_valid(kind: str, name: str) -> None:
    checked = promtool("check", kind, DEPLOY / name)
    assert checked.returncode == 0, checked.stderr
    if kind == "config":
        (job,) = yaml.safe_load((DEPLOY / name).read_text())["scrape_configs"]
        target = f"{Settings().exporter_host}:{Settings().exporter_port}"
        assert job["static_configs"] == [{"targets": [target]}]


@pytest.mark.parametrize(
    "alerts",
    [
        "as they are",
        "never",
        pytest.param("always", marks=pytest.mark.long),
    ],
)
def test_alerts_fire_when_they_should(tmp_path: Path, alerts: str) -> None:
    """Run the rules' tests on the alerts as they are, if none ever fires, and if all do."""
    rules = yaml.safe_load((DEPLOY / "rules.yml").read_text())
    if alerts != "as they are":
        # The recording rules are not needed then.
        rules["groups"] = rules["groups"][-1:]
        for rule in rules["groups"][0]["rules"]:
            rule.pop("for", None)
            rule["expr"] = "vector(1)" if alerts == "always" else "vector(0) > 1"
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules, sort_keys=False))
    (tmp_path / "rules.test.yml").write_text((DEPLOY / "rules.test.yml").read_text())
    done = promtool("test", "rules", tmp_path / "rules.test.yml")
    output = done.stdout + done.stderr
    if alerts == "as they are":
        assert done.returncode == 0, output
    else:
        failed = set(re.findall(r"alertname: ?(\w+)", output))
        assert failed == {rule["alert"] for rule in ALERTS}


def test_each_alert_has_a_runbook() -> None:
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"]["summary"]
        path, _, anchor = alert["annotations"]["runbook"].partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_exporter_may_listen_on_another_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORTER_HOST", "127.0.0.2")
    host = Settings.from_environment().exporter_host
    settings = free_settings(tmp_path).model_copy(update={"exporter_host": host})
    exporter.clear(settings)
    with exporter.exported(settings, {}, dict):
        port = settings.exporter_port
        assert "bloodcells_up 0.0" in requests.get(f"http://127.0.0.2:{port}", timeout=60).text
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{port}", timeout=60)

"""A real Prometheus with the rules of deploy/prometheus/, for a service on other ports."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
import yaml

from serving.http import local_session
from serving.settings import HOST, ROOT, Settings
from testing.service import free_ports

DEPLOY = ROOT / "deploy" / "prometheus"
MISSING = "There is no Prometheus (Debian: apt install prometheus)."
PATIENCE = 60.0


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the current value of an expression: a list of {metric, value}."""
        with local_session() as session:
            parameters = {"query": expression}
            response = session.get(f"{self.url}/api/v1/query", params=parameters, timeout=60)
        document = response.json()
        if document["status"] != "success":
            raise ValueError(document["error"])
        result: list[dict[str, Any]] = document["data"]["result"]
        return result


def is_installed() -> bool:
    return bool(shutil.which("prometheus") and shutil.which("promtool"))


@contextlib.contextmanager
def watching(settings: Settings, folder: Path, interval: str = "1s") -> Iterator[Prometheus]:
    """Run Prometheus for a service, with a shorter interval."""
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(config_for(settings, interval)))
    rules = yaml.safe_load((DEPLOY / "rules.yml").read_text())
    for group in rules["groups"]:
        group.pop("interval", None)
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    url = f"http://{HOST}:{free_ports(1)[0]}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={url.removeprefix('http://')}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(url, process)
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(60)


def config_for(settings: Settings, interval: str) -> Mapping[str, Any]:
    """Return the deployed configuration for a service on another port."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"{HOST}:{settings.exporter_port}"]}]
    return config


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.RequestException), local_session() as session:
            if session.get(f"{url}/-/ready", timeout=PATIENCE).ok:
                return
        time.sleep(0.1)
    raise AssertionError("Prometheus did not start.")

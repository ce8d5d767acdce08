"""What the edge costs: `python -m benchmarks.edge`, with nginx, wrk and the images at hand.

Version 1.0 is loaded by wrk on the same cores: TorchServe itself, over plain HTTP, and through the
edge, over TLS and with an API key. In each round each number of clients loads both, in turn.

Writes benchmarks/results/edge.json and a table of it.
"""

from __future__ import annotations

import datetime
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from benchmarks.bench import WARM_UP, Bodies, load
from benchmarks.bench_report import SMALL
from benchmarks.servers import SERVICE, VERSION, Running
from serving.deployment import Deployment, VersionSpec
from serving.edge.keys import KeyFile
from serving.settings import ROOT
from serving.torchserve.tokens import Tokens
from testing.service import free_settings, machine, run_edge, run_service
from training import data
from training.version_files import write_json

RESULTS = ROOT / "benchmarks" / "results" / "edge.json"
CLIENTS, ROUNDS, SECONDS = (1, 16, 64), 3, 3
TITLES = {"direct": "TorchServe, HTTP", "edge": "through the edge, TLS"}


def main() -> None:
    """Measure, and write it down."""
    others = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = measure(folder, Bodies(data.data_root(), folder))
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "load_before": round(others, 1),
        "rows": rows,
    }
    write_json(RESULTS, found)
    RESULTS.with_suffix(".md").write_text(report(found))


def measure(folder: Path, bodies: Bodies) -> list[dict[str, Any]]:
    """Load the service with and without its edge; return what came of each load."""
    wanted = Deployment(VERSION, {VERSION: VersionSpec(workers=machine()["cores"])})
    settings = free_settings(folder / "run", wanted)
    service = run_service(settings)
    edge = run_edge(settings, EDGE_RATE="100000")
    key = KeyFile(settings.run_dir / "edge-keys.json").add("bench")
    address = f"/predictions/bloodcells/{VERSION}"
    process = psutil.Process(service.process.pid)
    token = Tokens(settings.run_dir).header("inference")
    ways = {
        "direct": Running(settings.inference_url + address, process, token),
        "edge": Running(edge.url + address, process, {"Authorization": f"Bearer {key}"}),
    }
    sent = bodies.singles(SMALL, SERVICE)
    rows = []
    try:
        for running in ways.values():
            load(running, sent, 16, WARM_UP)
        for number in tqdm(range(ROUNDS), unit="round"):
            for clients in CLIENTS:
                for way, running in ways.items():
                    done = load(running, sent, clients, SECONDS)
                    rows.append({"round": number, "way": way, "clients": clients, **done})
    finally:
        edge.stop()
        service.stop()
    return rows


def report(found: dict[str, Any]) -> str:
    """Return the table."""
    cores = found["machine"]["cores"]
    lines = [
        "# What the edge costs",
        "",
        f"{found['date']}, {cores} cores ({found['machine']['processor']}), which wrk has, too; "
        f"version {VERSION}, images of TEST, 320x240; medians of {ROUNDS} rounds. "
        f"{load_of_others(found)} Written by `python -m benchmarks.edge`.",
        "",
        "| clients | | images a second | p50 | p99 | failed |",
        "|---|---|---|---|---|---|",
    ]
    for clients in CLIENTS:
        for way, title in TITLES.items():
            rows = [row for row in found["rows"] if row["clients"] == clients and row["way"] == way]
            middle = {
                name: statistics.median(row[name] for row in rows)
                for name in ("images_a_second", "p50", "p99")
            }
            failed = sum(row["failed"] for row in rows)
            lines.append(
                f"| {clients} | {title} | {middle['images_a_second']:,.0f} "
                f"| {middle['p50']:.2f} ms | {middle['p99']:.2f} ms | {failed} |"
            )
    return "\n".join(lines) + "\n"


def load_of_others(found: dict[str, Any]) -> str:
    """Tell whether the machine was our own."""
    if found["load_before"] < 0.5:
        return "Nothing else ran."
    return (
        f"The machine was shared (its load before: {found['load_before']}), so compare lines, "
        "not figures."
    )


if __name__ == "__main__":
    main()

"""Measure the cost of the edge: `python -m benchmarks.edge`. Needs nginx, wrk and the images.

Writes benchmarks/results/edge.{json,md}.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.bench import Bodies, compare
from benchmarks.bench_report import CLIENTS, SIZES, median, values
from benchmarks.report import RESULTS, Document, measured_on, table
from benchmarks.servers import EDGE, SERVICE

ROUNDS = 3


def page(found: Document) -> str:
    """Return the figures as Markdown."""
    rows = []
    for size in SIZES:
        for clients in CLIENTS:
            for server, title in ((SERVICE, "TorchServe, HTTP"), (EDGE, EDGE.title)):
                speed, p50, p99 = (
                    median(found, server.name, key, clients, size=size)
                    for key in ("images_a_second", "p50", "p99")
                )
                failed = sum(values(found, server.name, "failed", clients, size))
                figures = (f"{speed:,.0f}", f"{p50:.2f}", f"{p99:.2f}", failed)
                rows.append((size, clients, title, *figures))
    heads = ("image", "clients", "", "images a second", "p50, ms", "p99, ms", "failed")
    return (
        "# What the edge costs\n\n"
        f"Written by `python -m benchmarks.edge`. {measured_on(found)}, which service, edge and "
        f"wrk share; version 1.0; medians of {found['rounds']} rounds.\n\n{table(heads, rows)}"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        bodies = Bodies(report.images_root(), Path(folder))
        document = report.about() | compare([SERVICE, EDGE], bodies, ROUNDS)
    report.write(RESULTS, "edge", document, page(document))

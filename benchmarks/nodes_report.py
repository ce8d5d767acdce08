"""What clients saw while nodes failed, and what nodes brought: figures, a table, a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.drill_report import name_at, scatter

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = ("#4477aa", "#228833", "#ccbb44")


@dataclass(frozen=True)
class Request:
    """One request as its client saw it: seconds since the epoch, the nodes asked, the error."""

    time: float
    milliseconds: float
    # The last one answered.
    nodes: tuple[str, ...]
    error: str = ""

    @property
    def ended(self) -> float:
        return self.time + self.milliseconds / 1000

    @property
    def node(self) -> str:
        return self.nodes[-1] if self.nodes else ""


@dataclass
class Event:
    """What befell a node: when it began, when it was mended, and when the node answered again."""

    name: str
    node: str
    began: float = 0.0
    mended: float = 0.0
    back: float = 0.0


def summary(events: Sequence[Event], requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Return what clients saw of each event: those requests that were under way meanwhile."""
    rows = []
    for event in events:
        during = [each for each in requests if each.ended >= event.began and each.time < event.back]
        answered = [each.milliseconds for each in during if not each.error]
        again = [each for each in requests if each.time > event.mended and each.node == event.node]
        rows.append(
            {
                "event": event.name,
                "seconds": round(event.mended - event.began, 1),
                "requests": len(during),
                "failed": sum(bool(each.error) for each in during),
                "asked of a second node": sum(len(each.nodes) > 1 for each in during),
                "p50": _percentile(answered, 50),
                "p99": _percentile(answered, 99),
                "slowest": _percentile(answered, 100),
                "back after": round(min(each.ended for each in again) - event.mended, 2)
                if again
                else None,
            }
        )
    return rows


def write(
    folder: Path, found: dict[str, Any], events: Sequence[Event], requests: Sequence[Request]
) -> None:
    """Write nodes.json, nodes.md and nodes.png."""
    whole = found | {
        "requests": len(requests),
        "failed": sum(bool(request.error) for request in requests),
        "errors": sorted({request.error for request in requests if request.error}),
    }
    (folder / "nodes.json").write_text(json.dumps(whole, indent=2) + "\n")
    (folder / "nodes.md").write_text(page(whole))
    plot(folder / "nodes.png", events, requests, found["throughput"])


def page(found: dict[str, Any]) -> str:
    """Return the figures as a page."""
    lines = [
        "# Three nodes, one of them failing",
        "",
        f"{found['date']}, {found['machine']['cores']} cores ({found['machine']['processor']}), "
        "which nodes, front edge and clients share. Written by `make nodes`: three network "
        "namespaces, each with a service (1.0, one worker) and its edge, and one edge more in "
        f"front of them (`EDGE_NODES`); {found['clients']} clients, who ask nothing a second time.",
        "",
        f"**{found['failed']} of {found['requests']:,} requests failed.**",
        "",
        "| a node was | for | requests | failed | asked of a second node | p50 | p99 | slowest "
        "| answers again after |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["events"]:
        lines.append(
            f"| {row['event']} | {row['seconds']:g} s | {row['requests']:,} | {row['failed']} "
            f"| {row['asked of a second node']} | {_ms(row['p50'])} | {_ms(row['p99'])} "
            f"| {_ms(row['slowest'])} | {row['back after']:g} s |"
        )
    lines += [
        "",
        "The time until it answers again counts from its start, or from when the fault ended, to "
        "the end of the first request that the front edge had it answer.",
        "",
        "| nodes | cores a node | images a second | p50 | p99 | failed |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["throughput"]:
        share = row["cores a node"]
        lines.append(
            f"| {row['nodes']} | {f'{share:g}' if share else 'no bound'} "
            f"| {row['images_a_second']:,.0f} | {_ms(row['p50'])} | {_ms(row['p99'])} "
            f"| {row['failed']} |"
        )
    lines += [
        "",
        "With a bound, each node stands for a machine of so much of a core. Without, all share the "
        "cores of this one, with each other and with whatever else runs.",
        "",
        "![Latency while nodes fail, and images a second by nodes](nodes.png)",
        "",
    ]
    return "\n".join(lines)


def plot(
    path: Path,
    events: Sequence[Event],
    requests: Sequence[Request],
    throughput: Sequence[dict[str, Any]],
) -> None:
    """Draw each request's time and who answered, and images a second by the number of nodes."""
    first = min(request.time for request in requests)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(14, 5), width_ratios=[3, 1], layout="constrained"
    )
    nodes = sorted({request.node for request in requests} - {""})
    for number, (node, colour) in enumerate(zip(nodes, COLOURS, strict=False)):
        own = [request for request in requests if request.node == node]
        label = f"answered by node {number + 1}"
        scatter(left, own, first, s=3, color=colour, label=label)
    for event in events:
        left.axvspan(event.began - first, event.mended - first, color="#000000", alpha=0.1)
        left.axvspan(event.mended - first, event.back - first, color="#000000", alpha=0.04)
        name_at(left, event.began - first, event.name)
    left.set_yscale("log")
    left.set_ylim(top=left.get_ylim()[1] * 20)
    left.set_xlabel("seconds")
    left.set_ylabel("milliseconds at the client")
    left.legend(loc="lower right", fontsize=8, markerscale=3)
    for share in sorted({row["cores a node"] for row in throughput}, key=lambda each: each or 99):
        own_rows = [row for row in throughput if row["cores a node"] == share]
        right.plot(
            [row["nodes"] for row in own_rows],
            [row["images_a_second"] for row in own_rows],
            marker="o",
            label=f"{share:g} of a core each" if share else "no bound",
        )
    right.set_xticks([1, 2, 3])
    right.set_xlabel("nodes")
    right.set_ylabel("images a second")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 1) if values else None


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} ms"

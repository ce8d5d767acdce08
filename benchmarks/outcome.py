"""What clients see during a scenario: figures for each step, a table and a plot."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.report import Document, measured_on, rounded, table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Seconds after a step that still belong to it.
AFTER = 3.0
MEMORY = {"worker": "workers", "java": "Java", "python": "page and supervisor"}
COLOURS = ("#4477aa", "#228833", "#ccbb44", "#aa3377", "#66ccee")


@dataclass(frozen=True)
class Request:
    """One request as its client saw it. `by` is the version or node that answered."""

    time: float
    milliseconds: float
    load: str
    client: str
    by: str
    said: str
    failed: bool

    @property
    def ended(self) -> float:
        return self.time + self.milliseconds / 1000


FIELDS = [each.name for each in fields(Request)]


def read_requests(path: Path) -> list[Request]:
    """Read the log of a load (benchmarks/load.py), ordered by time."""
    with path.open(newline="") as file:
        requests = [
            Request(
                **row
                | {"time": float(row["time"]), "milliseconds": float(row["milliseconds"])}
                | {"failed": row["failed"] == "True"}
            )
            for row in csv.DictReader(file)
        ]
    return sorted(requests, key=lambda request: request.time)


@dataclass(frozen=True)
class Step:
    """What is injected, and which losses are allowed."""

    name: str
    inject: Callable[[Any, Result], None]
    # The number of requests that may fail, by load.
    may_fail: Mapping[str, float] = field(default_factory=dict)
    workers_may_end: bool = False
    prepare: Callable[[Any], object] | None = None
    clean_up: Callable[[Any], object] | None = None


@dataclass
class Result:
    """What happened during a step."""

    step: Step
    started: float = 0.0
    ended: float = 0.0
    # The interval for which the report shows the share of each version.
    watched: tuple[float, float] | None = None
    # How the requests that the step itself sent were answered.
    sent: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    # Workers and memory at the start and at the end.
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)

    def expect(self, holds: bool, problem: str) -> None:
        """Record a problem unless a condition holds."""
        if not holds:
            self.problems.append(problem)

    def expect_sent(self, *allowed: str) -> None:
        """Record every answer to the step's own requests that is not allowed."""
        for said in sorted(self.sent.keys() - set(allowed)):
            self.problems.append(f"{self.sent[said]} x {said}")


def between(requests: Iterable[Request], start: float, end: float) -> list[Request]:
    """Return the requests that were in flight at any moment of an interval."""
    return [request for request in requests if request.time <= end and request.ended >= start]


def during(requests: Iterable[Request], result: Result) -> list[Request]:
    return between(requests, result.started, result.ended + AFTER)


def figures(requests: Sequence[Request]) -> dict[str, Any]:
    """Return the number of requests and failures, and the milliseconds of successful requests."""
    times = [request.milliseconds for request in requests if not request.failed]
    counts = {"requests": len(requests), "failed": len(requests) - len(times)}
    percentiles = {"p50": 50, "p99": 99, "slowest": 100}
    return counts | {
        name: rounded(float(np.percentile(times, percent))) if times else None
        for name, percent in percentiles.items()
    }


def split(requests: Iterable[Request]) -> dict[str, Any]:
    """Return the share of each version, by clients and by requests, and who saw several."""
    by_client: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for request in requests:
        if not request.failed:
            by_client[request.client].add(request.by)
            counts[request.by] += 1
    clients = Counter(version for seen in by_client.values() for version in seen)
    return {
        "clients": len(by_client),
        "clients who saw two versions": sum(len(seen) > 1 for seen in by_client.values()),
        "percent of clients": _percent(clients, len(by_client)),
        "percent of requests": _percent(counts, counts.total()),
    }


def summary(
    results: Sequence[Result], requests: Sequence[Request], keep_workers: bool = True
) -> Document:
    """Return all figures of a scenario, and every problem."""
    loads = {load: [each for each in requests if each.load == load] for load in _loads(requests)}
    touched = {id(request) for result in results for request in during(requests, result)}
    document: Document = {"loads": {}, "steps": [], "problems": []}
    problems = document["problems"]
    if not requests:
        problems.append("No request was sent.")
    for load, own in loads.items():
        calm = figures([request for request in own if id(request) not in touched])
        document["loads"][load] = {"all": figures(own), "calm": calm}
        if calm["failed"]:
            problems.append(f"{calm['failed']} requests of {load} failed while nothing was done")
    for result in results:
        row = _row(result, loads)
        document["steps"].append(row)
        problems += [f"{result.step.name}: {problem}" for problem in result.problems]
        if row["workers ended"] and keep_workers and not result.step.workers_may_end:
            problems.append(f"{result.step.name}: {row['workers ended']} workers ended")
        for load, found in row["loads"].items():
            if found["failed"] > (allowed := result.step.may_fail.get(load, 0)):
                failed = f"{found['failed']} requests of {load} failed, {allowed} may"
                problems.append(f"{result.step.name}: {failed}")
    return document


def _row(result: Result, loads: Mapping[str, Sequence[Request]]) -> Document:
    own = {load: during(requests, result) for load, requests in loads.items()}
    ended = set(result.before.get("workers", ())) - set(result.after.get("workers", ()))
    row: Document = {
        "step": result.step.name,
        "seconds": round(result.ended - result.started, 1),
        "loads": {
            load: figures(requests) | {"answers": _sorted(each.said for each in requests)}
            for load, requests in own.items()
        },
        "sent": _sorted(result.sent.elements()),
        "workers ended": len(ended),
        "megabytes": [each.get("megabytes", {}) for each in (result.before, result.after)],
        "notes": {name: rounded(value) for name, value in result.notes.items()},
    }
    if result.watched:
        row["split"] = split(between(loads["users"], *result.watched))
    return row


def page(document: Document) -> str:
    """Return a scenario as Markdown."""
    totals = [
        f"**{found['all']['failed']} of {found['all']['requests']:,} requests of {load} failed"
        f"**{_calm(found['calm'])}."
        for load, found in document["loads"].items()
    ]
    heads = ["step", "s", "load", "requests", "failed", "p50", "p99", "slowest"]
    heads += ["other answers than 200", "sent, and the answers", "workers ended"]
    heads += ["MB before", "MB after", "notes"]
    parts = [
        f"# {document['title']}",
        f"{document['about']} {measured_on(document)}, which service and clients share.",
        " ".join(totals) + f" Times are in milliseconds at the client. The {AFTER:g} s after a "
        "step count as part of it.",
        f"![Latency over time]({document['name']}.png)",
        table(heads, [row for step in document["steps"] for row in _rows(step)]),
    ]
    if document.get("table"):
        parts.append(table(document["table"]["heads"], document["table"]["rows"]))
    problems = [f"- {problem}" for problem in document["problems"]]
    parts.append("\n".join(["Problems:", "", *problems]) if problems else "No problems.")
    return "\n\n".join(parts)


def _rows(step: Document) -> list[list[Any]]:
    """Return the rows of a step, one for each load."""
    notes = [
        str(value) if name == "printed" else f"{name}: {value}"
        for name, value in step["notes"].items()
    ]
    if "split" in step:
        found = step["split"]
        notes += [
            f"{found['clients']} clients: {_shares(found['percent of clients'])}",
            f"requests: {_shares(found['percent of requests'])}",
            f"{found['clients who saw two versions']} clients saw two versions",
        ]
    memory = [
        " + ".join(f"{each[kind]:.0f}" for kind in MEMORY if kind in each)
        for each in step["megabytes"]
    ]
    sent = f"{sum(step['sent'].values()):,}: {_counts(step['sent'])}" if step["sent"] else ""
    rows: list[list[Any]] = []
    for load, found in step["loads"].items():
        others = {said: count for said, count in found["answers"].items() if said != "200"}
        cells = [found[key] for key in ("requests", "failed", "p50", "p99", "slowest")]
        rows.append(["", "", load if len(step["loads"]) > 1 else "", *cells, _counts(others)])
        rows[-1] += [""] * 5
    rows = rows or [[""] * 14]
    rows[0][:2] = [step["step"], step["seconds"]]
    rows[0][9:] = [sent, step["workers ended"] or "", *memory, "; ".join(notes)]
    return rows


def plot(
    path: Path,
    results: Sequence[Result],
    requests: Sequence[Request],
    samples: Sequence[Mapping[str, Any]],
) -> None:
    """Draw each request's time and who answered, answers a second, and memory."""
    first = requests[0].time
    ratios = [3, 1, 1] if samples else [3, 1]
    figure, (above, middle, *below) = plt.subplots(
        len(ratios), 1, figsize=(14, 10), sharex=True, height_ratios=ratios, layout="constrained"
    )
    names = sorted({request.by for request in requests if request.by})
    colours = dict(zip(names, COLOURS, strict=False))
    for name, colour in colours.items():
        own = [request for request in requests if request.by == name and not request.failed]
        _scatter(above, own, first, s=3, color=colour, label=f"answered by {name}")
    failed = [request for request in requests if request.failed]
    _scatter(above, failed, first, s=20, marker="x", color="#cc3311", label="failed")
    for result in results:
        for axes in (above, middle, *below):
            axes.axvspan(result.started - first, result.ended - first, color="#000000", alpha=0.08)
        place, name = (result.started - first, 1), result.step.name
        how = {"rotation": 90, "fontsize": 7, "va": "top", "ha": "right"}
        above.annotate(name, place, xycoords=("data", "axes fraction"), **how)
    above.set_yscale("log")
    # The names of the steps need room.
    above.set_ylim(top=above.get_ylim()[1] * 10)
    above.set_ylabel("milliseconds at the client")
    above.legend(loc="lower right", ncols=len(colours) + 1, fontsize=8, markerscale=3)
    seconds = np.arange(0, int(requests[-1].ended - first) + 2)
    ends = [[each.ended - first for each in requests if each.by == name] for name in colours]
    counts = [np.histogram(each, seconds)[0] for each in ends]
    middle.stackplot(seconds[:-1], counts, colors=colours.values())
    middle.set_ylabel("answers a second")
    axes = middle
    for axes in below:
        for kind, title in MEMORY.items():
            times = [sample["time"] - first for sample in samples]
            axes.plot(times, [each["megabytes"].get(kind, 0) for each in samples], label=title)
        axes.set(ylabel="MB (RssAnon)", ylim=(0, None))
        axes.legend(loc="lower right", ncols=3, fontsize=8)
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _scatter(axes: Any, requests: Sequence[Request], first: float, **how: Any) -> None:
    times = [request.time - first for request in requests]
    axes.scatter(times, [request.milliseconds for request in requests], **how)


def _loads(requests: Iterable[Request]) -> list[str]:
    """Return the loads, users first."""
    return sorted({request.load for request in requests}, key=lambda load: (load != "users", load))


def _sorted(said: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(said).items()))


def _percent(counts: Counter[str], whole: int) -> dict[str, float]:
    return {version: round(100 * count / whole, 1) for version, count in sorted(counts.items())}


def _shares(percent: Mapping[str, float]) -> str:
    return ", ".join(f"{value} % by {version}" for version, value in percent.items())


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} x {said}" for said, count in counts.items())


def _calm(calm: Mapping[str, Any]) -> str:
    return f" (between steps: p50 {calm['p50']}, p99 {calm['p99']})" if calm["p50"] else ""

"""What the users saw in a drill: figures for each step, a table, a plot, and the load by second."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Seconds before a step that are compared with it, and after it that count as its own.
BEFORE, AFTER = 10.0, 5.0


@dataclass
class Step:
    """Something that was done, when, and what the one who did it saw."""

    name: str
    # Whether no request may fail meanwhile.
    lossless: bool = True
    started: float = 0.0
    ended: float = 0.0
    # From when until when it is to be told who was answered by which version.
    watched: tuple[float, float] | None = None
    seen: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, sentence: str) -> None:
        """Note a problem unless something holds."""
        if not holds:
            self.problems.append(sentence)


@dataclass(frozen=True)
class Request:
    """One request as its user saw it: seconds since the epoch, milliseconds, who was answered."""

    time: float
    milliseconds: float
    person: str
    version: str
    error: str

    @property
    def ended(self) -> float:
        return self.time + self.milliseconds / 1000


def read_requests(path: Path) -> list[Request]:
    """Read the log of a load (benchmarks/load.py), in the order of time."""
    with path.open(newline="") as file:
        requests = [
            Request(
                float(row["time"]),
                float(row["milliseconds"]),
                row["person"],
                row["version"],
                row["error"],
            )
            for row in csv.DictReader(file)
        ]
    return sorted(requests, key=lambda request: request.time)


def between(requests: Iterable[Request], start: float, end: float) -> list[Request]:
    """Return the requests that were under way at any moment of an interval."""
    return [request for request in requests if request.time <= end and request.ended >= start]


def figures(requests: Sequence[Request]) -> dict[str, Any]:
    """Return how many there were, how many failed, and milliseconds of those that did not."""
    times = [request.milliseconds for request in requests if not request.error]
    return {
        "requests": len(requests),
        "failed": sum(bool(request.error) for request in requests),
        **{f"p{q}": _rounded(np.percentile(times, q)) if times else None for q in (50, 99)},
        "slowest": _rounded(max(times)) if times else None,
    }


def split(requests: Iterable[Request]) -> dict[str, Any]:
    """Return the share of each version, by requests and by people, and who saw several."""
    by_person: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for request in requests:
        if not request.error:
            by_person[request.person].add(request.version)
            counts[request.version] += 1
    people = Counter(version for seen in by_person.values() for version in seen)
    return {
        "people": len(by_person),
        "people who saw two versions": sum(len(seen) > 1 for seen in by_person.values()),
        "percent of people": _percent(people, len(by_person)),
        "percent of requests": _percent(counts, sum(counts.values())),
    }


def write(
    folder: Path, about: dict[str, Any], steps: Sequence[Step], requests: Sequence[Request]
) -> list[str]:
    """Write drill.json, drill.csv, drill.md and drill.png; return what came out wrongly."""
    folder.mkdir(parents=True, exist_ok=True)
    document = summary(about, steps, requests)
    (folder / "drill.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "drill.md").write_text(page(document))
    write_seconds(folder / "drill.csv", requests)
    plot(folder / "drill.png", steps, requests)
    problems: list[str] = document["problems"]
    return problems


def summary(
    about: dict[str, Any], steps: Sequence[Step], requests: Sequence[Request]
) -> dict[str, Any]:
    """Return all figures of a drill as one document."""
    rows, problems = [], []
    for step in steps:
        during = between(requests, step.started, step.ended + AFTER)
        before = figures([each for each in requests if 0 <= step.started - each.ended <= BEFORE])
        row: dict[str, Any] = {
            "step": step.name,
            "seconds": round(step.ended - step.started, 1),
            "seen": {key: _rounded(value) for key, value in step.seen.items()},
            "during": figures(during),
            "before": before,
        }
        if step.watched:
            row["split"] = split(between(requests, *step.watched))
        problems += [f"{step.name}: {problem}" for problem in step.problems]
        if step.lossless and row["during"]["failed"]:
            problems.append(f"{step.name}: {row['during']['failed']} requests failed")
        rows.append(row)
    errors = Counter(request.error for request in requests if request.error)
    calm = calm_requests(steps, requests)
    if failed := figures(calm)["failed"]:
        problems.append(f"{failed} requests failed while nothing was done")
    return {
        **about,
        "all": figures(requests),
        "calm": figures(calm),
        "errors": dict(errors),
        "steps": rows,
        "problems": problems,
    }


def calm_requests(steps: Sequence[Step], requests: Sequence[Request]) -> list[Request]:
    """Return the requests that no step touched."""
    touched = {
        id(request)
        for step in steps
        for request in between(requests, step.started, step.ended + AFTER)
    }
    return [request for request in requests if id(request) not in touched]


def page(document: dict[str, Any]) -> str:
    """Return the drill as Markdown."""
    total, machine = document["all"], document["machine"]
    lines = [
        "# The drill",
        "",
        "Written by `make drill`: what "
        f"{document['users']} users saw while versions were changed and things were broken. "
        f"{machine['processor']}, {machine['cores']} cores for service, users and drill together; "
        f"torch {machine['torch']}; {document['date']}.",
        "",
        f"**{total['failed']} of {total['requests']:,} requests failed.** Milliseconds at the "
        f"user; in calm seconds p50 {document['calm']['p50']}, p99 {document['calm']['p99']}. "
        f"Before: the {BEFORE:g} s that precede a step; to a step belong the {AFTER:g} s after it. "
        f"A token lived {document['token_life_seconds']:g} s; there were {document['tokens']} of "
        "them.",
        "",
        "![Latency and load over time](drill.png)",
        "",
        "| step | seconds | requests | failed | p50 before | p50 | p99 before | p99 | slowest |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in document["steps"]:
        during, before = row["during"], row["before"]
        cells = [row["step"], row["seconds"], during["requests"], during["failed"]]
        cells += [before["p50"], during["p50"], before["p99"], during["p99"], during["slowest"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "What was seen:", "", "| step | |", "|---|---|"]
    for row in document["steps"]:
        seen = dict(row["seen"])
        said = " ".join(str(seen.pop("said", "")).split()).replace("|", "\\|")
        lines += [f"| {row['step']} | {said} |"] if said else []
        lines += [f"| {row['step']} | {key}: {value} |" for key, value in seen.items()]
        if "split" in row:
            found = row["split"]
            lines.append(
                f"| {row['step']} | of {found['people']} people, "
                f"{_shares(found['percent of people'])}; of the requests, "
                f"{_shares(found['percent of requests'])}; "
                f"{found['people who saw two versions']} people saw two versions |"
            )
    for error, count in document["errors"].items():
        lines.append(f"| failed requests | {count} times: {error} |")
    problems = [f"- {problem}" for problem in document["problems"]]
    lines += ["", "Not as it must be:" if problems else "Everything was as it must be.", *problems]
    return "\n".join(lines) + "\n"


def write_seconds(path: Path, requests: Sequence[Request]) -> None:
    """Write the load by second: requests that were answered in it, failures, percentiles."""
    first = requests[0].time
    by_second: dict[int, list[Request]] = defaultdict(list)
    for request in requests:
        by_second[int(request.ended - first)].append(request)
    versions = sorted({request.version for request in requests if request.version})
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        keys = ("requests", "failed", "p50", "p99", "slowest")
        writer.writerow(["second", *keys, *(f"by {version}" for version in versions)])
        for second in range(max(by_second) + 1):
            found = by_second[second]
            answered = Counter(request.version for request in found)
            counts = [answered[version] for version in versions]
            writer.writerow([second, *(figures(found)[key] for key in keys), *counts])


class Timed(Protocol):
    """A request that began so many seconds after the epoch, and took so long."""

    @property
    def time(self) -> float: ...

    @property
    def milliseconds(self) -> float: ...


def scatter(axes: Axes, requests: Sequence[Timed], first: float, **how: Any) -> None:
    """Draw a dot for each request: its time by its beginning, in seconds from the first."""
    axes.scatter(
        [request.time - first for request in requests],
        [request.milliseconds for request in requests],
        **how,
    )


def name_at(axes: Axes, x: float, name: str) -> None:
    """Write a name upright from the top of the axes, left of where it begins."""
    axes.annotate(
        name,
        (x, 1),
        xycoords=("data", "axes fraction"),
        rotation=90,
        fontsize=7,
        va="top",
        ha="right",
    )


def plot(path: Path, steps: Sequence[Step], requests: Sequence[Request]) -> None:
    """Draw each request's time over the course of the drill, and who answered."""
    first = requests[0].time
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(14, 8), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    colours = dict(
        zip(
            sorted({request.version for request in requests if request.version}),
            ("#4477aa", "#228833", "#ccbb44", "#aa3377", "#66ccee"),
            strict=False,
        )
    )
    for version, colour in colours.items():
        own = [request for request in requests if request.version == version]
        scatter(above, own, first, s=3, color=colour, label=f"answered by {version}")
    failed = [request for request in requests if request.error]
    if failed:
        scatter(above, failed, first, s=20, marker="x", color="#cc3311", label="failed")
    for step in steps:
        for axes in (above, below):
            axes.axvspan(step.started - first, step.ended - first, color="#000000", alpha=0.08)
        name_at(above, step.started - first, step.name)
    above.set_yscale("log")
    above.set_ylabel("milliseconds at the user")
    # Room for the names of the steps.
    above.set_ylim(top=above.get_ylim()[1] * 30)
    above.legend(loc="lower right", ncols=len(colours) + 1, fontsize=8, markerscale=3)
    seconds = np.arange(0, int(requests[-1].ended - first) + 2)
    below.stackplot(
        seconds[:-1],
        [
            np.histogram(
                [request.ended - first for request in requests if request.version == version],
                seconds,
            )[0]
            for version in colours
        ],
        colors=colours.values(),
    )
    below.set_ylabel("answers per second")
    below.set_xlabel("seconds")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _percent(counts: Counter[str], whole: int) -> dict[str, float]:
    return {version: round(100 * count / whole, 1) for version, count in sorted(counts.items())}


def _shares(percent: dict[str, float]) -> str:
    return ", ".join(f"{value} % were answered by {version}" for version, value in percent.items())


def _rounded(value: Any) -> Any:
    return round(float(value), 1) if isinstance(value, float) else value

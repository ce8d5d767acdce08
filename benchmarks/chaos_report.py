"""What the faults did: figures for each, and a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.drill_report import Request, Step, between, figures

# Seconds after a fault that count as its own.
AFTER = 3.0
# What a direct client may be told before its request is taken: that nobody listens, that the queue
# is full (or no worker is there), that the token was just renewed. TorchServe answers 503 also for
# an exception of the handler, and 400 also for a body: those had been taken.
NOT_TAKEN = ("refused", "503 ServiceUnavailableException", "400 InvalidKeyException")


@dataclass
class Fault:
    """A fault: when, what those saw who made it, workers and memory before and after."""

    step: Step
    # What was sent on purpose was answered so.
    saw: Counter[str] = field(default_factory=Counter)
    # Whether workers are killed, or a client that asks TorchServe itself may be refused.
    kills: bool = False
    # How many requests of clients that ask TorchServe itself may be lost: what it held.
    may_lose: int = 0
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


def summary(
    about: dict[str, Any],
    faults: Sequence[Fault],
    users: Sequence[Request],
    direct: Sequence[Request],
) -> dict[str, Any]:
    """Return all figures as one document."""
    rows, problems = [], []
    for fault in faults:
        step = fault.step
        own = between(users, step.started, step.ended + AFTER)
        beside = between(direct, step.started, step.ended + AFTER)
        seen = Counter(each.error or "200" for each in beside)
        lost = sum(count for said, count in seen.items() if is_loss(said))
        found = figures(own)
        died = sorted(set(fault.before["workers"]) - set(fault.after["workers"]))
        problems += [f"{step.name}: {problem}" for problem in step.problems]
        if step.lossless and found["failed"]:
            problems.append(f"{step.name}: {found['failed']} requests of the users failed")
        if lost > fault.may_lose:
            problems.append(f"{step.name}: {lost} direct requests were lost, not {fault.may_lose}")
        if died and not fault.kills:
            problems.append(f"{step.name}: {len(died)} workers died")
        rows.append(
            {
                "fault": step.name,
                "seconds": round(step.ended - step.started, 1),
                "sent": sum(fault.saw.values()),
                "saw": dict(sorted(fault.saw.items())),
                "users": {key: found[key] for key in ("requests", "failed", "slowest")},
                "direct": dict(sorted(seen.items())),
                "lost": lost,
                "workers_ended": len(died),
                "megabytes": {
                    "before": fault.before["megabytes"],
                    "after": fault.after["megabytes"],
                },
                "seen": {
                    key: round(value, 1) if isinstance(value, float) else value
                    for key, value in step.seen.items()
                },
            }
        )
    return {**about, "users": figures(users), "faults": rows, "problems": problems}


def is_loss(said: str) -> bool:
    """Tell whether a direct client's request was taken and never answered rightly."""
    return said not in ("200", *NOT_TAKEN)


def write(folder: Path, document: dict[str, Any]) -> None:
    """Write chaos.json and chaos.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chaos.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "chaos.md").write_text(page(document))


def page(document: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    users, host = document["users"], document["machine"]
    lines = [
        "# Faults, on purpose",
        "",
        f"Written by `make chaos`: what 16 users saw who ask by `serving.client`, and what "
        f"{document['direct_clients']} clients saw that ask TorchServe itself and never twice, "
        f"while things were broken. {host['processor']}, {host['cores']} cores for all of it; "
        f"{document['date']}.",
        "",
        f"**{users['failed']} of the users' {users['requests']:,} requests failed.** Lost: taken "
        "from a direct client, and not answered; those that are refused (no connection, 503 for a "
        "full queue, 400 for an expired token) can be sent again. Memory (PSS) is that of workers, "
        "Java, and page with supervisor.",
        "",
        "| fault | sent, and what was seen | users: requests, failed | direct clients saw | lost "
        "| s until ready | workers ended | MB before | after |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in document["faults"]:
        saw = f"{row['sent']:,}: {_counts(row['saw'])}" if row["sent"] else ""
        ready = row["seen"].get("seconds until ready", "")
        cells = [row["fault"], saw, f"{row['users']['requests']}, {row['users']['failed']}"]
        cells += [_counts(row["direct"]), row["lost"], ready, row["workers_ended"]]
        cells += [_memory(row["megabytes"][when]) for when in ("before", "after")]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "What else was seen:", "", "| fault | |", "|---|---|"]
    for row in document["faults"]:
        lines += [
            f"| {row['fault']} | {key}: {value} |"
            for key, value in row["seen"].items()
            if key != "seconds until ready"
        ]
    problems = [f"- {problem}" for problem in document["problems"]]
    lines += ["", "Not as it must be:" if problems else "Everything was as it must be.", *problems]
    return "\n".join(lines) + "\n"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} x {said}" for said, count in counts.items())


def _memory(megabytes: dict[str, float]) -> str:
    return " + ".join(f"{megabytes.get(kind, 0):.0f}" for kind in ("worker", "java", "python"))

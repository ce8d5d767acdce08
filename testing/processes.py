"""Processor time and memory of a server's processes, by kind of process."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import psutil


def tree(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def kind(process: psutil.Process) -> str:
    """Return "worker", "java" or "python"."""
    if any("model_service_worker" in part for part in process.cmdline()):
        return "worker"
    return "java" if process.name() == "java" else "python"


def workers(process: psutil.Process) -> list[int]:
    """Return the process ids of a service's workers."""
    found = []
    for each in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if kind(each) == "worker":
                found.append(each.pid)
    return sorted(found)


def cpu_seconds(process: psutil.Process) -> dict[str, float]:
    """Return the processor time so far, by kind."""
    return _by_kind(process, lambda each: sum(each.cpu_times()[:2]))


def megabytes(
    process: psutil.Process, combine: Callable[[list[float]], float] = sum
) -> dict[str, float]:
    """Return the memory, by kind: the sum, or `max`. Shared pages count in parts (PSS)."""
    return _by_kind(process, lambda each: each.memory_full_info().pss / 2**20, combine)


def anonymous_megabytes(process: psutil.Process) -> dict[str, float]:
    """Return the memory without pages of files, such as libraries (RssAnon), by kind."""
    return _by_kind(process, lambda each: _rss_anon(each) / 2**10)


def _by_kind(
    process: psutil.Process,
    figure: Callable[[psutil.Process], float],
    combine: Callable[[list[float]], float] = sum,
) -> dict[str, float]:
    figures: dict[str, list[float]] = defaultdict(list)
    for each in tree(process):
        # It may have ended.
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            figures[kind(each)].append(figure(each))
    return {name: round(combine(each), 2) for name, each in figures.items()}


def _rss_anon(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.M)[0])

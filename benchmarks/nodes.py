"""Make one of three nodes behind HAProxy fail, and measure the capacity of 1 to 3: `make nodes`.

Needs root, haproxy, nginx, iproute2 and wrk.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from functools import partial

import psutil

from benchmarks import bench, cluster, engine
from benchmarks.cluster import NODES, Cluster, Node, wait
from benchmarks.engine import Scenario
from benchmarks.outcome import Result, Step
from benchmarks.report import Document
from benchmarks.servers import Running
from testing import formats, hostile

CLIENTS = 8
# The share of a core of a slowed node, and of each node when capacity is measured.
SLOWED, SHARE = 0.05, 0.3
LOAD_CLIENTS = 32

Action = Callable[[Node], object]
# Faults of a node, and how each is undone.
FAULTS: dict[str, tuple[Action, Action]] = {
    "killed (kill -9 of all)": (Node.kill, Node.start),
    "cut off (link down)": (
        partial(Node.set_link, state="down"),
        partial(Node.set_link, state="up"),
    ),
    "hung (all stopped)": (
        lambda node: node.cgroup.signal(signal.SIGSTOP),
        lambda node: node.cgroup.signal(signal.SIGCONT),
    ),
    f"slowed (to {SLOWED:g} core)": (
        lambda node: node.cgroup.limit(SLOWED),
        lambda node: node.cgroup.limit(None),
    ),
    "stopped (TERM of edge and service)": (Node.stop, Node.start),
    "drained (by HAProxy)": (
        partial(Node.set_state, state="drain"),
        partial(Node.set_state, state="ready"),
    ),
}


def build(quick: bool) -> Scenario:
    """Return all faults."""
    seconds = 4 if quick else 10
    turns = zip(FAULTS.items(), itertools.cycle(range(len(NODES))), strict=False)
    return Scenario(
        "nodes",
        "Three nodes, one of them failing",
        "Written by `make nodes`: three network namespaces, each with a service (1.0, one worker) "
        f"and its edge, behind HAProxy (`deploy/haproxy/haproxy.cfg`); {CLIENTS} clients, which "
        "send nothing twice. A step lasts until the node answers again. With a share of a core, "
        "each node stands for a machine of that size; without, all share the cores of this one.",
        cluster.started,
        {"gateway": CLIENTS},
        [
            Step(f"a node is {name}", partial(fail, begin, end, number, seconds))
            for (name, (begin, end)), number in turns
        ],
        calm=5,
        conclude=partial(capacity, 2 if quick else 8),
    )


def fail(
    begin: Action, end: Action, number: int, seconds: float, it: Cluster, result: Result
) -> None:
    """Make a node fail for some seconds, and wait until it answers again."""
    node, retried = it.nodes[number], it.retried()
    begin(node)
    time.sleep(max(0.0, result.started + seconds - time.time()))
    ended = time.time()
    end(node)

    def answered() -> list[float]:
        own = (each for each in it.requests() if each.by == node.name and each.time > ended)
        return [each.ended for each in own]

    wait(lambda: bool(answered()), node.name)
    result.notes["seconds until it answers again"] = min(answered()) - ended
    result.notes["sent to a second node"] = it.retried() - retried


def capacity(seconds: int, it: Cluster, samples: object) -> tuple[Document, list[str]]:
    """Return the images a second of one to three nodes, with a share of a core each and without."""
    folder = it.log.parent / "bodies"
    folder.mkdir()
    (folder / "cell").write_bytes(formats.encoded(hostile.sample((320, 240)), "JPEG"))
    running = Running(it.url, psutil.Process(it.haproxy.pid), {"X-API-Key": it.key})
    rows, problems = [], []
    for share in (SHARE, None):
        for node in it.nodes:
            node.cgroup.limit(share)
        for count in NODES:
            for at, node in enumerate(it.nodes):
                node.set_state("ready" if at < count else "maint")
            wait(lambda count=count: it.up() == count, f"{count} nodes")  # type: ignore[misc]
            row = bench.load(running, (folder, "image/jpeg"), LOAD_CLIENTS, seconds)
            if row["failed"]:
                problems.append(f"{row['failed']} requests failed with {count} nodes")
            figures = [f"{row[key]:,.0f}" for key in ("images_a_second", "p50", "p99", "failed")]
            rows.append([count, share or "no limit", *figures])
    heads = ["nodes", "cores a node", "images a second", "p50, ms", "p99, ms", "failed"]
    return {"heads": heads, "rows": rows}, problems


if __name__ == "__main__":
    engine.main(build)

"""Three nodes on this machine and HAProxy in front of them.

Each node is a network namespace with a service and its edge, and a cgroup that bounds its time on
the processor.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.engine import Target
from benchmarks.outcome import Request, read_requests
from serving import deployment
from serving.deployment import Deployment, VersionSpec
from serving.edge.certificates import NAME, create
from serving.edge.keys import KeyFile
from serving.settings import MODEL, ROOT, Settings
from testing.service import environment_of

PROGRAMS = ("ip", "haproxy", "nginx", "wrk")
# A network within this machine.
BRIDGE, NETWORK = "bloodcells", "10.213.77"
FRONT, PORT = f"{NETWORK}.1", 8443
NODES = (1, 2, 3)
WANTED = Deployment("1.0", {"1.0": VersionSpec(1)})
# Seconds until HAProxy tries another node.
PREDICTION_TIMEOUT = 3
PATIENCE = 120.0


class Cgroup:
    """The processes of one node, and their share of the processor."""

    def __init__(self, name: str, root: Path = Path("/sys/fs/cgroup")) -> None:
        self.unified = (root / "cgroup.controllers").exists()
        self.path = (root if self.unified else root / "cpu") / f"bloodcells-{name}"
        if self.unified:
            (root / "cgroup.subtree_control").write_text("+cpu")
        self.path.mkdir(exist_ok=True)

    def enter(self) -> None:
        """Put this process into it."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def limit(self, cores: float | None) -> None:
        """Bound the processor time of its processes; None removes the bound."""
        period = 100_000
        quota = round(cores * period) if cores else None
        if self.unified:
            (self.path / "cpu.max").write_text(f"{quota or 'max'} {period}")
        else:
            (self.path / "cpu.cfs_period_us").write_text(str(period))
            (self.path / "cpu.cfs_quota_us").write_text(str(quota or -1))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to each of its processes, until no new one appears."""
        sent: set[int] = set()
        while new := set(self.processes()) - sent:
            for process in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            sent |= new

    def processes(self) -> list[int]:
        return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]

    def remove(self) -> None:
        """Kill its processes, and remove it."""
        deadline = time.monotonic() + PATIENCE
        while self.processes() and time.monotonic() < deadline:
            self.signal(signal.SIGKILL)
            time.sleep(0.05)
        self.path.rmdir()


class Node:
    """A service and its edge with their own network and share of the processor."""

    def __init__(self, number: int, folder: Path, edge: dict[str, str]) -> None:
        self.name, self.address = f"node{number}", f"{NETWORK}.{10 + number}"
        self._link, self._folder = f"{BRIDGE}{number}", folder / f"node{number}"
        self._folder.mkdir()
        # Of HAProxy's administration.
        self.socket = folder / "haproxy.sock"
        wanted = self._folder / "deployment.yaml"
        deployment.save(WANTED, wanted)
        # The usual ports: each namespace has its own.
        settings = Settings(run_dir=self._folder / "run", deployment=wanted)
        self._environment = environment_of(settings) | edge | {"EDGE_HOST": self.address}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.cgroup = Cgroup(self.name)
        _ip("netns", "add", self._link)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._link)
        _ip("link", "set", self._link, "master", BRIDGE, "up")
        for command in ("link set lo up", f"address add {self.address}/24 dev eth0"):
            _ip("-n", self._link, *command.split())
        _ip("-n", self._link, "link", "set", "eth0", "up")

    def start(self) -> None:
        """Start the service, and the edge once TorchServe runs; do not wait for readiness."""
        header = self._folder / "run" / "inference.header"
        # After a kill the previous file remains.
        header.unlink(missing_ok=True)
        self.run(sys.executable, "-m", "serving", "run")
        wait(header.exists, f"service of {self.name}")
        self.run(sys.executable, "-m", "serving", "edge")

    def run(self, *command: str) -> None:
        """Start a program on the node; the last word of the command is its name."""
        with (self._folder / "programs.log").open("ab") as output:
            self._processes[command[-1]] = subprocess.Popen(
                ["ip", "netns", "exec", self._link, *command],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self.cgroup.enter,
            )

    def kill(self) -> None:
        """Kill everything at once, like a power failure."""
        self.cgroup.signal(signal.SIGKILL)
        for process in self._processes.values():
            process.wait()

    def stop(self) -> None:
        """Stop the edge, and once it has finished, the service."""
        for command in ("edge", "run"):
            self._processes[command].terminate()
            self._processes[command].wait(PATIENCE)

    def set_link(self, state: str) -> None:
        """Set the network cable up or down."""
        _ip("link", "set", self._link, state)

    def set_state(self, state: str) -> None:
        """Set the node ready, drain or maint in HAProxy."""
        admin(f"set server edges/{self.name} state {state}", self.socket)

    def remove(self) -> None:
        self.cgroup.limit(None)
        self.cgroup.signal(signal.SIGCONT)
        self.cgroup.remove()
        for process in self._processes.values():
            process.wait()
        _ip("netns", "delete", self._link)


class Cluster(Target):
    """The nodes, and HAProxy in front of them."""

    def __init__(self, folder: Path, nodes: Sequence[Node], certificate: Path, key: str) -> None:
        self.nodes, self.log = nodes, folder / "load.csv"
        self.url, self.key = f"https://{FRONT}:{PORT}/predictions/{MODEL}", key
        self.environment = os.environ | {
            "GATEWAY_URL": self.url,
            "GATEWAY_CERTIFICATE": str(certificate),
            "GATEWAY_KEY": key,
        }
        self.haproxy_log = folder / "haproxy.log"
        pair = folder / "haproxy.pem"
        pair.write_bytes(certificate.read_bytes() + certificate.with_suffix(".key").read_bytes())
        variables = {
            "FRONT_ADDRESS": f"{FRONT}:{PORT}",
            "FRONT_CERTIFICATE": str(pair),
            "FRONT_SOCKET": str(nodes[0].socket),
            "NODES_CA": str(certificate),
            "PREDICTION_TIMEOUT": f"{PREDICTION_TIMEOUT}s",
        } | {f"NODE_{at}": f"{node.address}:{PORT}" for at, node in enumerate(nodes, 1)}
        with self.haproxy_log.open("wb") as output:
            self.haproxy = subprocess.Popen(
                ["haproxy", "-W", "-f", str(ROOT / "deploy" / "haproxy" / "haproxy.cfg")],
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def up(self) -> int:
        """Return how many nodes HAProxy considers up."""
        with contextlib.suppress(OSError):
            lines = admin("show stat", self.nodes[0].socket).splitlines()
            return sum(line.startswith("edges,node") and ",UP," in line for line in lines)
        return 0

    def answers(self) -> dict[str, Any]:
        """Return HAProxy's log, by request."""
        lines = self.haproxy_log.read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return {each["request_id"]: each for each in found}

    def requests(self) -> list[Request]:
        """Return what the clients have seen so far, with the nodes that answered."""
        answers = self.answers()
        return [
            replace(each, by=answers.get(each.client, {}).get("node", ""))
            for each in read_requests(self.log)
        ]

    def retried(self) -> int:
        """Return how many requests HAProxy has sent to a second node so far."""
        return sum(each["retries"].lstrip("+") != "0" for each in self.answers().values())


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """Run network, nodes and HAProxy during the block, and clean up."""
    if missing := lacking():
        raise click.ClickException(missing)
    certificate, key = folder / "certificate.pem", folder / "certificate.key"
    create(certificate, key, [NAME, FRONT])
    keys = folder / "keys.json"
    edge = {
        "EDGE_PORT": str(PORT),
        "EDGE_CERTIFICATE": str(certificate),
        "EDGE_CERTIFICATE_KEY": str(key),
        "EDGE_KEYS": str(keys),
        "EDGE_FRONT": FRONT,
        # The rate limit must not refuse a client.
        "EDGE_RATE": "100000",
    }
    api_key = KeyFile(keys).add("nodes")
    with network(), contextlib.ExitStack() as stack:
        nodes = []
        for number in NODES:
            nodes.append(Node(number, folder, edge))
            stack.callback(nodes[-1].remove)
        for node in nodes:
            node.start()
        cluster = Cluster(folder, nodes, certificate, api_key)
        stack.callback(cluster.haproxy.wait)
        stack.callback(cluster.haproxy.terminate)
        wait(lambda: cluster.up() == len(nodes), "HAProxy with three nodes")
        yield cluster


def admin(command: str, path: Path) -> str:
    """Send a command to HAProxy; return its answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"{command}\n".encode())
        return connection.makefile().read()


def lacking() -> str | None:
    if os.geteuid():
        return "Network namespaces need root."
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"These programs are missing: {', '.join(missing)} (ip is in iproute2)."
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        _ip("netns", "add", "bloodcells-probe")
        _ip("netns", "delete", "bloodcells-probe")
        Cgroup("probe").remove()
        return None
    return "This machine does not allow network namespaces or cgroups."


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Make the bridge that connects the nodes, with HAProxy's address."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        _ip("address", "add", f"{FRONT}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield
    finally:
        _ip("link", "delete", BRIDGE)


def wait(until: Callable[[], bool], what: str) -> None:
    """Wait for a condition; raise TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {PATIENCE:g} s")
        time.sleep(0.1)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

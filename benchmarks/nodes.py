"""Three nodes on one machine, each a service with its edge, and what happens when one fails.

Each node is a network namespace with an address of its own, and a cgroup that bounds its time on
the processor; before them all stands one more edge (EDGE_NODES). Under a steady load one node is
killed, cut off, hung, slowed and drained. Then: images a second of one, two and three nodes.
Writes benchmarks/results/nodes.{json,md,png}; exit code 1 if a request failed. Needs root, nginx,
iproute2, openssl and wrk.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from benchmarks import nodes_report
from benchmarks.bench import Bodies, load
from benchmarks.bench_report import SMALL
from benchmarks.nodes_report import Event, Request
from benchmarks.servers import SERVICE, Running
from serving import deployment
from serving.deployment import Deployment, VersionSpec
from serving.edge.certificates import NAME, create
from serving.edge.keys import KeyFile
from serving.settings import ROOT, Settings
from testing.clients import Clients
from testing.service import Edge, environment_of, machine, run_edge
from training import data

RESULTS = ROOT / "benchmarks" / "results"
PROGRAMS = ("ip", "nginx", "openssl", "wrk")
NODES = 3
# A network that lies within this machine.
BRIDGE, NETWORK = "bloodcells", "10.213.77"
FRONT = f"{NETWORK}.1"
PORT = 8443
WANTED = Deployment("1.0", {"1.0": VersionSpec(1)})
# Seconds until another node is asked for what one does not answer.
NODES_TIMEOUT = 3
CLIENTS = 8
# Seconds between two requests of a client.
PAUSE = (0.02, 0.1)
# Seconds of peace before each event, and that a fault lasts.
CALM, FAULT = 5.0, 10.0
PATIENCE = 120.0
# Of a core, what a slowed node keeps; and what each has when throughput is measured.
SLOWED, SHARE = 0.05, 0.3
LOAD_CLIENTS, LOAD_SECONDS = 32, 8


class Cgroup:
    """The processes of one node, and how much processor time they may take."""

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
        """Let its processes together take so many cores, or as many as there are."""
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
        """End its processes, and remove it."""
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            self.signal(signal.SIGKILL)
            time.sleep(0.05)
        self.path.rmdir()


class Node:
    """A machine of its own, as far as network and processor time tell: a service and its edge."""

    def __init__(self, number: int, folder: Path, certificate: tuple[Path, Path], keys: Path):
        self.name = f"node{number}"
        self.address = f"{NETWORK}.{10 + number}"
        self._link = f"{BRIDGE}{number}"
        self._folder = folder / self.name
        self._folder.mkdir()
        wanted = self._folder / "deployment.yaml"
        deployment.save(WANTED, wanted)
        # The ports are the usual ones: each namespace has its own.
        settings = Settings(run_dir=self._folder / "run", deployment=wanted)
        self._environment = environment_of(settings) | edge_environment(
            self.address, certificate, keys
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.cgroup = Cgroup(self.name)
        self._plug_in()

    def _plug_in(self) -> None:
        """Give it a network of its own, with a cable to the bridge."""
        _ip("netns", "add", self._link)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._link)
        _ip("link", "set", self._link, "master", BRIDGE, "up")
        for command in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            _ip("-n", self._link, *command)

    def start(self) -> None:
        """Start the service, and the edge once it can be reached; do not wait for answers."""
        header = self._folder / "run" / "inference.header"
        # One that was left by a kill says nothing.
        header.unlink(missing_ok=True)
        self.run(sys.executable, "-m", "serving", "run")
        wait(header.exists, f"{self.name}'s service")
        self.run(sys.executable, "-m", "serving", "edge")

    def run(self, *command: str) -> None:
        """Start a program on it, known by the last word of the command."""
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

    def answers(self) -> bool:
        """Return whether its edge says that it is ready."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPSConnection(
                self.address, PORT, timeout=5, context=ssl._create_unverified_context()
            )
            with contextlib.closing(connection):
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
        return False

    def kill(self) -> None:
        """End all that runs on it at once, as a power cut would."""
        self.cgroup.signal(signal.SIGKILL)
        for process in self._processes.values():
            process.wait()

    def drain(self) -> None:
        """Stop it as Kubernetes does: the edge, and when that has finished, the service."""
        for command in ("edge", "run"):
            self._processes[command].terminate()
            self._processes[command].wait(PATIENCE)

    def cut_off(self, cut: bool) -> None:
        """Pull its network cable, or plug it in again."""
        _ip("link", "set", self._link, "down" if cut else "up")

    def remove(self) -> None:
        """End it, and leave nothing of it."""
        self.cgroup.limit(None)
        self.cgroup.signal(signal.SIGCONT)
        self.cgroup.remove()
        for process in self._processes.values():
            process.wait()
        _ip("netns", "delete", self._link)


class Load(Clients):
    """Clients that ask one image after another, nothing a second time, and note the answers."""

    def __init__(self, it: Cluster, log: Path, images: Sequence[bytes]) -> None:
        super().__init__(CLIENTS)
        self._key, self._images = it.key, images
        self._context = ssl.create_default_context(cafile=str(it.certificate[0]))
        self._asked: list[tuple[str, Request]] = []
        # Who was asked, by the request's id; the front edge tells it in its log.
        self._log = log.open()
        self._nodes: dict[str, tuple[str, ...]] = {}

    def ask_on(self, number: int) -> None:
        connection = Connection(self._context)
        with contextlib.closing(connection):
            while not self.ending.wait(random.uniform(*PAUSE)):
                name = secrets.token_hex(8)
                self._asked.append((name, self._ask(connection, name)))

    def _ask(self, connection: Connection, name: str) -> Request:
        headers = {"Content-Type": "image/jpeg", "X-API-Key": self._key, "X-Request-ID": name}
        image = random.choice(self._images)
        moment, started, error = time.time(), time.perf_counter(), ""
        try:
            connection.request("POST", "/predictions/bloodcells", image, headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                error = f"{answer.status} {body[:200]!r}"
        except (OSError, http.client.HTTPException) as failure:
            error = repr(failure)
            connection.close()
        milliseconds = 1000 * (time.perf_counter() - started)
        return Request(moment, milliseconds, (), error)

    def requests(self, last: int = 0) -> list[Request]:
        """Return the last requests, or all, with the nodes that were asked."""
        for line in self._log:
            told = json.loads(line)
            self._nodes[told["request_id"]] = tuple(re.findall(r"[0-9.]+(?=:)", told["upstream"]))
        return [
            replace(request, nodes=self._nodes.get(name, ()))
            for name, request in self._asked[-last:]
        ]

    def seen(self, node: Node, since: float) -> bool:
        """Return whether a request that was sent since then was answered by this node."""
        return any(
            request.time > since and request.node == node.address for request in self.requests(1000)
        )


class Connection(http.client.HTTPSConnection):
    """A connection to the front edge, whose certificate names no address."""

    def __init__(self, context: ssl.SSLContext) -> None:
        context.check_hostname = False
        super().__init__(FRONT, PORT, timeout=30, context=context)


@dataclass(frozen=True)
class Fault:
    """What is done to a node, and what makes it well again."""

    name: str
    begin: Callable[[Node], None]
    end: Callable[[Node], None]


FAULTS = (
    Fault("killed (kill -9 of all)", Node.kill, Node.start),
    Fault("cut off (link down)", lambda node: node.cut_off(True), lambda node: node.cut_off(False)),
    Fault(
        "hung (all stopped)",
        lambda node: node.cgroup.signal(signal.SIGSTOP),
        lambda node: node.cgroup.signal(signal.SIGCONT),
    ),
    Fault(
        f"slowed (to {SLOWED:g} core)",
        lambda node: node.cgroup.limit(SLOWED),
        lambda node: node.cgroup.limit(None),
    ),
    Fault("drained (TERM)", Node.drain, Node.start),
)


def main() -> int:
    """Break nodes, measure throughput, and write what came of it."""
    if missing := lacking():
        print(missing, file=sys.stderr)
        return 2
    # Nothing of the network may stay, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="bloodcells-nodes-") as name, cluster(Path(name)) as it:
        bodies = Bodies(data.data_root(), Path(name))
        requests, events = break_nodes(it, bodies.images[SMALL])
        found = {
            "date": date.today().isoformat(),
            "machine": machine(),
            "clients": CLIENTS,
            "events": nodes_report.summary(events, requests),
            "throughput": throughput(it, bodies),
        }
    nodes_report.write(RESULTS, found, events, requests)
    print((RESULTS / "nodes.md").read_text())
    return 1 if any(request.error for request in requests) else 0


def lacking() -> str | None:
    """Return what this machine lacks to have nodes on it, or None."""
    if os.geteuid():
        return "Only root can make network namespaces."
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"These programs are missing: {', '.join(missing)} (Debian: iproute2 has ip)."
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        _ip("netns", "add", "bloodcells-probe")
        _ip("netns", "delete", "bloodcells-probe")
        Cgroup("probe").remove()
        return None
    return "This machine does not allow network namespaces or cgroups."


@dataclass
class Cluster:
    """The nodes, what stands in front of them, and how one asks."""

    folder: Path
    nodes: list[Node]
    certificate: tuple[Path, Path]
    keys: Path
    key: str

    @contextlib.contextmanager
    def fronted(self, nodes: Sequence[Node]) -> Iterator[Edge]:
        """Run the edge in front of some nodes."""
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="front-"))
        edge = run_edge(
            Settings(run_dir=folder / "run"),
            **edge_environment(FRONT, self.certificate, self.keys),
            EDGE_NODES=",".join(f"https://{node.address}:{PORT}" for node in nodes),
            EDGE_NODES_CA=str(self.certificate[0]),
            EDGE_NODES_TIMEOUT=str(NODES_TIMEOUT),
        )
        try:
            yield edge
        finally:
            edge.stop()


def edge_environment(host: str, certificate: tuple[Path, Path], keys: Path) -> dict[str, str]:
    """Return what tells an edge where it listens, who it is and whom it lets in."""
    return {
        "EDGE_HOST": host,
        "EDGE_PORT": str(PORT),
        "EDGE_CERTIFICATE": str(certificate[0]),
        "EDGE_CERTIFICATE_KEY": str(certificate[1]),
        "EDGE_KEYS": str(keys),
        # No client is to be refused for its pace.
        "EDGE_RATE": "100000",
    }


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Make the network and the nodes, wait until all are ready; in the end leave nothing."""
    certificate = folder / "certificate.pem", folder / "certificate.key"
    create(*certificate, [NAME])
    keys = folder / "keys.json"
    key = KeyFile(keys).add("nodes")
    with network(), contextlib.ExitStack() as stack:
        nodes = []
        for number in range(1, NODES + 1):
            node = Node(number, folder, certificate, keys)
            stack.callback(node.remove)
            nodes.append(node)
        for node in nodes:
            node.start()
            wait(node.answers, f"{node.name}'s edge")
        yield Cluster(folder, nodes, certificate, keys, key)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Make the bridge that all nodes hang on, with the front edge's address."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        _ip("address", "add", f"{FRONT}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield
    finally:
        _ip("link", "delete", BRIDGE)


def break_nodes(it: Cluster, images: Sequence[bytes]) -> tuple[list[Request], list[Event]]:
    """Have each fault befall one node in turn, under load; return what clients saw."""
    events = []
    with it.fronted(it.nodes) as front, Load(it, front.log, images) as clients:
        time.sleep(CALM)
        plan = zip(tqdm(FAULTS, unit=" faults"), itertools.cycle(it.nodes), strict=False)
        for fault, node in plan:
            time.sleep(CALM)
            event = Event(fault.name, node.address, began=time.time())
            fault.begin(node)
            time.sleep(max(0.0, event.began + FAULT - time.time()))
            event.mended = time.time()
            fault.end(node)
            wait(lambda node=node, event=event: clients.seen(node, event.mended), node.name)  # type: ignore[misc]
            event.back = time.time()
            events.append(event)
        time.sleep(CALM)
    return clients.requests(), events


def throughput(it: Cluster, bodies: Bodies) -> list[dict[str, Any]]:
    """Return images a second of one to three nodes, with a share of a core each and without."""
    rows = []
    for share in (SHARE, None):
        for node in it.nodes:
            node.cgroup.limit(share)
        for count in range(1, NODES + 1):
            with it.fronted(it.nodes[:count]) as front:
                url = f"https://{FRONT}:{PORT}/predictions/bloodcells"
                running = Running(url, psutil.Process(front.process.pid), {"X-API-Key": it.key})
                row = load(running, bodies.singles(SMALL, SERVICE), LOAD_CLIENTS, LOAD_SECONDS)
            rows.append({"nodes": count, "cores a node": share, **row})
    return rows


def listens(address: str) -> bool:
    """Return whether something listens on our port of an address."""
    with contextlib.suppress(OSError):
        socket.create_connection((address, PORT), timeout=0.3).close()
        return True
    return False


def wait(until: Callable[[], bool], what: str) -> None:
    """Wait until something holds; raise TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} is not there after {PATIENCE:g} s")
        time.sleep(0.02)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())

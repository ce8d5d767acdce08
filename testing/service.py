"""A real service on free ports, with its own folder and deployment."""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import itertools
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import deployment
from serving.deployment import Deployment
from serving.settings import ROOT, Settings

# The last line that each prints when it is ready.
READY = "Ctrl-C stops everything."
EDGE_OPEN = "Ctrl-C closes it."
# Seconds that a start may take on a busy machine.
PATIENCE = 180.0


def machine() -> dict[str, Any]:
    """Return the machine that figures were measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }


@dataclass
class Program:
    """A running program, and the file that it prints to."""

    process: subprocess.Popen[bytes]
    printed: Path

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Stop it like a user or an init system; return what it printed."""
        self.process.send_signal(number)
        self.process.wait(timeout=90)
        return self.printed.read_text()


@dataclass
class Service(Program):
    """A running service."""

    settings: Settings

    @property
    def frontend_url(self) -> str:
        return self.settings.frontend_url


@dataclass
class Edge(Program):
    """A running edge: where it listens, its certificate and its log."""

    url: str
    certificate: Path
    log: Path


# Below the range from which the kernel takes the ports of outgoing connections.
_PORTS = range(10_000, 32_000)
_reservations = contextlib.ExitStack()
atexit.register(_reservations.close)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, reserved for this process among all that call this.

    A port that is merely free now may be taken before a server that starts slowly binds it.
    """
    start = random.choice(_PORTS)
    candidates = itertools.chain(range(start, _PORTS.stop), range(_PORTS.start, start))
    return list(itertools.islice(filter(_reserve, candidates), count))


def _reserve(port: int) -> bool:
    # The kernel frees an abstract name when the process that bound it ends.
    reservation = socket.socket(socket.AF_UNIX)
    try:
        reservation.bind(f"\0bloodcells-port-{port}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        reservation.close()
        return False
    _reservations.enter_context(reservation)
    return True


def free_settings(run_dir: Path, wanted: Deployment) -> Settings:
    """Return settings with free ports, and their own folder and deployment."""
    names = [name.lower() for name in Settings().ports]
    own = run_dir.with_name(f"{run_dir.name}.deployment.yaml")
    own.parent.mkdir(parents=True, exist_ok=True)
    deployment.save(wanted, own)
    ports: dict[str, Any] = dict(zip(names, free_ports(len(names)), strict=True))
    return Settings(**ports, run_dir=run_dir, deployment=own)


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the environment that gives `python -m serving` these settings."""
    return (
        os.environ
        | {name: str(port) for name, port in settings.ports.items()}
        | {
            "RUN_DIR": str(settings.run_dir),
            "MODEL_STORE": str(settings.model_store),
            "DEPLOYMENT": str(settings.deployment),
            "CONFIG": str(settings.config),
        }
    )


def start(settings: Settings, **variables: str) -> Service:
    """Start `python -m serving run`, and do not wait."""
    return Service(*_start("run", settings, variables), settings)


def run_service(settings: Settings, **variables: str) -> Service:
    """Start the service, and wait until it is ready."""
    service = start(settings, **variables)
    _wait(READY, service)
    return service


@contextlib.contextmanager
def deployed(folder: Path) -> Iterator[Service]:
    """Run a service with the versions of deployment.yaml, and its files in a folder."""
    wanted = deployment.load(ROOT / "deployment.yaml")
    service = run_service(free_settings(folder / "run", wanted))
    try:
        yield service
    finally:
        service.stop()


def run_edge(settings: Settings, **variables: str) -> Edge:
    """Start the edge of a service on a free port, and wait until it is open."""
    (port,) = free_ports(1)
    edge = Edge(
        *_start("edge", settings, {"EDGE_PORT": str(port)} | variables),
        f"https://127.0.0.1:{port}",
        settings.run_dir / "edge" / "certificate.pem",
        settings.run_dir / "logs" / "edge.log",
    )
    _wait(EDGE_OPEN, edge)
    return edge


def _start(
    command: str, settings: Settings, variables: dict[str, str]
) -> tuple[subprocess.Popen[bytes], Path]:
    # Into a file: a pipe that nobody reads would block the program in the end.
    handle, name = tempfile.mkstemp(dir=settings.run_dir.parent, suffix=".printed")
    with open(handle, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving", command],
            cwd=ROOT,
            env=environment_of(settings) | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return process, Path(name)


def _wait(line: str, program: Program) -> None:
    """Wait until a program prints a line; raise AssertionError if it ends or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while line not in program.printed.read_text():
        if program.process.poll() is not None or time.monotonic() > deadline:
            program.process.kill()
            program.process.wait()
            raise AssertionError(f"a program did not start:\n{program.printed.read_text()}")
        time.sleep(0.05)

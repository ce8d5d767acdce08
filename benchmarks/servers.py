"""The servers that `make bench` compares: this deployment, plain TorchServe, and peers.

A peer has a virtual environment of its own under .build/peers/, with the packages that its
requirements in benchmarks/peers/ pin. The service itself uses none of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.peers.kernels import FOLDER, WORKERS
from serving.deployment import Deployment, VersionSpec, known_answers
from serving.edge.keys import KeyFile
from serving.edge.settings import keys_path
from serving.settings import MODEL, ROOT
from serving.torchserve.java import find_java
from serving.torchserve.tokens import Tokens
from testing import processes
from testing.connections import in_form
from testing.service import free_ports, free_settings, run_edge, run_service
from training.networks import load_networks

PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".build" / "peers"
VERSION = FOLDER.name
PATIENCE = 120
JPEG = "image/jpeg"
FLASK, FASTAPI = "benchmarks.peers.flask_app:app", "benchmarks.peers.fastapi_app:app"
PEER_COMMANDS = {
    "flask": f"gunicorn -w {WORKERS} -b 127.0.0.1:PORT {FLASK}",
    "fastapi": f"uvicorn --workers {WORKERS} --port PORT --no-access-log {FASTAPI}",
    "litserve": "python -m benchmarks.peers.litserve_app PORT",
    "bentoml": f"bentoml serve --working-dir {ROOT} --port PORT benchmarks.peers.bentoml_app:Cells",
    "ray": "python -m benchmarks.peers.ray_app PORT",
}
PEER_PATHS = {"bentoml": "/predict"}
PEER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray lowers the priority of its workers otherwise.
    "RAY_worker_niceness": "0",
}
PEER_NAMES = tuple(PEER_COMMANDS)


@dataclass
class Running:
    """A running server: where it answers, its main process, and the headers of each request."""

    url: str
    process: psutil.Process
    headers: Mapping[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    certificate: Path | None = None

    def post(self, content_type: str, body: bytes) -> requests.Response:
        """Send one request, outside of a load."""
        headers = {"Content-Type": content_type, **self.headers}
        verify = str(self.certificate) if self.certificate else True
        return requests.post(self.url, body, headers=headers, timeout=60, verify=verify)


@dataclass(frozen=True)
class Server:
    """How to start a server, and how to send it an image."""

    name: str
    title: str
    # What computes the answer (benchmarks/peers/kernels.py).
    kernel: str
    start: Callable[[Path], contextlib.AbstractContextManager[Running]]
    form: bool = False

    def request(self, image: bytes) -> tuple[str, bytes]:
        """Return content type and body of a request for one image."""
        return in_form([image]) if self.form else (JPEG, image)


@contextlib.contextmanager
def ours(
    folder: Path,
    edge: bool = False,
    version: str = VERSION,
    workers: int = WORKERS,
    model_store: Path | None = None,
) -> Iterator[Running]:
    """Run this deployment; requests go to TorchServe itself, or through the edge."""
    wanted = Deployment(default=version, versions={version: VersionSpec(workers=workers)})
    settings = free_settings(folder / "run", wanted)
    if model_store:
        settings = settings.model_copy(update={"model_store": model_store})
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        service = run_service(settings)
        stack.callback(service.stop)
        url, headers = settings.inference_url, Tokens(settings.run_dir).header("inference")
        certificate = None
        if edge:
            front = run_edge(settings, EDGE_RATE="100000")
            stack.callback(front.stop)
            url, certificate = front.url, front.certificate
            headers = {"X-API-Key": KeyFile(keys_path(settings)).add("bench")}
        process = psutil.Process(service.process.pid)
        yield Running(f"{url}/predictions/{MODEL}", process, headers, started, certificate)


@contextlib.contextmanager
def stock(folder: Path, threads: str = "") -> Iterator[Running]:
    """Run TorchServe with its own launcher, settings and image classifier.

    By default each of its workers has as many threads as there are cores.
    """
    inference, management, metrics, grpc, grpc_management = free_ports(5)
    (folder / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{inference}\n"
        f"management_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\n"
        f"grpc_inference_port={grpc}\ngrpc_management_port={grpc_management}\n"
    )
    command: list[Any] = [Path(sys.executable).parent / "torchserve", "--start", "--foreground"]
    command += ["--ncs", "--disable-token-auth", "--ts-config", "config.properties"]
    command += ["--model-store", stock_archive(folder).parent, "--models", "bloodcells=cells.mar"]
    environment = {"JAVA_HOME": str(find_java().parent.parent), "TEMP": str(folder)}
    if threads:
        environment["OMP_NUM_THREADS"] = threads
    url = f"http://127.0.0.1:{inference}/predictions/bloodcells"
    with _started(command, folder, environment, url) as running:
        yield running


def stock_archive(folder: Path) -> Path:
    """Build an archive of the network for TorchServe's own image classifier."""
    import torch

    card = json.loads((FOLDER / "card.json").read_text())

    class Tempered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = load_networks(FOLDER, card)["network"]
            self.temperature = card["temperature"]

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(images) / self.temperature
            return logits

    store = folder / "store"
    store.mkdir()
    with warnings.catch_warnings():
        # Deprecated, but TorchServe's image classifier loads nothing else.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Tempered(), torch.zeros(1, 3, 60, 80)).save(folder / "network.pt")
    names = folder / "index_to_name.json"
    names.write_text(json.dumps(dict(enumerate(card["classes"]))))
    command: list[Any] = [Path(sys.executable).parent / "torch-model-archiver"]
    command += ["--model-name", "cells", "--version", VERSION, "--export-path", store]
    command += ["--serialized-file", folder / "network.pt"]
    command += ["--handler", PEERS / "stock_handler.py"]
    command += ["--extra-files", f"{names},{ROOT / 'training' / 'torchvision_cpu.py'}"]
    subprocess.run(command, check=True, capture_output=True)
    return store / "cells.mar"


@contextlib.contextmanager
def peer(folder: Path, name: str, kernel: str) -> Iterator[Running]:
    """Run a peer in its own environment."""
    [port] = free_ports(1)
    program, *arguments = PEER_COMMANDS[name].replace("PORT", str(port)).split()
    environment = {"KERNEL": kernel, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    command = [str(ENVIRONMENTS / name / "bin" / program), *arguments]
    url = f"http://127.0.0.1:{port}{PEER_PATHS.get(name, '/')}"
    with _started(command, folder, environment | PEER_ENVIRONMENT, url) as running:
        yield running


@contextlib.contextmanager
def _started(
    command: Sequence[Any], folder: Path, environment: Mapping[str, str], url: str
) -> Iterator[Running]:
    with (folder / "printed").open("wb") as printed:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**{k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}, **environment},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Running(url, psutil.Process(process.pid))
    try:
        yield running
    finally:
        family = processes.tree(running.process)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


@contextlib.contextmanager
def ready(server: Server) -> Iterator[tuple[Running, float]]:
    """Run a server; yield it once it answers, with the seconds that this took."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    content_type, body = server.request((known_answers.SAMPLES / "neutrophil.png").read_bytes())
    try:
        with server.start(folder) as running:
            while True:
                with contextlib.suppress(requests.RequestException):
                    if running.post(content_type, body).ok:
                        break
                seconds = time.perf_counter() - running.started
                if running.process.status() == psutil.STATUS_ZOMBIE or seconds > PATIENCE:
                    printed = folder / "printed"
                    raise RuntimeError(
                        f"{server.title} did not start:\n"
                        f"{printed.read_text()[-2000:] if printed.exists() else ''}"
                    )
                time.sleep(0.02)
            yield running, time.perf_counter() - running.started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def set_up(name: str) -> None:
    """Create the virtual environment of a peer, unless it is up to date."""
    files = [PEERS / f"{name}.txt", PEERS / "kernels.txt"]
    wanted = "".join(file.read_text() for file in files)
    stamp = ENVIRONMENTS / name / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"setting up {name} in {stamp.parent.relative_to(ROOT)}/", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", stamp.parent], check=True)
    command: list[Any] = [stamp.parent / "bin" / "python", "-m", "pip", "install", "--quiet"]
    command.append("--disable-pip-version-check")
    for file in files:
        command += ["-r", file]
    subprocess.run(command, check=True)
    stamp.write_text(wanted)


def _peer(name: str, title: str, kernel: str, form: bool = False) -> Server:
    start = partial(peer, name=name, kernel=kernel)
    return Server(f"{name}-{kernel}", f"{title}, {kernel}", kernel, start, form)


SERVICE = Server("bloodcells", "this deployment", "ours", ours)
EDGE = Server("edge", "through the edge, TLS", "ours", partial(ours, edge=True))
ONE_THREAD = partial(stock, threads="1")
SERVERS = [
    SERVICE,
    Server("torchserve-plain", "TorchServe, default settings", "plain", stock),
    Server("torchserve-thread", "TorchServe, one thread a worker", "plain", ONE_THREAD),
    _peer("flask", "Flask, gunicorn", "plain"),
    _peer("flask", "Flask, gunicorn", "ours"),
    _peer("fastapi", "FastAPI, uvicorn", "plain"),
    _peer("fastapi", "FastAPI, uvicorn", "ours"),
    # The cost of these servers hides that of the kernel.
    _peer("litserve", "LitServe", "ours", form=True),
    _peer("bentoml", "BentoML", "ours", form=True),
    _peer("ray", "Ray Serve", "ours"),
]

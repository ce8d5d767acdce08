"""The servers that `make bench` compares, each started anew: ours, TorchServe as it comes, peers.

A peer lives in a virtual environment of its own under .build/peers/, with what its requirements in
benchmarks/peers/ pin. Nothing of it is the product's.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.peers.kernels import FOLDER, WORKERS
from handler.networks import load_networks
from serving.deployment import Deployment, VersionSpec, known_answers
from serving.settings import ROOT
from serving.torchserve.java import find_java
from serving.torchserve.tokens import Tokens
from testing.service import free_ports, free_settings, run_service

PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".build" / "peers"
VERSION = FOLDER.name
PATIENCE = 120
JPEG = "image/jpeg"


@dataclass
class Running:
    """A server that answers: where, what to send with each request, and its processes."""

    url: str
    process: psutil.Process
    headers: Mapping[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def tree(self) -> list[psutil.Process]:
        """Return its processes, those of its workers too."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> dict[str, float]:
        """Return how long its processes have computed so far, by kind."""
        spent: dict[str, float] = {}
        for each in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                spent[_kind(each)] = spent.get(_kind(each), 0) + times.user + times.system
        return spent

    def megabytes(self) -> dict[str, list[float]]:
        """Return the memory of its processes by kind; what they share counts in parts (PSS)."""
        return self._by_kind(lambda each: each.memory_full_info().pss)

    def anonymous_megabytes(self) -> dict[str, list[float]]:
        """Return what its processes hold by themselves (RssAnon), by kind: no file's pages."""
        return self._by_kind(_anonymous)

    def _by_kind(self, held: Callable[[psutil.Process], int]) -> dict[str, list[float]]:
        memory: dict[str, list[float]] = {}
        for each in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                memory.setdefault(_kind(each), []).append(round(held(each) / 2**20, 1))
        return memory


def _anonymous(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (kilobytes,) = re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.M)
    return 1024 * int(kilobytes)


def _kind(process: psutil.Process) -> str:
    if any("model_service_worker" in part for part in process.cmdline()):
        return "worker"
    return "java" if process.name() == "java" else "python"


@dataclass(frozen=True)
class Server:
    """How to start a server, and how an image is sent to it."""

    name: str
    title: str
    # Which of benchmarks/peers/kernels.py answers; ours alone also has the handler's whole archive.
    kernel: str
    start: Callable[[Path], contextlib.AbstractContextManager[Running]]
    form: bool = False

    def request(self, image: bytes) -> tuple[str, bytes]:
        """Return content type and body of a request for one image."""
        return multipart([image]) if self.form else (JPEG, image)


def multipart(images: Sequence[bytes]) -> tuple[str, bytes]:
    """Return content type and body of a form of images; one alone is called `image`."""
    names = ["image"] if len(images) == 1 else [f"image{at}" for at in range(len(images))]
    files = [(name, (name, data, JPEG)) for name, data in zip(names, images, strict=True)]
    prepared = requests.Request("POST", "http://host", files=files).prepare()
    assert isinstance(prepared.body, bytes)
    return prepared.headers["Content-Type"], prepared.body


def in_json(images: Sequence[bytes]) -> tuple[str, bytes]:
    """Return content type and body of a request for images in KServe's JSON."""
    instances = [{"b64": base64.b64encode(image).decode()} for image in images]
    return "application/json", json.dumps({"instances": instances}).encode()


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[Running]:
    """Run our deployment; requests go straight to TorchServe."""
    settings = free_settings(
        folder / "run",
        Deployment(default=VERSION, versions={VERSION: VersionSpec(workers=WORKERS)}),
    )
    started = time.perf_counter()
    service = run_service(settings)
    try:
        yield Running(
            f"{settings.inference_url}/predictions/bloodcells",
            psutil.Process(service.process.pid),
            Tokens(settings.run_dir).header("inference"),
            started,
        )
    finally:
        service.stop()


@contextlib.contextmanager
def stock(folder: Path, threads: str = "") -> Iterator[Running]:
    """Run TorchServe with its own launcher, settings and image classifier.

    If it is told no number, each of its workers has as many threads as there are cores.
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
    """Archive the network for TorchServe's own image classifier."""
    import torch

    class Tempered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            card = json.loads((FOLDER / "card.json").read_text())
            self.network, self.temperature = (
                load_networks(FOLDER, card)["network"],
                card["temperature"],
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(images) / self.temperature
            return logits

    store = folder / "store"
    store.mkdir()
    with warnings.catch_warnings():
        # Deprecated, but what its own image classifier loads.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Tempered(), torch.zeros(1, 3, 60, 80)).save(folder / "network.pt")
    command: list[Any] = [Path(sys.executable).parent / "torch-model-archiver"]
    command += ["--model-name", "cells", "--version", VERSION, "--export-path", store]
    command += ["--serialized-file", folder / "network.pt"]
    command += ["--handler", PEERS / "stock_handler.py", "--extra-files"]
    command += [
        f"{ROOT / 'handler' / 'index_to_name.json'},{ROOT / 'training' / 'torchvision_cpu.py'}"
    ]
    subprocess.run(command, check=True, capture_output=True)
    return store / "cells.mar"


def peer(name: str, kernel: str, command: str, path: str) -> Callable[[Path], Any]:
    """Return what starts a peer; `command` is of its environment, PORT stands for the port."""

    @contextlib.contextmanager
    def start(folder: Path) -> Iterator[Running]:
        [port] = free_ports(1)
        program, *arguments = command.replace("PORT", str(port)).split()
        environment = {
            "KERNEL": kernel,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HOME": str(folder),
            "DO_NOT_TRACK": "1",
            "BENTOML_DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Else it would compute after everything else.
            "RAY_worker_niceness": "0",
        }
        wanted = [str(ENVIRONMENTS / name / "bin" / program), *arguments]
        with _started(wanted, folder, environment, f"http://127.0.0.1:{port}{path}") as running:
            yield running

    return start


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
        family = running.tree()
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


@contextlib.contextmanager
def ready(server: Server) -> Iterator[tuple[Running, float]]:
    """Run a server; yield it when it answers, and the seconds that this took."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    # The page's own cell: any image will do.
    content_type, body = server.request((known_answers.SAMPLES / "neutrophil.png").read_bytes())
    try:
        with server.start(folder) as running:
            headers = {"Content-Type": content_type, **running.headers}
            while True:
                with contextlib.suppress(requests.RequestException):
                    if requests.post(running.url, body, headers=headers, timeout=30).ok:
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
    """Make the virtual environment of a peer, unless it is there as wanted."""
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


def megabytes_installed(name: str | None) -> float:
    """Return how large an environment is: a peer's, or the product's with what tests need."""
    folder = ENVIRONMENTS / name if name else ROOT / ".venv"
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return round(sum(path.stat().st_size for path in files) / 2**20, 1)


_COMMANDS: dict[str, tuple[str, str, str]] = {
    "flask": (
        "Flask, gunicorn",
        f"gunicorn -w {WORKERS} -b 127.0.0.1:PORT benchmarks.peers.flask_app:app",
        "/",
    ),
    "fastapi": (
        "FastAPI, uvicorn",
        f"uvicorn --workers {WORKERS} --port PORT --no-access-log benchmarks.peers.fastapi_app:app",
        "/",
    ),
    "litserve": ("LitServe", "python -m benchmarks.peers.litserve_app PORT", "/"),
    "bentoml": (
        "BentoML",
        f"bentoml serve --working-dir {ROOT} --port PORT benchmarks.peers.bentoml_app:Cells",
        "/predict",
    ),
    "ray": ("Ray Serve", "python -m benchmarks.peers.ray_app PORT", "/"),
}
PEER_NAMES = tuple(_COMMANDS)
SERVICE = Server("bloodcells", "this deployment", "ours", ours)
SERVERS = [
    SERVICE,
    Server("torchserve-plain", "TorchServe as it comes", "plain", stock),
    Server(
        "torchserve-thread",
        "TorchServe, one thread a worker",
        "plain",
        lambda folder: stock(folder, threads="1"),
    ),
    *(
        Server(
            f"{name}-{kernel}",
            title,
            kernel,
            peer(name, kernel, command, path),
            form=name in ("bentoml", "litserve"),
        )
        for name, (title, command, path) in _COMMANDS.items()
        for kernel in ("plain", "ours")
        # The others' own cost hides the kernel's.
        if kernel == "ours" or name in ("flask", "fastapi")
    ),
]

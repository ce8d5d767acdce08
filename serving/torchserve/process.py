"""Start and stop the TorchServe process.

Java is started directly, not by the `torchserve` command. That command returns 0 even if Java did
not start, and leaves Java running when it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from serving.deployment import Deployment, routing
from serving.settings import Settings
from serving.torchserve import StartError, batching
from serving.torchserve.config import effective_config, to_properties
from serving.torchserve.java import find_java
from serving.torchserve.tokens import HEADER_FILE, KEY_FILE

HERE = Path(__file__).parent
SCRATCH_NOTE = "scratch"
SCRATCH_PREFIX = "bloodcells-"
# Our code that Java runs. Java also reads it later, so it is not in the temporary folder, which the
# system may clean.
CODE = "torchserve-code"
# TS_* overrides settings, PYTHONPATH the code of an archive, and LOCAL_RANK makes a worker believe
# that torchrun started it.
NOT_INHERITED = ("PYTHONPATH", "LOCAL_RANK", "ENABLE_TORCH_PROFILER")
# Loaded at import: few calls are safe between fork and exec.
_libc = ctypes.CDLL(None)


class TorchServe:
    """One TorchServe with its workers, from start to stop."""

    def __init__(
        self,
        settings: Settings,
        deployment: Deployment,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a start in which the workers get these environment variables as well."""
        self.settings = settings
        self.config = effective_config(settings, deployment)
        self._own_environment = environment or {}
        if os.pathsep in str(settings.run_dir):
            # Java and Python would split their search paths there.
            raise StartError(
                f"{settings.run_dir} contains {os.pathsep!r}: set RUN_DIR to another folder."
            )
        settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(settings.run_dir)
        # For unpacked archives and sockets. The path of a socket must be short, so this folder is
        # not in RUN_DIR; a file there names it.
        self._scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
        (settings.run_dir / SCRATCH_NOTE).write_text(str(self._scratch))
        self._code = settings.run_dir / CODE
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.settings.run_dir / "logs" / "torchserve.log"

    def start(self) -> None:
        """Start Java, which starts the workers, and do not wait for them; raise StartError."""
        run_dir = self.settings.run_dir
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            # Keep it: it may show why the last process crashed.
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
                # Ctrl-C must reach only the supervisor, which stops its children in order.
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
        """Stop Java and the workers and remove their files; do nothing if they are gone."""
        if self._process:
            _signal_group(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
            # Workers may outlive Java.
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
        if not batching.write_patched_class(jars, classes):
            print(
                "Unknown TorchServe release: a single request waits for the batch delay.",
                flush=True,
            )
        return [
            str(find_java()),
            f"-Dmodel_server_home={self._home(installed)}",
            f"-Dlog4j.configurationFile={(HERE / 'log4j2.xml').as_uri()}",
            f"-Djava.io.tmpdir={self._scratch}",
            # One file, in the working directory, rather than one for each crash.
            "-XX:ErrorFile=logs/java-crash.log",
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
        """Create the folder where Java looks for the worker program, with our worker in it."""
        home = self._code / "home"
        (home / "ts").mkdir(parents=True)
        shutil.copy(HERE / "worker.py", home / "ts" / "model_service_worker.py")
        # Java reports this version to its clients.
        shutil.copy(installed / "version.txt", home / "ts")
        return home

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("TS_") and name not in NOT_INHERITED
        }
        logs = str(self.settings.run_dir / "logs")
        scratch = str(self._scratch)
        return inherited | {
            "LOG_LOCATION": logs,
            "METRICS_LOCATION": logs,
            "TMPDIR": scratch,
            "TEMP": scratch,
            **self._own_environment,
        }


def remove_leftovers(run_dir: Path) -> None:
    """Remove what a stopped or killed service leaves: tokens, routing, programs."""
    with contextlib.suppress(FileNotFoundError):
        scratch = Path((run_dir / SCRATCH_NOTE).read_text())
        # A damaged file must not make us delete another folder.
        if scratch.name.startswith(SCRATCH_PREFIX):
            shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(run_dir / CODE, ignore_errors=True)
    for name in (routing.FILE, KEY_FILE, HEADER_FILE, SCRATCH_NOTE):
        (run_dir / name).unlink(missing_ok=True)


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Make the kernel signal this child when its parent dies, even by kill -9 (Linux only)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        _libc.prctl(pr_set_pdeathsig, number)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)

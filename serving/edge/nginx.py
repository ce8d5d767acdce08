"""The nginx process of the edge: find, start, signal and kill it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from serving.edge.configuration import INSTALL
from serving.torchserve import StartError
from serving.torchserve.process import die_with_parent


class Nginx:
    """nginx in the foreground; it can be started again after it has exited."""

    def __init__(self, program: str, config: Path) -> None:
        self._command = [program, "-e", "stderr", "-p", f"{config.parent}/", "-c", str(config)]
        self._process: subprocess.Popen[bytes] | None = None
        # Whether it was asked to close.
        self.closing = False

    def start(self) -> None:
        """Start it, and do not wait until it listens."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            # Ctrl-C must not reach nginx, which would drop open requests.
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGQUIT),
        )
        if self.closing:
            # The signal arrived while no process ran.
            self.close()

    def close(self) -> None:
        """Make it answer the open requests and exit."""
        self.closing = True
        self.signal(signal.SIGQUIT)

    def signal(self, number: int) -> None:
        """Send it a signal; do nothing if it has exited."""
        if self._process:
            self._process.send_signal(number)

    def exit_code(self, patience: float = 0) -> int | None:
        """Return its exit code, or None if it runs for so long, in seconds."""
        assert self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        return self._process.returncode

    def end_workers(self, number: int) -> None:
        """Send a signal to the workers, which would continue to serve without their master."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def find() -> str:
    """Return the path of nginx, which may not be on a user's PATH; raise StartError."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise StartError(f"nginx was not found: {INSTALL}.")
    return program

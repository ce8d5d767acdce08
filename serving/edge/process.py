"""Run nginx as the edge: start it, reload its certificate, rotate its log, stop it.

It runs as the same user as the service, and starts and stops independently of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from serving.edge import certificates, configuration, log, status
from serving.edge.configuration import bracketed
from serving.edge.settings import EdgeSettings, keys_path
from serving.files import Locked, lock
from serving.settings import HOST, Settings
from serving.torchserve import StartError
from serving.torchserve.ports import why_closed
from serving.torchserve.process import die_with_parent

START_TIMEOUT = 60.0
# Seconds between checks of the certificate and of the log.
CHECK_INTERVAL = 1.0


def run(settings: Settings) -> None:
    """Serve until a signal stops it, then finish open requests; raise StartError, SettingsError."""
    os.umask(0o077)
    own = EdgeSettings.from_environment()
    program, folder = _nginx(), settings.run_dir / "edge"
    for each in (folder / "tmp", settings.run_dir / "logs"):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with lock(folder / "lock", "An edge already runs"):
            _serve(settings, own, program, folder)
    except Locked as error:
        raise StartError(f"{error} in {settings.run_dir}: set another RUN_DIR.") from error


def _serve(settings: Settings, own: EdgeSettings, program: str, folder: Path) -> None:
    port = settings.edge_port
    if why := why_closed(own.host, port):
        raise StartError(
            f"The edge cannot listen on {own.host}, port {port} ({why}): stop the other program, "
            "or set EDGE_PORT or EDGE_HOST to another."
        )
    files = certificates.provide(own, folder)
    config = configuration.write(settings, own, *files, folder)
    known = _contents(files)
    process = subprocess.Popen(
        [program, "-e", "stderr", "-p", f"{folder}/", "-c", str(config)],
        stdin=subprocess.DEVNULL,
        # Ctrl-C must not reach nginx, which would drop open requests.
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGQUIT),
    )
    _forward_signals(process, settings.edge_note)
    if _listens(process, _reachable(own.host), port):
        status.note(settings.edge_note, _reachable(own.host), port, keys_path(settings))
        print(f"the edge is open: https://{bracketed(own.host)}:{port}", flush=True)
        print("Ctrl-C closes it.", flush=True)
    code = _wait(process, files, known, settings.run_dir / "logs" / "edge.log")
    # The workers of a killed master would continue to serve.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if code < 0:
        raise StartError(f"nginx was killed (signal {-code}). Out of memory? See `dmesg`.")
    if code:
        raise StartError(f"nginx exited with code {code}; see its message above.")
    settings.edge_note.unlink(missing_ok=True)
    print("the edge is closed", flush=True)


def _forward_signals(process: subprocess.Popen[bytes], note: Path) -> None:
    """Make TERM and INT close nginx, HUP reload it and USR1 reopen its log."""

    def close(*_: object) -> None:
        # Without the note, a stopped edge raises no alert.
        note.unlink(missing_ok=True)
        process.send_signal(signal.SIGQUIT)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, close)
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _: process.send_signal(number))


def _wait(
    process: subprocess.Popen[bytes], files: Sequence[Path], known: bytes, written: Path
) -> int:
    """Wait for nginx to exit, and return its code.

    Meanwhile reload it whenever the files change, and rotate its log.
    """
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(CHECK_INTERVAL)
        if log.rotate(written):
            process.send_signal(signal.SIGUSR1)
        # A file may be missing while it is replaced; nginx keeps its certificate.
        with contextlib.suppress(OSError):
            now = _contents(files)
            if now != known:
                print("the certificate changed: reloading", flush=True)
                process.send_signal(signal.SIGHUP)
            known = now


def _contents(files: Sequence[Path]) -> bytes:
    return b"".join(path.read_bytes() for path in files)


def _listens(process: subprocess.Popen[bytes], host: str, port: int) -> bool:
    """Wait until nginx listens; return whether it does."""
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return process.poll() is None
        except OSError:
            time.sleep(0.02)
    return False


def _reachable(host: str) -> str:
    """Return the address at which this machine reaches what listens on a host."""
    plain = host.strip("[]")
    return {"0.0.0.0": HOST, "::": "::1"}.get(plain, plain)


def _nginx() -> str:
    """Return the path of nginx, which may not be on a user's PATH; raise StartError."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise StartError(f"nginx was not found: {configuration.INSTALL}.")
    return program

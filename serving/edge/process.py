"""Run the edge: start nginx and restart it, reload its certificate, rotate its log, stop it.

It runs as the same user as the service, and starts and stops independently of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from serving.edge import certificates, configuration, log, nginx, status
from serving.edge.configuration import bracketed
from serving.edge.nginx import Nginx
from serving.edge.settings import EdgeSettings, keys_path
from serving.files import Locked, lock
from serving.restarts import Exits, say
from serving.settings import HOST, Settings
from serving.torchserve import StartError
from serving.torchserve.ports import why_closed

START_TIMEOUT = 60.0
# Seconds between checks of the certificate and of the log.
CHECK_INTERVAL = 1.0


def run(settings: Settings) -> None:
    """Serve until a signal stops it, then finish open requests; raise StartError, SettingsError."""
    os.umask(0o077)
    own = EdgeSettings.from_environment()
    program, folder = nginx.find(), settings.run_dir / "edge"
    try:
        for each in (folder / "tmp", settings.run_dir / "logs"):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock(folder / "lock", "An edge already runs"):
            _serve(settings, own, program, folder)
    except Locked as error:
        raise StartError(f"{error} in {settings.run_dir}: set another RUN_DIR.") from error
    except OSError as error:
        raise StartError(f"{error.filename or settings.run_dir}: {error.strerror}.") from error


def _serve(settings: Settings, own: EdgeSettings, program: str, folder: Path) -> None:
    port = settings.edge_port
    if why := why_closed(own.host, port):
        raise StartError(
            f"The edge cannot listen on {own.host}, port {port} ({why}): stop the other program, "
            "or set EDGE_PORT or EDGE_HOST to another."
        )
    files = certificates.provide(own, folder)
    server = Nginx(program, configuration.write(settings, own, *files, folder))
    _forward_signals(server, settings.edge_note)
    try:
        _run(server, settings, own, files)
    finally:
        server.end_workers(signal.SIGKILL)
    settings.edge_note.unlink(missing_ok=True)
    say("the edge is closed")


def _run(server: Nginx, settings: Settings, own: EdgeSettings, files: Sequence[Path]) -> None:
    """Run nginx until it is closed; raise StartError if it does not start or exits too often."""
    host, port = _reachable(own.host), settings.edge_port
    exits = Exits()
    opened = False
    while True:
        known = _contents(files)
        server.start()
        if _listens(server, host, port) and not opened:
            opened = True
            status.note(settings.edge_note, host, port, keys_path(settings))
            say(f"the edge is open: https://{bracketed(own.host)}:{port}\nCtrl-C closes it.")
        code = _watch(server, files, known, settings.run_dir / "logs" / "edge.log")
        if code == 0 or (server.closing and code == -signal.SIGQUIT):
            return
        why = _why_exited(code)
        if server.closing or not opened:
            raise StartError(why)
        exits.add(why)
        # They answer the open requests, and no longer listen.
        server.end_workers(signal.SIGQUIT)


def _forward_signals(server: Nginx, note: Path) -> None:
    """Make TERM and INT close nginx, HUP reload it and USR1 reopen its log."""

    def close(*_: object) -> None:
        # Without the note, a stopped edge raises no alert.
        note.unlink(missing_ok=True)
        server.close()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, close)
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _: server.signal(number))


def _watch(server: Nginx, files: Sequence[Path], known: bytes | None, written: Path) -> int:
    """Wait for nginx to exit, and return its code.

    Meanwhile reload it whenever the files of its certificate change, and rotate its log.
    """
    while (code := server.exit_code(CHECK_INTERVAL)) is None:
        now = _contents(files)
        if now and known and now != known:
            say("the certificate changed: reloading")
            server.signal(signal.SIGHUP)
        known = now or known
        # What can't be renamed now may be later.
        with contextlib.suppress(OSError):
            if log.rotate(written):
                server.signal(signal.SIGUSR1)
    return code


def _why_exited(code: int) -> str:
    if code < 0:
        return f"nginx was killed (signal {-code}). Out of memory? See `dmesg`."
    return f"nginx exited with code {code}; see its message above."


def _contents(files: Sequence[Path]) -> bytes | None:
    """Return the contents of all files, or None while one is missing because it is replaced."""
    try:
        return b"".join(path.read_bytes() for path in files)
    except OSError:
        return None


def _listens(server: Nginx, host: str, port: int) -> bool:
    """Wait until nginx listens; return whether it does."""
    deadline = time.monotonic() + START_TIMEOUT
    while server.exit_code() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return server.exit_code() is None
        except OSError:
            time.sleep(0.02)
    return False


def _reachable(host: str) -> str:
    """Return the address at which this machine reaches what listens on a host."""
    plain = host.strip("[]")
    return {"0.0.0.0": HOST, "::": "::1"}.get(plain, plain)

"""Run the whole service, TorchServe and the page: `python -m serving run`, and `stop` it."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import requests

from serving.local import local_session
from serving.readiness import wait_until_ready
from serving.settings import MODEL, ROOT, Settings, SettingsError
from serving.tokens import HEADER_FILE, Tokens, keep_fresh, write_header
from serving.torchserve import (
    StartError,
    TorchServe,
    check_ports,
    die_with_parent,
    remove_leftovers,
)

PATIENCE = 30.0


class Stopped(BaseException):
    """Someone asked the service to stop; no handler of errors may swallow that."""


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("command", choices=["run", "stop"])
    command = {"run": run, "stop": stop}[parser.parse_args().command]
    try:
        command(Settings.from_environment())
    except (StartError, SettingsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(settings: Settings) -> None:
    """Start everything, serve until told to stop, and stop everything; raise StartError."""
    settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise_stopped)
    try:
        with _pid_file(settings.run_dir):
            check_ports(settings)
            _serve(settings)
    except Stopped:
        print("stopped", flush=True)


def stop(settings: Settings) -> None:
    """Stop the service that runs in the same folder, if one does; raise StartError."""
    pid = _running(settings.run_dir)
    if pid is None:
        remove_leftovers(settings.run_dir)
        print("nothing runs")
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    # The page may take its time to finish what is in flight, and TorchServe then its own.
    deadline = time.monotonic() + 2 * PATIENCE
    while _running(settings.run_dir) is not None:
        if time.monotonic() > deadline:
            raise StartError(f"Process {pid} does not stop: look at it, or `kill -9 {pid}`.")
        time.sleep(0.1)
    print("stopped")


def _serve(settings: Settings) -> None:
    started = time.monotonic()
    server = TorchServe(settings)
    page: subprocess.Popen[bytes] | None = None
    ending = threading.Event()
    tokens = Tokens(settings.run_dir)
    keeper = threading.Thread(target=keep_fresh, args=(settings, tokens, ending), daemon=True)
    try:
        print("starting TorchServe ...", flush=True)
        server.start()
        wait_until_ready(server)
        write_header(settings.run_dir, tokens)
        page = _start_page()
        _wait_for_page(page, settings)
        keeper.start()
        _greet(settings, list(server.archives), time.monotonic() - started)
        _watch(server, page)
    finally:
        print("stopping ...", flush=True)
        ending.set()
        if page:
            _stop_page(page)
        if keeper.is_alive():
            keeper.join(PATIENCE)
        server.stop()


def _start_page() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "frontend"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def _wait_for_page(page: subprocess.Popen[bytes], settings: Settings) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if page.poll() is not None:
            raise StartError(f"The page ended with exit code {page.returncode}.")
        try:
            with local_session() as session:
                session.get(f"{settings.frontend_url}/readyz", timeout=5).raise_for_status()
            return
        except requests.RequestException:
            time.sleep(0.1)
    raise StartError("The page is not ready in time.")


def _stop_page(page: subprocess.Popen[bytes]) -> None:
    page.terminate()
    try:
        page.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        page.kill()
        page.wait()


def _watch(server: TorchServe, page: subprocess.Popen[bytes]) -> None:
    """Return never; raise StartError when a part ends by itself, Stopped when told to."""
    while True:
        if server.exit_code() is not None:
            raise StartError(f"TorchServe ended by itself. See {server.log}.")
        if page.poll() is not None:
            raise StartError(f"The page ended by itself with exit code {page.returncode}.")
        time.sleep(0.5)


def _greet(settings: Settings, versions: list[str], seconds: float) -> None:
    header = Path(os.path.relpath(settings.run_dir / HEADER_FILE))
    print(
        f"""ready after {seconds:.1f} s, version {", ".join(versions)}

  page       {settings.frontend_url}
  inference  {settings.inference_url}/predictions/{MODEL}

  curl -H @{header} -H 'Content-Type: application/octet-stream' \\
       --data-binary @serving/samples/neutrophil.png \\
       {settings.inference_url}/predictions/{MODEL}

Ctrl-C stops everything.""",
        flush=True,
    )


@contextlib.contextmanager
def _pid_file(run_dir: Path) -> Iterator[None]:
    """Hold the folder's pid file; raise StartError if another service does.

    It is held by a lock, which ends with its process: a file that was left behind, and a number
    that another process has by now, mean nothing.
    """
    path = run_dir / "pid"
    with path.open("a+") as file:
        if not _lock(file):
            raise StartError(f"The service already runs ({run_dir}): stop it with `make stop`.")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            # Not removed: another may have opened it already, and wait for this lock.
            file.truncate(0)


def _running(run_dir: Path) -> int | None:
    """Return the process that holds the pid file, if one does."""
    try:
        with (run_dir / "pid").open("r+") as file:
            return None if _lock(file) else int(file.read())
    except (FileNotFoundError, ValueError):
        return None


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _raise_stopped(*_: object) -> None:
    # The first one counts: a second must not break off the cleaning up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())

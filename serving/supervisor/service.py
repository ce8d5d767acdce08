"""The whole service in one process: TorchServe and the page, started, watched and stopped.

What ends by itself is started again; what keeps ending ends the service, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

import requests

from serving import deployment
from serving.deployment import Busy, Deployment, DeploymentError, archives
from serving.deployment.archives import BadArchive
from serving.deployment.canary import Watch
from serving.deployment.history import LOCK
from serving.deployment.routing import Routing, RoutingFile
from serving.files import Locked, lock, lock_holder
from serving.http import local_session
from serving.rollout.changes import Refused, Rollout
from serving.rollout.readiness import NeverReady, WorkerLog, wait_until_ready
from serving.settings import MODEL, ROOT, Settings
from serving.supervisor import exporter
from serving.torchserve.process import (
    StartError,
    TorchServe,
    check_ports,
    die_with_parent,
    remove_leftovers,
    token_life,
)
from serving.torchserve.tokens import HEADER_FILE, Tokens, keep_fresh, write_header

PATIENCE = 30.0
# So many ends within so many seconds are no accident.
ENDS, WITHIN = 4, 120.0


class Stopped(BaseException):
    """Someone asked the service to stop; no handler of errors may swallow that."""


class Ended(Exception):
    """A part of the service ended by itself; the message says which, and how."""


def run(settings: Settings) -> None:
    """Start everything, serve until told to stop, and stop everything; raise StartError."""
    # What is written from here on is for its owner alone.
    os.umask(0o077)
    settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    close_to_others(settings.run_dir)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise_stopped)
    try:
        with _pid_file(settings.run_dir):
            check_ports(settings)
            Service(settings).run()
    except Stopped:
        print("stopped", flush=True)


def stop(settings: Settings) -> None:
    """Stop the service that runs in the same folder, if one does; raise StartError."""
    pid = running(settings.run_dir)
    if pid is None:
        remove_leftovers(settings.run_dir)
        print("nothing runs")
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    # The page may take its time to finish what is in flight, and TorchServe then its own.
    deadline = time.monotonic() + 2 * PATIENCE
    while running(settings.run_dir) is not None:
        if time.monotonic() > deadline:
            raise StartError(f"Process {pid} does not stop: look at it, or `kill -9 {pid}`.")
        time.sleep(0.1)
    print("stopped")


def running(run_dir: Path) -> int | None:
    """Return the process of the service that runs in this folder, if one does."""
    try:
        return int(lock_holder(run_dir / "pid") or "")
    except ValueError:
        return None


def close_to_others(run_dir: Path) -> None:
    """Let nobody else write where code and tokens will lie; raise StartError if we can't.

    A folder of root's, as a container is given one, is left as it is.
    """
    found = run_dir.stat()
    if found.st_uid == os.geteuid():
        run_dir.chmod(found.st_mode & ~0o022)
    elif found.st_uid != 0:
        raise StartError(f"{run_dir} belongs to another user: set RUN_DIR to a folder of your own.")


class Service:
    """TorchServe, the page, the keeper of the tokens and the watch over the canary."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.routing = RoutingFile(settings.run_dir)
        self.tokens = Tokens(settings.run_dir)
        # What it was started with last.
        self._deployment: Deployment | None = None
        self._server: TorchServe | None = None
        self._page: subprocess.Popen[bytes] | None = None
        self._restarts = Counter(torchserve=0, page=0)
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=each, args=arguments, daemon=True)
            for each, arguments in (
                (keep_fresh, (settings, self.tokens, token_life(settings.config), self._ending)),
                (watch_canary, (settings, self._ending)),
            )
        ]

    def run(self) -> None:
        """Serve until told to stop; raise StartError."""
        started = time.monotonic()
        exporter.clear(self.settings)
        try:
            with exporter.exported(self.settings, self._restarts, self._processes):
                print("starting TorchServe ...", flush=True)
                wanted = self._start_torchserve()
                self._start_page()
                _greet(self.settings, wanted, time.monotonic() - started)
                self._watch()
        except (BadArchive, DeploymentError, Ended, OSError) as error:
            raise StartError(str(error)) from error
        finally:
            self._stop()

    def _start_torchserve(self) -> Deployment:
        """Start TorchServe, and let clients in once it is ready; return what it serves.

        Raises StartError, Ended, BadArchive or DeploymentError.
        """
        with contextlib.ExitStack() as stack:
            try:
                # A change that was at work when TorchServe ended must have written its end.
                held = lock(self.settings.run_dir / LOCK, "the service starts", PATIENCE)
                stack.enter_context(held)
            except Locked as change:
                print(f"{change} does not end: starting all the same", flush=True)
            wanted = self._wanted()
            self._serve(wanted)
        return wanted

    def _wanted(self) -> Deployment:
        """Return what is to be served, its archives at hand; raise DeploymentError, BadArchive."""
        before = self._deployment
        try:
            wanted = deployment.load(self.settings.deployment)
        except DeploymentError as error:
            if before is None:
                raise
            print(f"{error} It starts as it was.", flush=True)
            wanted = before
        for version, each in wanted.versions.items():
            # What served until just now is not exchanged for a newer build.
            if before is None or not archives.deployed(self.settings, version).is_file():
                archives.provide(self.settings, version, each.sha256)
        self._deployment = wanted
        return wanted

    def _serve(self, wanted: Deployment) -> None:
        server = self._server = TorchServe(self.settings, wanted)
        log = WorkerLog(self.settings)
        server.start()
        for thread in self._threads:
            # Already now: to be ready may take longer than a token lives.
            if thread.ident is None:
                thread.start()

        def hopeless(version: str, error: Exception) -> str | None:
            if server.exit_code() is not None:
                raise Ended(f"TorchServe ended with exit code {server.exit_code()}.")
            if reason := log.failure(version):
                return f"A worker can't start: {reason}."
            return None

        workers = {name: version.workers for name, version in wanted.versions.items()}
        try:
            wait_until_ready(self.settings, workers, hopeless)
        except (NeverReady, Ended) as error:
            kind = Ended if isinstance(error, Ended) else StartError
            raise kind(f"{error} See {server.log.parent}.") from error
        write_header(self.settings.run_dir, self.tokens)
        self.routing.publish(Routing.of(wanted))

    def _start_page(self) -> None:
        """Start the page and wait for it; raise StartError or Ended."""
        page = self._page = subprocess.Popen(
            [sys.executable, "-m", "frontend"],
            cwd=ROOT,
            env=os.environ | exporter.environment(self.settings),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if page.poll() is not None:
                raise Ended(f"The page ended with exit code {page.returncode}.")
            try:
                with local_session() as session:
                    session.get(
                        f"{self.settings.frontend_url}/readyz", timeout=5
                    ).raise_for_status()
                return
            except requests.RequestException:
                time.sleep(0.1)
        raise StartError("The page is not ready in time.")

    def _watch(self) -> None:
        """Start again what ends; raise StartError when it keeps ending, Stopped when told to."""
        ends: deque[float] = deque(maxlen=ENDS)
        while True:
            time.sleep(0.2)
            ended = self._ended()
            if not ended:
                continue
            ends.append(time.monotonic())
            if len(ends) == ENDS and ends[-1] - ends[0] < WITHIN:
                raise StartError(f"{ended} That was the last of {ENDS} times.")
            print(f"{ended} Starting it again ...", flush=True)
            # If it ends while it starts, the next look finds it so.
            with contextlib.suppress(Ended):
                self._revive()
                print(f"ready again after {time.monotonic() - ends[-1]:.1f} s", flush=True)

    def _ended(self) -> str | None:
        """Return what has ended by itself, and how, or None."""
        assert self._server
        assert self._page
        if (code := self._server.exit_code()) is not None:
            return f"TorchServe ended by itself (exit code {code}, see {self._server.log.parent})."
        if (code := self._page.poll()) is not None:
            return f"The page ended by itself (exit code {code})."
        return None

    def _revive(self) -> None:
        assert self._server
        assert self._page
        if self._server.exit_code() is not None:
            self._restarts["torchserve"] += 1
            self.routing.withdraw()
            self._server.stop()
            self._start_torchserve()
        if self._page.poll() is not None:
            self._restarts["page"] += 1
            self._start_page()

    def _processes(self) -> dict[str, int]:
        """Return what runs as which process."""
        parts = {"supervisor": os.getpid()}
        if self._server and (pid := self._server.pid):
            parts["torchserve"] = pid
        if self._page:
            parts["page"] = self._page.pid
        return parts

    def _stop(self) -> None:
        print("stopping ...", flush=True)
        self._ending.set()
        if self._page:
            _stop_page(self._page)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(PATIENCE)
        if self._server:
            self._server.stop()


def watch_canary(settings: Settings, ending: threading.Event) -> None:
    """Take back a canary that breaks its bounds, until told to end."""
    watch, seen = Watch(settings.run_dir), None
    pause = 1.0
    while not ending.wait(pause):
        pause = 1.0
        try:
            wanted = deployment.load(settings.deployment)
        except DeploymentError:
            # Someone is editing it.
            continue
        canary = wanted.canary
        if canary != seen:
            watch.forget()
            seen = canary
        if canary is None:
            continue
        watch.read()
        if why := watch.verdict(canary, wanted.default):
            rollout = Rollout(settings)
            try:
                rollout.end_canary(canary.version, why)
                print(f"the canary {canary.version} goes back: {why}", flush=True)
            except (Refused, Busy) as error:
                print(f"the canary {canary.version} can't go back, trying on: {error}", flush=True)
                pause = 10.0
            finally:
                rollout.close()


def _stop_page(page: subprocess.Popen[bytes]) -> None:
    page.terminate()
    try:
        page.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        page.kill()
        page.wait()


def _greet(settings: Settings, wanted: Deployment, seconds: float) -> None:
    header = Path(os.path.relpath(settings.run_dir / HEADER_FILE))
    others = "".join(f", {name}" for name in sorted(wanted.versions.keys() - {wanted.default}))
    print(
        f"""ready after {seconds:.1f} s, version {wanted.default}{others}

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
    """Hold the folder; raise StartError if another service does."""
    try:
        with lock(run_dir / "pid", str(os.getpid())):
            yield
    except Locked as error:
        raise StartError(
            f"The service already runs ({run_dir}): stop it with `make stop`."
        ) from error


def _raise_stopped(*_: object) -> None:
    # The first one counts: a second must not break off the cleaning up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise Stopped

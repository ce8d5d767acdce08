"""Run the whole service: start TorchServe and the page, restart what exits, and stop both.

A part that keeps exiting ends the service, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from serving import deployment
from serving.deployment import Deployment, DeploymentError, archives
from serving.deployment.archives import BadArchive
from serving.deployment.history import LOCK
from serving.deployment.routing import RoutingFile
from serving.files import Locked, lock, lock_holder
from serving.restarts import Exits, say
from serving.rollout.readiness import NeverReady, WorkerLog, wait_until_ready
from serving.settings import MODEL, Settings
from serving.supervisor import Ended, exporter
from serving.supervisor.background import repeat
from serving.supervisor.canary_watch import CanaryWatch, routing_of
from serving.supervisor.page import Page
from serving.torchserve import StartError
from serving.torchserve.config import token_life
from serving.torchserve.ports import check_ports
from serving.torchserve.process import TorchServe, remove_leftovers
from serving.torchserve.tokens import (
    HEADER_FILE,
    KINDS,
    Tokens,
    correct_header,
    renew_if_due,
    write_header,
)

PATIENCE = 30.0
# Seconds between restarts that the system refuses.
PAUSE = 5.0
# Bytes that a start needs in RUN_DIR.
ROOM = 16 << 20


class Stopped(BaseException):
    """A signal requests a stop; error handlers must not catch this."""


def run(settings: Settings) -> None:
    """Start everything, serve until a signal arrives, and stop everything; raise StartError."""
    # All files written from here on are for their owner only.
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
        say("stopped")


def stop(settings: Settings) -> None:
    """Stop the service that runs in this folder, if there is one; raise StartError."""
    pid = running(settings.run_dir)
    if pid is None:
        remove_leftovers(settings.run_dir)
        print("not running")
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    # First the page, then TorchServe may take time to finish the requests in flight.
    deadline = time.monotonic() + 2 * PATIENCE
    while running(settings.run_dir) is not None:
        if time.monotonic() > deadline:
            raise StartError(f"Process {pid} does not stop: inspect it, or `kill -9 {pid}`.")
        time.sleep(0.1)
    print("stopped")


def running(run_dir: Path) -> int | None:
    """Return the process id of the service that runs in this folder, or None."""
    try:
        return int(lock_holder(run_dir / "pid") or "")
    except ValueError:
        return None


def close_to_others(run_dir: Path) -> None:
    """Let no other user write where code and tokens will be; raise StartError if that fails.

    A folder that belongs to root, as in a container, is left as it is.
    """
    found = run_dir.stat()
    if found.st_uid == os.geteuid():
        run_dir.chmod(found.st_mode & ~0o022)
    elif found.st_uid != 0:
        raise StartError(f"{run_dir} belongs to another user: set RUN_DIR to a folder of your own.")


class Service:
    """TorchServe, the page, the metrics exporter and the background work."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.routing = RoutingFile(settings.run_dir)
        self.tokens = Tokens(settings.run_dir)
        # The deployment of the last start.
        self._deployment: Deployment | None = None
        self._server: TorchServe | None = None
        self._page: Page | None = None
        self._restarts = Counter(torchserve=0, page=0)
        self._ending = threading.Event()
        life = token_life(settings.config)
        renewals = {
            f"renewing the {kind} token": partial(renew_if_due, settings, self.tokens, kind, life)
            for kind in KINDS
        }
        header = {"writing the token": partial(correct_header, settings.run_dir, self.tokens)}
        watch = {"watching the canary": CanaryWatch(settings).check}
        self._threads = [
            threading.Thread(target=repeat, args=(steps, seconds, self._ending), daemon=True)
            # Often: tokens also expire while the machine is suspended, when our clock stops.
            for steps, seconds in ((renewals | header, min(1.0, life / 20)), (watch, 1.0))
        ]

    def run(self) -> None:
        """Serve until a signal arrives; raise StartError."""
        started = time.monotonic()
        exporter.clear(self.settings)
        try:
            with exporter.exported(self.settings, self._restarts, self._processes):
                say("starting TorchServe ...")
                wanted = self._start_torchserve()
                self._start_page()
                _greet(self.settings, wanted, time.monotonic() - started)
                self._watch()
        except (BadArchive, DeploymentError, Ended, OSError) as error:
            raise StartError(str(error)) from error
        finally:
            self._stop()

    def _start_torchserve(self) -> Deployment:
        """Start TorchServe, admit clients once it is ready, and return what it serves.

        Raises StartError, Ended, BadArchive or DeploymentError.
        """
        with contextlib.ExitStack() as stack:
            try:
                # A change that was in progress when TorchServe exited must finish first.
                held = lock(self.settings.run_dir / LOCK, "the service starts", PATIENCE)
                stack.enter_context(held)
            except Locked as change:
                say(f"{change} does not finish: starting without waiting for it")
            wanted = self._wanted()
            self._serve(wanted)
        return wanted

    def _wanted(self) -> Deployment:
        """Return what to serve, with its archives in place; raise DeploymentError, BadArchive."""
        before = self._deployment
        try:
            wanted = deployment.load(self.settings.deployment)
            for version, each in wanted.versions.items():
                archive = archives.deployed(self.settings, version)
                # A restart must not replace an archive with a newer build.
                if before is None or not archive.is_file():
                    archives.provide(self.settings, version, each.sha256)
                elif each.sha256:
                    archives.check(archive, version, each.sha256)
        except (BadArchive, DeploymentError) as error:
            if before is None:
                raise
            say(f"{error} Restarting with the previous deployment.")
            wanted = before
        self._deployment = wanted
        return wanted

    def _serve(self, wanted: Deployment) -> None:
        server = self._server = TorchServe(
            self.settings, wanted, exporter.environment(self.settings)
        )
        log = WorkerLog(self.settings)
        server.start()
        for thread in self._threads:
            # Before the service is ready, because a token may expire meanwhile.
            if thread.ident is None:
                thread.start()

        def hopeless(version: str, error: Exception) -> str | None:
            if server.exit_code() is not None:
                raise Ended(f"TorchServe exited with code {server.exit_code()}.")
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
        self.routing.publish(routing_of(self.settings, wanted))

    def _start_page(self) -> None:
        """Start the page and wait for it; raise StartError or Ended."""
        self._page = Page(self.settings, exporter.environment(self.settings))
        self._page.wait_until_ready()

    def _watch(self) -> None:
        """Restart what exits; raise StartError if that happens too often, Stopped on a signal."""
        exits = Exits()
        while True:
            time.sleep(0.2)
            exited = self._exited()
            if not exited:
                continue
            exits.add(exited)
            started = time.monotonic()
            try:
                self._restart()
                say(f"ready again after {time.monotonic() - started:.1f} s")
            except Ended:
                # It exited during its start: the next iteration handles that.
                pass
            except OSError as error:
                # For example, the disk is full. This does not count as an exit.
                exits.forget_last()
                say(f"the restart failed, trying again: {error}")
                time.sleep(PAUSE)

    def _wait_for_room(self) -> None:
        """Wait while the disk of RUN_DIR is full, because no start can succeed."""
        folder = self.settings.run_dir
        if shutil.disk_usage(folder).free >= ROOM:
            return
        say(f"The disk of {folder} is full: waiting until {ROOM >> 20} MiB are free ...")
        while shutil.disk_usage(folder).free < ROOM:
            time.sleep(1)

    def _exited(self) -> str | None:
        """Return which part has exited by itself, and with which code, or None."""
        assert self._server
        assert self._page
        if self._server.pid is None:
            return "TorchServe did not start."
        if (code := self._server.exit_code()) is not None:
            return f"TorchServe exited with code {code} (see {self._server.log.parent})."
        if (code := self._page.exit_code()) is not None:
            return f"The page exited with code {code}."
        return None

    def _restart(self) -> None:
        assert self._server
        assert self._page
        if self._server.pid is None or self._server.exit_code() is not None:
            self._restarts["torchserve"] += 1
            self.routing.withdraw()
            self._server.stop()
            self._wait_for_room()
            try:
                self._start_torchserve()
            except OSError:
                # Java may run, but without a routing or a token.
                self._server.stop()
                raise
        if self._page.exit_code() is not None:
            self._restarts["page"] += 1
            self._start_page()

    def _processes(self) -> dict[str, int]:
        """Return the process id of each part that runs."""
        parts = {"supervisor": os.getpid()}
        if self._server and (pid := self._server.pid):
            parts["torchserve"] = pid
        if self._page:
            parts["page"] = self._page.pid
        return parts

    def _stop(self) -> None:
        say("stopping ...")
        self._ending.set()
        if self._page:
            self._page.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(PATIENCE)
        if self._server:
            self._server.stop()


def _greet(settings: Settings, wanted: Deployment, seconds: float) -> None:
    header = Path(os.path.relpath(settings.run_dir / HEADER_FILE))
    others = "".join(f", {name}" for name in sorted(wanted.versions.keys() - {wanted.default}))
    say(
        f"""ready after {seconds:.1f} s, version {wanted.default}{others}

  page       {settings.frontend_url}
  inference  {settings.inference_url}/predictions/{MODEL}

  curl -H @{header} -H 'Content-Type: application/octet-stream' \\
       --data-binary @serving/samples/neutrophil.png \\
       {settings.inference_url}/predictions/{MODEL}

Ctrl-C stops everything."""
    )


@contextlib.contextmanager
def _pid_file(run_dir: Path) -> Iterator[None]:
    """Lock the folder; raise StartError if another service runs in it."""
    try:
        with lock(run_dir / "pid", str(os.getpid())):
            yield
    except Locked as error:
        raise StartError(
            f"The service already runs ({run_dir}): stop it with `make stop`."
        ) from error


def _raise_stopped(*_: object) -> None:
    # A second signal must not interrupt the clean-up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise Stopped

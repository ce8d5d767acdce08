"""Stand-ins for TorchServe: over HTTP, or in place of the management client."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving import deployment
from serving.client import NotServed, ServiceError
from serving.deployment import Deployment, VersionSpec, archives
from serving.deployment.routing import Routing, RoutingFile
from serving.rollout import changes as rollout
from serving.rollout.readiness import NeverReady
from serving.settings import MODEL, Settings
from serving.torchserve import tokens

ROUTING = Routing("1.0", ("1.0", "3.0"))
EXPIRY = "2030-01-02T03:04:05.123456789Z"

# Status, body and perhaps headers.
Answer = Callable[[BaseHTTPRequestHandler, bytes], tuple[Any, ...]]


def write_keys(run_dir: Path, inference: str = "first") -> None:
    keys = {
        "management": {"key": "manager", "expiration time": EXPIRY},
        "inference": {"key": inference, "expiration time": EXPIRY},
        "API": {"key": "api"},
    }
    (run_dir / tokens.KEY_FILE).write_text(json.dumps(keys))


def problem(status: int, kind: str, message: str = "why") -> tuple[int, bytes]:
    """Return an error as TorchServe answers it."""
    return status, json.dumps({"code": status, "type": kind, "message": message}).encode()


class StandIn:
    """A TorchServe that answers as a test configures, with a routing that makes it ready."""

    def __init__(self, run_dir: Path, port: int = 0) -> None:
        self.answer: Answer = lambda request, body: (200, b"{}")
        self.requests: list[tuple[str, str]] = []
        self.routing = RoutingFile(run_dir)
        self._run_dir = run_dir
        self.reset()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stand_in.requests.append((self.path, self.headers["Authorization"]))
                status, content, *headers = stand_in.answer(self, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        # A test may cut a connection.
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        port = self.server.server_port
        self.settings = Settings(inference_port=port, management_port=port, run_dir=run_dir)

    def reset(self) -> None:
        """Reset it for the next test."""
        self.answer = lambda request, body: (200, b"{}")
        self.requests.clear()
        self.routing.publish(ROUTING)
        self.renew_token("first")

    def renew_token(self, token: str) -> None:
        write_keys(self._run_dir, token)
        tokens.write_header(self._run_dir, tokens.Tokens(self._run_dir))

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def asked(self) -> list[str]:
        """Return the version that each request named, in their order."""
        return [path.rpartition("/")[2] for path, _ in self.requests]

    def refuse(self, status: int, kind: str, message: str = "why") -> None:
        self.answer = lambda request, body: problem(status, kind, message)


class Management:
    """A management client whose TorchServe consists of a few dictionaries."""

    def __init__(self, default: str, workers: dict[str, int]) -> None:
        self.workers = dict(workers)
        self._default = default
        self.queued: dict[str, int] = {}
        # The changes so far, in order; and the names of changes that must fail.
        self.done: list[tuple[Any, ...]] = []
        self.failing: set[str] = set()
        # Called before each change, with its entry in `done`.
        self.look: Callable[[tuple[Any, ...]], None] = lambda change: None

    def versions(self) -> dict[str, dict[str, Any]]:
        return {version: self.describe(version) for version in self.workers}

    def describe(self, version: str) -> dict[str, Any]:
        if version not in self.workers:
            raise NotServed(version)
        return {
            "minWorkers": self.workers[version],
            # No process has this number, so none appears busy.
            "workers": [{"status": "READY", "pid": -1}] * self.workers[version],
            "jobQueueStatus": {"pendingRequests": self.queued.get(version, 0)},
        }

    def default(self) -> str | None:
        return self._default

    def register(self, version: str, workers: int) -> None:
        self._change("register", version, workers)
        self.workers[version] = workers

    def scale(self, version: str, workers: int) -> None:
        self._change("scale", version, workers)
        self.workers[version] = workers

    def set_default(self, version: str) -> None:
        self._change("set_default", version)
        if version not in self.workers:
            raise NotServed(version)
        self._default = version

    def unregister(self, version: str) -> None:
        self._change("unregister", version)
        if version == self._default:
            raise ServiceError(502, "ServiceError", "the default can't be removed")
        if self.workers.pop(version, None) is None:
            raise NotServed(version)

    def close(self) -> None:
        pass

    def _change(self, *change: Any) -> None:
        self.look(change)
        if change[0] in self.failing:
            raise ServiceError(502, "ServiceError", f"{change[0]} fails")
        self.done.append(change)


def write_archive(path: Path, version: str, name: str = MODEL, note: str = "") -> str:
    """Write a small archive and its SHA-256 file; return the SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        manifest = {"model": {"modelName": name, "modelVersion": version}}
        # Fixed times, so that equal contents are equal bytes.
        for entry, content in (
            ("MAR-INF/MANIFEST.json", manifest),
            ("card.json", {"version": version, "note": note}),
        ):
            file.writestr(zipfile.ZipInfo(entry), json.dumps(content))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{found}  {path.name}\n")
    return found


class World:
    """A service of versions 1.0 and 3.0, with an archive of 4.0 to deploy; but no TorchServe."""

    WANTED = Deployment("1.0", {"1.0": VersionSpec(1), "3.0": VersionSpec(2)})

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = Settings(
            run_dir=folder / "run",
            model_store=folder / "store",
            deployment=folder / "deployment.yaml",
        )
        self.settings.run_dir.mkdir()
        deployment.save(self.WANTED, self.settings.deployment)
        for version in ("1.0", "3.0", "4.0"):
            write_archive(archives.built(self.settings, version), version)
        for version in self.WANTED.versions:
            archives.provide(self.settings, version, None)
        self.routing = RoutingFile(self.settings.run_dir)
        self.routing.publish(Routing.of(self.WANTED))
        self.management = Management("1.0", {"1.0": 1, "3.0": 2})
        # The error that waiting for readiness raises, if any.
        self.never: BaseException | None = None
        monkeypatch.setattr(rollout, "ManagementClient", lambda settings: self.management)
        monkeypatch.setattr(rollout, "wait_until_ready", self._wait)
        monkeypatch.setattr(rollout, "DRAIN_PATIENCE", 0)
        monkeypatch.setattr(rollout, "PAUSED_PATIENCE", 0)
        self.rollout = rollout.Rollout(self.settings)

    def _wait(self, settings: Settings, workers: dict[str, int], *_: Any, **__: Any) -> None:
        for version, count in workers.items():
            self.management.look(("ready", version, count))
            if self.never:
                raise self.never
            # The real one would wait for workers and read the archive's answers.
            if self.management.workers.get(version) != count:
                raise NeverReady(f"version {version} has not {count} workers")
            archives.check(archives.deployed(settings, version), version)
            self.management.done.append(("ready", version, count))

    @property
    def desired(self) -> Deployment:
        return deployment.load(self.settings.deployment)

    @property
    def state(self) -> tuple[Any, ...]:
        """Return the state that a failed change must not alter."""
        return (
            self.settings.deployment.read_text(),
            dict(self.management.workers),
            self.management.default(),
            self.routing.read(),
            sorted((path.name, archives.digest(path)) for path in self.settings.archives.iterdir()),
        )

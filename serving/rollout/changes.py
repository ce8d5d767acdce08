"""Changes to the deployed versions. A change that fails leaves the service as it was.

No version gets requests before its answers are correct, and no worker stops before it is at rest.
Each change holds the lock of changes, writes deployment.yaml when it is done, and adds an entry to
the history.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving import deployment, files
from serving.client import ManagementClient, NotServed, ServiceError
from serving.deployment import Canary, Deployment, DeploymentError, History, VersionSpec, archives
from serving.deployment.archives import BadArchive
from serving.deployment.routing import Routing, RoutingFile
from serving.rollout import state
from serving.rollout.readiness import NeverReady, Report, WorkerLog, wait_until_ready
from serving.rollout.rest import NotAtRest, wait_until_at_rest
from serving.settings import Settings

# Seconds that a version may take to come to rest: without new requests, and paused, when its
# clients wait.
DRAIN_PATIENCE = 30.0
PAUSED_PATIENCE = 5.0


class Refused(Exception):
    """A change was not made, and the service is as it was; the message explains why."""


class NotRunning(Refused):
    """There is no service to change."""


class Rollout:
    """The changes to one running service."""

    def __init__(self, settings: Settings, report: Report = lambda message: None) -> None:
        self.settings = settings
        self.report = report
        self.routing = RoutingFile(settings.run_dir)
        self.management = ManagementClient(settings)

    def close(self) -> None:
        """Close the pooled connections."""
        self.management.close()

    def status(self) -> dict[str, Any]:
        """Return the state of the service; raise ServiceError or DeploymentError."""
        return state.status(self.settings, self.management, self.routing.read())

    def differences(self, desired: Deployment) -> list[str]:
        """Return how the service differs from the desired state; raise ServiceError."""
        return state.differences(desired, self.management, self.routing.read())

    def deploy(
        self, version: str, workers: int, archive: Path | None = None, sha256: str | None = None
    ) -> None:
        """Serve a version beside the others once its answers are correct; raise Refused."""
        with self._change("deploy", version) as (desired, entry):
            if version in desired.versions:
                raise Refused(f"Version {version} serves already: a new build is a new version.")
            # Validate before any change.
            desired.with_version(version, VersionSpec(workers))
            # A rollback may need the present archive.
            with files.restored_on_failure(archives.deployed(self.settings, version)):
                sha256 = entry["sha256"] = self._install(version, archive, sha256)
                with self._started(version, workers):
                    self._save(desired.with_version(version, VersionSpec(workers, sha256)))

    def promote(self, version: str) -> None:
        """Make a version the default; raise Refused."""
        with self._change("promote", version) as (desired, entry):
            self._require(version, desired)
            entry["sha256"] = self._digest(version)
            self._promote(version, desired)

    def canary(self, canary: Canary) -> None:
        """Route a share of the clients to a version; raise Refused."""
        with self._change("canary", canary.version) as (desired, entry):
            self._require(canary.version, desired)
            self._refuse_other_canary(canary.version, desired)
            entry["sha256"] = self._digest(canary.version)
            entry["percent"] = canary.percent
            self._check_ready(canary.version, desired)
            self._save(replace(desired, canary=canary))

    def end_canary(self, version: str, why: str) -> None:
        """Route all clients to the default version again; raise Refused."""
        with self._change("end canary", version) as (desired, entry):
            # It may have been promoted or ended a moment ago.
            if desired.canary is None or desired.canary.version != version:
                raise Refused(f"Version {version} is not the canary.")
            entry["why"] = why
            self._save(replace(desired, canary=None))

    def rollback(self) -> str:
        """End the canary or undo the last promotion; return the default version; raise Refused.

        A version that was retired since is deployed again.
        """
        with self._change("rollback", in_sync=False) as (desired, entry):
            # A canary that was stopped is ended here.
            stopped = state.stopped_canary(desired, self.routing.read())
            self._require_in_sync(desired, except_for=stopped)
            if desired.canary:
                entry["action"], entry["version"] = "end canary", desired.canary.version
                self._save(replace(desired, canary=None))
                return desired.default
            history = History(self.settings.deployment)
            defaults = history.defaults(desired.default)
            if len(defaults) < 2:
                raise Refused("There is no promotion to undo: see `history`.")
            version = entry["version"] = defaults[-2]
            if version in desired.versions:
                self._promote(version, desired)
            else:
                self._redeploy(version, history.last_seen(version) or VersionSpec(1), desired)
            entry["sha256"] = self._digest(version)
            return version

    def scale(self, version: str, workers: int, force: bool = False) -> None:
        """Set the number of workers of a version; raise Refused.

        Surplus workers stop when the version is at rest; with `force`, even during a request.
        """
        with self._change("scale", version) as (desired, entry):
            self._require(version, desired)
            entry["workers"] = workers
            with self._scaled(version, workers, desired, force) as after:
                self._save(after)

    def retire(self, version: str, force: bool = False) -> None:
        """Remove a version once it is at rest; raise Refused."""
        with self._change("retire", version) as (desired, entry):
            self._require(version, desired)
            if version == desired.default:
                raise Refused(f"Version {version} is the default: promote another one first.")
            if desired.canary and version == desired.canary.version:
                raise Refused(f"Version {version} is the canary: `rollback` ends it.")
            entry["sha256"] = self._digest(version)
            self._retire(version, desired.without_version(version), desired, force)

    def apply(self, force: bool = False) -> list[str]:
        """Bring the service to the desired state; return what was done; raise Refused."""
        with self._change("apply", in_sync=False) as (desired, _entry):
            done = []
            actual = state.registered(self.management)
            for name in actual.keys() & desired.versions.keys():
                # The archive of a version is never replaced.
                if sha256 := desired.versions[name].sha256:
                    archives.check(archives.deployed(self.settings, name), name, sha256)
            for name, version in desired.versions.items():
                if name not in actual:
                    archives.provide(self.settings, name, version.sha256)
                    with self._started(name, version.workers):
                        done.append(f"deployed {name}")
                elif actual[name] != version.workers:
                    before = desired.with_version(name, replace(version, workers=actual[name]))
                    with self._scaled(name, version.workers, before, force):
                        done.append(f"scaled {name} to {version.workers}")
                else:
                    self._check_ready(name, desired)
            if self.management.default() != desired.default:
                self.management.set_default(desired.default)
                done.append(f"promoted {desired.default}")
            if self.routing.read() != Routing.of(desired):
                self._save(desired)
                done.append("routed")
            for name in sorted(actual.keys() - desired.versions.keys()):
                self._retire(name, desired, desired, force)
                done.append(f"retired {name}")
            return done

    @contextlib.contextmanager
    def _change(
        self, action: str, version: str | None = None, in_sync: bool = True
    ) -> Iterator[tuple[Deployment, dict[str, Any]]]:
        """Hold the lock; yield the desired state and the entry of the history; raise Refused."""
        if self.routing.read() is None:
            raise NotRunning("The service is not running or not ready yet: see `make run`.")
        try:
            with deployment.change(self.settings, action, version) as entry:
                desired = deployment.load(self.settings.deployment)
                if in_sync:
                    self._require_in_sync(desired)
                yield desired, entry
        except (ServiceError, NeverReady, BadArchive, DeploymentError, OSError) as error:
            raise Refused(str(error)) from error

    def _require_in_sync(self, desired: Deployment, except_for: str | None = None) -> None:
        differences = [each for each in self.differences(desired) if each != except_for]
        if differences:
            raise Refused(
                f"{self.settings.deployment.name} and the service differ "
                f"({'; '.join(differences)}): run `apply` first, or restore the file."
            )

    def _require(self, version: str, desired: Deployment) -> None:
        if version not in desired.versions:
            raise Refused(f"Version {version} does not serve: `deploy {version}` first.")

    def _refuse_other_canary(self, version: str, desired: Deployment) -> None:
        if desired.canary and desired.canary.version != version:
            raise Refused(
                f"Version {desired.canary.version} is the canary: promote it, or end it with "
                "`rollback`."
            )

    def _digest(self, version: str) -> str:
        return archives.digest(archives.deployed(self.settings, version))

    def _install(self, version: str, archive: Path | None, sha256: str | None) -> str:
        """Install an archive whose SHA-256 is known; raise BadArchive."""
        source = archive or archives.built(self.settings, version)
        expected = sha256 or archives.noted_digest(source)
        if source.is_file() and not expected:
            raise BadArchive(
                f"The SHA-256 of {source} is unknown: give --sha256, or put {source.name}.sha256 "
                "beside it."
            )
        self.report(f"checking {source.name}")
        return archives.install(self.settings, source, version, expected)

    @contextlib.contextmanager
    def _started(self, version: str, workers: int) -> Iterator[None]:
        """Start a version and check its answers; remove it if that or the block fails."""
        log = WorkerLog(self.settings)
        try:
            self.management.register(version, workers)
            self._wait(version, workers, log)
            yield
        except BaseException:
            self._unregister(version)
            raise

    def _wait(self, version: str, workers: int, log: WorkerLog) -> None:
        def hopeless(version: str, error: Exception) -> str | None:
            if self.routing.read() is None:
                return "The service stopped meanwhile."
            if isinstance(error, NotServed):
                return f"TorchServe has lost version {version}."
            if reason := log.failure(version):
                return f"A worker of version {version} can't start: {reason}."
            return None

        wait_until_ready(self.settings, {version: workers}, hopeless, report=self.report)

    def _check_ready(self, version: str, desired: Deployment) -> None:
        self._wait(version, desired.versions[version].workers, WorkerLog(self.settings))

    def _unregister(self, version: str) -> None:
        """Unregister a version in any state. If that fails, `status` shows it."""
        deadline = time.monotonic() + DRAIN_PATIENCE
        while True:
            with contextlib.suppress(ServiceError):
                if version not in self.management.versions():
                    return
                self.management.unregister(version)
            # A service that restarts does not load the version.
            if self.routing.read() is None or time.monotonic() >= deadline:
                return
            time.sleep(0.1)

    def _promote(self, version: str, desired: Deployment) -> None:
        if version == desired.default:
            raise Refused(f"Version {version} is the default already.")
        self._refuse_other_canary(version, desired)
        self._check_ready(version, desired)
        self.management.set_default(version)
        try:
            self._save(replace(desired, default=version, canary=None))
        except BaseException:
            self.management.set_default(desired.default)
            raise

    def _redeploy(self, version: str, spec: VersionSpec, desired: Deployment) -> None:
        """Deploy a retired version again and promote it."""
        present = archives.deployed(self.settings, version)
        sha256 = spec.sha256 or (archives.digest(present) if present.is_file() else None)
        sha256 = archives.provide(self.settings, version, sha256)
        with self._started(version, spec.workers):
            self._promote(version, desired.with_version(version, replace(spec, sha256=sha256)))

    @contextlib.contextmanager
    def _scaled(
        self, version: str, workers: int, desired: Deployment, force: bool
    ) -> Iterator[Deployment]:
        """Scale a version; scale it back if the block fails."""
        before = desired.versions[version]
        after = desired.with_version(version, replace(before, workers=workers))
        log = WorkerLog(self.settings)
        try:
            self._set_workers(version, workers, before.workers, force)
            self._wait(version, workers, log)
            yield after
        except BaseException:
            # The first error counts. `status` shows what could not be undone.
            with contextlib.suppress(ServiceError):
                if state.registered(self.management).get(version) == workers:
                    self._set_workers(version, before.workers, workers, force=True)
            raise

    def _set_workers(self, version: str, workers: int, before: int, force: bool) -> None:
        if workers >= before:
            self.management.scale(version, workers)
            return
        with self.routing.pause(version):
            self._drain(version, PAUSED_PATIENCE, force)
            self.management.scale(version, workers)

    def _retire(self, version: str, after: Deployment, before: Deployment, force: bool) -> None:
        self._route(after)
        try:
            # Not restored after this wait, during which a user may edit the file.
            self._drain(version, DRAIN_PATIENCE, force)
            with files.restored_on_failure(self.settings.deployment):
                self._save(after)
                # Last, because it can't be undone.
                self.management.unregister(version)
        except BaseException:
            self._route(before)
            raise

    def _drain(self, version: str, patience: float, force: bool) -> None:
        """Wait until a version is at rest; raise Refused."""
        self.report(f"waiting until version {version} is at rest")
        try:
            wait_until_at_rest(self.settings, self.management, version, patience)
        except NotAtRest as error:
            if not force:
                raise Refused(
                    f"Version {version} is not at rest: {error}. Try again, stop clients that "
                    "ignore the routing, or use --force, which interrupts requests in flight."
                ) from error

    def _save(self, desired: Deployment) -> None:
        """Write the desired state, and route the clients by it."""
        with files.restored_on_failure(self.settings.deployment):
            deployment.save(desired, self.settings.deployment)
            self._route(desired)

    def _route(self, desired: Deployment) -> None:
        # Without a routing, the service is starting and will publish it.
        if self.routing.read():
            self.routing.publish(Routing.of(desired))

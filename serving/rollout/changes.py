"""Changes to what is served, each of them safe: nothing is switched to what was not seen to answer
rightly, and nothing is taken away that still works.

A change that fails leaves the service as it was. Each one holds the lock of changes, is written to
deployment.yaml when it is done, and leaves an entry in the history.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from serving import deployment
from serving.client import ManagementClient, NotServed, ServiceError
from serving.deployment import (
    Canary,
    Deployment,
    DeploymentError,
    History,
    VersionSpec,
    archives,
    change,
    spec,
)
from serving.deployment.archives import BadArchive
from serving.deployment.routing import Routing, RoutingFile
from serving.rollout.readiness import NeverReady, Say, WorkerLog, wait_until_ready
from serving.settings import Settings

# Seconds until a version that gets nothing new must be at rest, and for how long it must be.
DRAIN_PATIENCE = 30.0
# A held version's clients wait meanwhile.
PAUSED_PATIENCE = 5.0
REST = 0.3


class Refused(Exception):
    """A change was not made, and the service is as it was; the message says why."""


class NotRunning(Refused):
    """There is no service to change."""


class Rollout:
    """The changes to one running service."""

    def __init__(self, settings: Settings, say: Say = lambda message: None) -> None:
        self.settings = settings
        self.say = say
        self.routing = RoutingFile(settings.run_dir)
        self.management = ManagementClient(settings)

    def close(self) -> None:
        """Close the connections that are kept open."""
        self.management.close()

    # --- The changes

    def deploy(
        self,
        version: str,
        workers: int,
        archive: Path | None = None,
        sha256: str | None = None,
    ) -> None:
        """Let a version serve beside the others, once it was seen to answer rightly.

        Raises Refused, and then nothing of it is left.
        """
        with self._change("deploy", version) as (wanted, entry):
            if version in wanted.versions:
                raise Refused(f"Version {version} serves already: a new build is a new version.")
            # Checked before anything is done.
            wanted.with_version(version, VersionSpec(workers))
            # A rollback may want the one that lies there.
            former = archives.Former(self.settings, version)
            entry["sha256"] = self._take(version, archive, sha256)
            try:
                self._start(version, workers)
                self._keep(wanted.with_version(version, VersionSpec(workers, entry["sha256"])))
            except BaseException:
                self._drop(version)
                former.put_back()
                raise

    def promote(self, version: str) -> None:
        """Let a version answer by default; raise Refused."""
        with self._change("promote", version) as (wanted, entry):
            self._require(version, wanted)
            entry["sha256"] = self._digest(version)
            self._promote(version, wanted)

    def canary(self, canary: Canary) -> None:
        """Let a version answer a share of the clients, on trial; raise Refused."""
        with self._change("canary", canary.version) as (wanted, entry):
            self._require(canary.version, wanted)
            self._refuse_other_canary(canary.version, wanted)
            entry["sha256"] = self._digest(canary.version)
            entry["percent"] = canary.percent
            self._check_ready(canary.version, wanted)
            self._keep(replace(wanted, canary=canary))

    def end_canary(self, version: str, why: str) -> None:
        """Let the default version answer all clients again; raise Refused."""
        with self._change("end canary", version) as (wanted, entry):
            # It may have been promoted, or ended, a moment ago.
            if wanted.canary is None or wanted.canary.version != version:
                raise Refused(f"Version {version} is no canary.")
            entry["why"] = why
            self._keep(replace(wanted, canary=None))

    def rollback(self) -> str:
        """End the canary, or undo the last promotion; return the version that answers then.

        Raises Refused. A version that was retired since is deployed again.
        """
        with self._change("rollback") as (wanted, entry):
            if wanted.canary:
                entry["action"], entry["version"] = "end canary", wanted.canary.version
                self._keep(replace(wanted, canary=None))
                return wanted.default
            history = History(self.settings.deployment)
            defaults = history.defaults(wanted.default)
            if len(defaults) < 2:
                raise Refused("There is no promotion to undo: see `history`.")
            version = entry["version"] = defaults[-2]
            if version in wanted.versions:
                self._promote(version, wanted)
            else:
                self._bring_back(version, history.last_seen(version) or VersionSpec(1), wanted)
            entry["sha256"] = self._digest(version)
            return version

    def scale(self, version: str, workers: int, force: bool = False) -> None:
        """Give a version so many workers; raise Refused.

        Its surplus workers end at rest, while its clients wait; with `force`, also amid their work.
        """
        with self._change("scale", version) as (wanted, entry):
            self._require(version, wanted)
            entry["workers"] = workers
            with self._scaled(version, workers, wanted, force) as after:
                self._keep(after)

    def retire(self, version: str, force: bool = False) -> None:
        """Take a version out of service once it is at rest; raise Refused."""
        with self._change("retire", version) as (wanted, entry):
            self._require(version, wanted)
            if version == wanted.default:
                raise Refused(f"Version {version} answers by default: promote another one first.")
            if wanted.canary and version == wanted.canary.version:
                raise Refused(f"Version {version} is the canary: `rollback` ends that.")
            entry["sha256"] = self._digest(version)
            self._retire(version, wanted.without_version(version), wanted, force)

    def apply(self, force: bool = False) -> list[str]:
        """Bring the service to deployment.yaml; return what was done, raise Refused."""
        with self._change("apply", agreed=False) as (wanted, _entry):
            done = []
            registered = self._registered()
            for name in registered.keys() & wanted.versions.keys():
                # Never exchanged under a version that serves.
                if sha256 := wanted.versions[name].sha256:
                    archives.check(archives.deployed(self.settings, name), name, sha256)
            for name, version in wanted.versions.items():
                if name not in registered:
                    archives.provide(self.settings, name, version.sha256)
                    self._start(name, version.workers)
                    done.append(f"deployed {name}")
                elif registered[name] != version.workers:
                    now = wanted.with_version(name, VersionSpec(registered[name], version.sha256))
                    with self._scaled(name, version.workers, now, force):
                        pass
                    done.append(f"scaled {name} to {version.workers}")
                else:
                    self._check_ready(name, wanted)
            if self.management.default() != wanted.default:
                self.management.set_default(wanted.default)
                done.append(f"promoted {wanted.default}")
            if self.routing.read() != Routing.of(wanted):
                self._keep(wanted)
                done.append("routed")
            for name in sorted(registered.keys() - wanted.versions.keys()):
                self._retire(name, wanted, wanted, force)
                done.append(f"retired {name}")
            return done

    # --- How it stands

    def status(self) -> dict[str, Any]:
        """Return what serves, how it fares, and in what it is not as wanted.

        Raises ServiceError or DeploymentError.
        """
        wanted = deployment.load(self.settings.deployment)
        found = self.management.versions()
        default = self.management.default()
        routed = self.routing.read()
        entries = History(self.settings.deployment).entries()
        versions = [
            self._describe(name, description, routed) for name, description in sorted(found.items())
        ]
        # It serves on, from memory; but a restart would not find it.
        lost = [
            f"the archive of {each['version']} is lost" for each in versions if not each["sha256"]
        ]
        return {
            "ready": routed is not None,
            "default": default,
            "canary": spec.to_document(wanted)["canary"],
            "versions": versions,
            "differences": self.differences(wanted) + lost,
            "last_change": entries[-1] if entries else None,
        }

    def _describe(
        self, version: str, description: dict[str, Any], routed: Routing | None
    ) -> dict[str, Any]:
        archive = archives.deployed(self.settings, version)
        built = archives.noted_digest(archives.built(self.settings, version))
        sha256: str | None
        try:
            sha256 = archives.digest(archive)
            accuracy = archives.read_json(archive, "card.json").get("test_accuracy")
        except (OSError, BadArchive):
            sha256 = accuracy = None
        queue = description["jobQueueStatus"]
        return {
            "version": version,
            "clients_percent": routed.share(version) if routed else 0.0,
            "workers": description["minWorkers"],
            "ready": sum(worker["status"] == "READY" for worker in description["workers"]),
            "queue": queue["pendingRequests"],
            "test_accuracy": accuracy,
            "sha256": sha256,
            "other_build": built not in (None, sha256),
        }

    # --- What they are made of

    @contextlib.contextmanager
    def _change(
        self, action: str, version: str | None = None, agreed: bool = True
    ) -> Iterator[tuple[Deployment, dict[str, Any]]]:
        """Hold the lock; yield what is wanted so far and the history's entry; raise Refused."""
        if self.routing.read() is None:
            raise NotRunning("The service does not run, or is not ready yet: see `make run`.")
        try:
            with change(self.settings, action, version) as entry:
                wanted = deployment.load(self.settings.deployment)
                if agreed and (differences := self.differences(wanted)):
                    raise Refused(
                        f"{self.settings.deployment.name} and the service differ "
                        f"({'; '.join(differences)}): run `apply` first, or restore the file."
                    )
                yield wanted, entry
        except (ServiceError, NeverReady, BadArchive, DeploymentError, OSError) as error:
            raise Refused(str(error)) from error

    def differences(self, wanted: Deployment) -> list[str]:
        """Return in what the service is not as the deployment wants it; raise ServiceError."""
        registered = self._registered()
        found = [f"{name} does not serve" for name in wanted.versions if name not in registered]
        found += [f"{name} is not wanted" for name in registered if name not in wanted.versions]
        found += [
            f"{name} has {registered[name]} workers, not {version.workers}"
            for name, version in wanted.versions.items()
            if registered.get(name, version.workers) != version.workers
        ]
        default, routed = self.management.default(), self.routing.read()
        if default != wanted.default:
            found.append(f"{default} answers by default, not {wanted.default}")
        if routed and wanted.canary and not routed.canary:
            found.append(f"the canary {wanted.canary.version} was stopped and gets no traffic")
        elif routed and replace(routed, paused={}) != Routing.of(wanted):
            found.append("clients are routed otherwise")
        return found

    def _registered(self) -> dict[str, int]:
        """Return how many workers TorchServe is to keep for each version that it holds."""
        return {
            name: description["minWorkers"]
            for name, description in self.management.versions().items()
        }

    def _require(self, version: str, wanted: Deployment) -> None:
        if version not in wanted.versions:
            raise Refused(f"Version {version} does not serve: `deploy {version}` first.")

    def _refuse_other_canary(self, version: str, wanted: Deployment) -> None:
        if wanted.canary and wanted.canary.version != version:
            raise Refused(
                f"Version {wanted.canary.version} is the canary: promote it, or end that by "
                "`rollback`."
            )

    def _digest(self, version: str) -> str:
        return archives.digest(archives.deployed(self.settings, version))

    def _take(self, version: str, archive: Path | None, sha256: str | None) -> str:
        """Check an archive and copy it to where it is served from; raise BadArchive."""
        source = archive or archives.built(self.settings, version)
        expected = sha256 or archives.noted_digest(source)
        if source.is_file() and not expected:
            raise BadArchive(
                f"Nothing says what the SHA-256 of {source} must be: give --sha256, or put "
                f"{source.name}.sha256 beside it."
            )
        self.say(f"checking {source.name}")
        return archives.take(self.settings, source, version, expected)

    def _start(self, version: str, workers: int) -> None:
        """Register a version and see it answer rightly; raise NeverReady, and leave nothing."""
        log = WorkerLog(self.settings)
        try:
            self.management.register(version, workers)
            self._wait(version, workers, log)
        except BaseException:
            # Also when someone loses patience: half a version would stand in the way of the next.
            self._drop(version)
            raise

    def _wait(self, version: str, workers: int, log: WorkerLog) -> None:
        def hopeless(version: str, error: Exception) -> str | None:
            if self.routing.read() is None:
                return "The service went down meanwhile."
            if isinstance(error, NotServed):
                return f"TorchServe has lost version {version}."
            if reason := log.failure(version):
                return f"A worker of version {version} can't start: {reason}."
            return None

        wait_until_ready(self.settings, {version: workers}, hopeless, say=self.say)

    def _check_ready(self, version: str, wanted: Deployment) -> None:
        self._wait(version, wanted.versions[version].workers, WorkerLog(self.settings))

    def _drop(self, version: str) -> None:
        """Have TorchServe forget a version, however it is; if it can't, `status` will show it."""
        deadline = time.monotonic() + DRAIN_PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(ServiceError):
                if version not in self.management.versions():
                    return
                self.management.unregister(version)
            # A service that starts anew knows nothing of it.
            if self.routing.read() is None:
                return
            time.sleep(0.1)

    def _promote(self, version: str, wanted: Deployment) -> None:
        if version == wanted.default:
            raise Refused(f"Version {version} answers by default already.")
        self._refuse_other_canary(version, wanted)
        self._check_ready(version, wanted)
        self.management.set_default(version)
        try:
            self._keep(replace(wanted, default=version, canary=None))
        except BaseException:
            self.management.set_default(wanted.default)
            raise

    def _bring_back(self, version: str, was: VersionSpec, wanted: Deployment) -> None:
        """Deploy a version again as it was, and promote it."""
        present = archives.deployed(self.settings, version)
        sha256 = was.sha256 or (archives.digest(present) if present.is_file() else None)
        found = archives.provide(self.settings, version, sha256)
        self._start(version, was.workers)
        try:
            self._promote(version, wanted.with_version(version, VersionSpec(was.workers, found)))
        except BaseException:
            self._drop(version)
            raise

    @contextlib.contextmanager
    def _scaled(
        self, version: str, workers: int, wanted: Deployment, force: bool
    ) -> Iterator[Deployment]:
        """Scale a version, and scale it back if the block fails."""
        have = wanted.versions[version].workers
        after = wanted.with_version(version, replace(wanted.versions[version], workers=workers))
        log = WorkerLog(self.settings)
        try:
            self._set_workers(version, workers, have, force)
            self._wait(version, workers, log)
            yield after
        except BaseException:
            if self._registered().get(version) == workers:
                self._set_workers(version, have, workers, force=True)
            raise

    def _set_workers(self, version: str, workers: int, have: int, force: bool) -> None:
        if workers >= have:
            self.management.scale(version, workers)
            return
        # TorchServe kills the surplus ones at once, with what they work at.
        with self.routing.pause(version):
            self._drain(version, PAUSED_PATIENCE, force)
            self.management.scale(version, workers)

    def _retire(self, version: str, after: Deployment, before: Deployment, force: bool) -> None:
        self.routing.publish(Routing.of(after))
        try:
            self._drain(version, DRAIN_PATIENCE, force)
            self._keep(after)
            # Last, as it alone can't be undone.
            self.management.unregister(version)
        except BaseException:
            self._keep(before)
            raise

    def _drain(self, version: str, patience: float, force: bool) -> None:
        """Wait until a version is at rest; raise Refused if others keep asking it."""
        self.say(f"waiting until version {version} is at rest")
        if not self._at_rest_within(version, patience) and not force:
            raise Refused(
                f"Version {version} is still asked, by a client that does not heed the routing: "
                "stop that, or use --force, which breaks off what is in flight."
            )

    def _at_rest_within(self, version: str, patience: float) -> bool:
        """Tell whether a version came to rest: nothing queues, and no worker computes.

        TorchServe does not say what its workers have in hand. But while they have something,
        they use the processor.
        """
        deadline = time.monotonic() + patience
        used, since = -1.0, time.monotonic()
        while time.monotonic() < deadline:
            description = self.management.describe(version)
            now = sum(_processor_seconds(worker["pid"]) for worker in description["workers"])
            if description["jobQueueStatus"]["pendingRequests"] or now != used:
                used, since = now, time.monotonic()
            elif time.monotonic() - since >= REST:
                return True
            time.sleep(0.03)
        return False

    def _keep(self, wanted: Deployment) -> None:
        """Make a deployment the one that is wanted, and let all clients see it."""
        before = deployment.load(self.settings.deployment)
        deployment.save(wanted, self.settings.deployment)
        try:
            # Without a routing, the service is starting anew: it will publish this by itself.
            if self.routing.read():
                self.routing.publish(Routing.of(wanted))
        except BaseException:
            deployment.save(before, self.settings.deployment)
            raise


def _processor_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except (psutil.Error, ValueError):
        return 0.0
    return float(times.user + times.system)

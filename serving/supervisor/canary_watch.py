"""Roll back a canary that breaks its bounds.

Where deployment.yaml can't be written, as on Kubernetes, the canary is taken out of the routing
instead. A file in RUN_DIR keeps that decision over restarts, until deployment.yaml changes.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

from serving import deployment
from serving.client import ServiceError
from serving.deployment import Canary, Deployment, DeploymentError
from serving.deployment.canary import Watch
from serving.deployment.history import LOCK
from serving.deployment.routing import Routing, RoutingFile
from serving.deployment.spec import to_document
from serving.files import lock
from serving.restarts import say
from serving.rollout.changes import NotRunning, Refused, Rollout
from serving.settings import Settings

# Seconds between tries to roll a canary back while TorchServe does not answer.
RETRY_INTERVAL = 10.0
# Holds the deployment whose canary was stopped.
STOPPED = "stopped_canary.json"


class CanaryWatch:
    """The watch over the canary of one service."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._routing = RoutingFile(settings.run_dir)
        self._outcomes = Watch(settings.run_dir)
        self._canary: Canary | None = None
        self._retry_at = 0.0

    def check(self) -> None:
        """Roll the canary back if it breaks its bounds; raise Busy, Refused or OSError."""
        try:
            wanted = deployment.load(self._settings.deployment)
        except DeploymentError:
            # A user is editing it.
            return
        forget_stopped(self._settings, wanted)
        if wanted.canary != self._canary:
            self._outcomes.forget()
            self._canary = wanted.canary
        routed = self._routing.read()
        if wanted.canary is None or routed is None or routed.canary != wanted.canary.version:
            return
        self._outcomes.read()
        if time.monotonic() < self._retry_at:
            return
        if why := self._outcomes.verdict(wanted.canary, wanted.default):
            self._roll_back(wanted.canary.version, why, wanted)

    def _roll_back(self, version: str, why: str, wanted: Deployment) -> None:
        rollout = Rollout(self._settings)
        try:
            rollout.end_canary(version, why)
            say(f"canary {version} rolled back: {why}")
        except NotRunning:
            return
        except Refused as error:
            if isinstance(error.__cause__, ServiceError):
                # TorchServe did not answer: a later attempt may succeed.
                self._retry_at = time.monotonic() + RETRY_INTERVAL
                raise
            if self._stop_traffic(wanted):
                say(
                    f"canary {version} gets no more traffic: {why}. deployment.yaml still names "
                    f"it, because it can't be changed here ({error}). Remove the canary there "
                    "(on Kubernetes: in the ConfigMap)."
                )
        finally:
            rollout.close()

    def _stop_traffic(self, wanted: Deployment) -> bool:
        """Take the canary out of the routing; return False if deployment.yaml has changed."""
        with lock(self._settings.run_dir / LOCK, "the canary is stopped"):
            routed = self._routing.read()
            if routed is None or deployment.load(self._settings.deployment) != wanted:
                return False
            self._routing.publish(replace(routed, canary=None, percent=0.0))
            (self._settings.run_dir / STOPPED).write_text(json.dumps(to_document(wanted)))
        return True


def routing_of(settings: Settings, wanted: Deployment) -> Routing:
    """Return the routing of a deployment, without the canary if it was stopped."""
    forget_stopped(settings, wanted)
    stopped = (settings.run_dir / STOPPED).exists()
    return Routing.of(replace(wanted, canary=None) if stopped else wanted)


def forget_stopped(settings: Settings, wanted: Deployment) -> None:
    """Forget that a canary was stopped if deployment.yaml has changed since."""
    path = settings.run_dir / STOPPED
    try:
        stopped = json.loads(path.read_text())
    except FileNotFoundError:
        return
    except ValueError:
        # Cut off by a full disk.
        stopped = None
    if stopped != to_document(wanted):
        path.unlink()

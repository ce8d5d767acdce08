"""The actual state of the service, compared with the desired one in deployment.yaml."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from serving import deployment
from serving.client import ManagementClient
from serving.deployment import Deployment, History, archives, spec
from serving.deployment.archives import BadArchive
from serving.deployment.routing import Routing
from serving.settings import Settings


def registered(management: ManagementClient) -> dict[str, int]:
    """Return the configured number of workers of each version in TorchServe."""
    return {name: description["minWorkers"] for name, description in management.versions().items()}


def differences(
    desired: Deployment, management: ManagementClient, routed: Routing | None
) -> list[str]:
    """Return how the service differs from the desired state; raise ServiceError."""
    actual = registered(management)
    found = [f"{name} is not served" for name in desired.versions if name not in actual]
    found += [f"{name} is not in the file" for name in actual if name not in desired.versions]
    found += [
        f"{name} has {actual[name]} workers, not {version.workers}"
        for name, version in desired.versions.items()
        if actual.get(name, version.workers) != version.workers
    ]
    default = management.default()
    if default != desired.default:
        found.append(f"the default version is {default}, not {desired.default}")
    if stopped := stopped_canary(desired, routed):
        found.append(stopped)
    elif routed and replace(routed, paused={}) != Routing.of(desired):
        found.append("clients are routed differently")
    return found


def stopped_canary(desired: Deployment, routed: Routing | None) -> str | None:
    """Describe a canary that lost its traffic while deployment.yaml could not be written."""
    if routed and desired.canary and not routed.canary:
        return f"the canary {desired.canary.version} was stopped and gets no traffic"
    return None


def status(
    settings: Settings, management: ManagementClient, routed: Routing | None
) -> dict[str, Any]:
    """Return the state of the service as a document; raise ServiceError or DeploymentError."""
    desired = deployment.load(settings.deployment)
    versions = [
        _describe(settings, name, description, routed)
        for name, description in sorted(management.versions().items())
    ]
    # The version is served from memory, but a restart would not find its archive.
    lost = [f"the archive of {each['version']} is lost" for each in versions if not each["sha256"]]
    entries = History(settings.deployment).entries()
    return {
        "ready": routed is not None,
        "default": management.default(),
        "canary": spec.to_document(desired)["canary"],
        "versions": versions,
        "differences": differences(desired, management, routed) + lost,
        "last_change": entries[-1] if entries else None,
    }


def _describe(
    settings: Settings, version: str, description: dict[str, Any], routed: Routing | None
) -> dict[str, Any]:
    archive = archives.deployed(settings, version)
    built = archives.noted_digest(archives.built(settings, version))
    sha256: str | None
    try:
        sha256 = archives.digest(archive)
        accuracy = archives.read_json(archive, "card.json").get("test_accuracy")
    except (OSError, BadArchive):
        sha256 = accuracy = None
    return {
        "version": version,
        "clients_percent": routed.share(version) if routed else 0.0,
        "workers": description["minWorkers"],
        "ready": sum(worker["status"] == "READY" for worker in description["workers"]),
        "queue": description["jobQueueStatus"]["pendingRequests"],
        "test_accuracy": accuracy,
        "sha256": sha256,
        "other_build": built not in (None, sha256),
    }

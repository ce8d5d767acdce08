"""Whether a version is at rest, so that TorchServe can stop its workers without losing a request.

TorchServe stops surplus workers at once, whatever they work on, and does not report which of them
are busy.
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from serving.client import ManagementClient
from serving.deployment import in_flight
from serving.settings import Settings

INTERVAL = 0.03
# The name that a worker gives its process while it works (serving/torchserve/worker.py).
BUSY = "worker: busy"


class NotAtRest(Exception):
    """A version still has requests in flight; the message describes them."""


def wait_until_at_rest(
    settings: Settings, management: ManagementClient, version: str, patience: float
) -> None:
    """Return when a version is at rest; raise NotAtRest after the patience, or ServiceError."""
    deadline = time.monotonic() + patience
    while reason := _busy_twice(settings, management, version):
        if time.monotonic() >= deadline:
            raise NotAtRest(reason)
        time.sleep(INTERVAL)


def _busy_twice(settings: Settings, management: ManagementClient, version: str) -> str | None:
    """Look twice, since a request is neither queued nor at a worker during the batch delay."""
    if reason := _why_busy(settings, management, version):
        return reason
    time.sleep(management.describe(version).get("maxBatchDelay", 0) / 1000)
    return _why_busy(settings, management, version)


def _why_busy(settings: Settings, management: ManagementClient, version: str) -> str | None:
    """Describe a request in flight to a version, or return None if it is at rest."""
    if reason := in_flight.describe(settings.run_dir, version):
        return reason
    description = management.describe(version)
    if pending := description["jobQueueStatus"]["pendingRequests"]:
        return f"{pending} requests are queued"
    for worker in description["workers"]:
        if state := worker_state(worker["pid"]):
            return f"worker {worker['pid']} is {state}"
    return None


def worker_state(pid: int) -> str | None:
    """Return why a worker may have a request, or None if it is idle or has ended.

    An idle worker sleeps until a request arrives. One that is stopped, or waits for the processor,
    may have a request that it has not read.
    """
    try:
        state = psutil.Process(pid).status()
        # Read after the status, because a worker can also sleep during a request.
        if (Path("/proc") / str(pid) / "comm").read_text().strip() == BUSY:
            return "busy"
    except (psutil.Error, OSError, ValueError):
        return None
    return None if state in (psutil.STATUS_SLEEPING, psutil.STATUS_ZOMBIE) else state

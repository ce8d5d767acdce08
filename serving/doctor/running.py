"""Checks of the running service: readiness, versions, answers, queue, log and edge."""

from __future__ import annotations

import re
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
import yaml

from serving import files
from serving.client import InferenceClient, ServiceError
from serving.deployment import archives, known_answers
from serving.deployment.archives import BadArchive
from serving.deployment.routing import RoutingFile
from serving.doctor.findings import (
    OK,
    PROBLEM,
    TIMEOUT,
    WARNING,
    Context,
    Finding,
    NotChecked,
    read_lines,
)
from serving.edge import certificates
from serving.edge import status as edge_status
from serving.http import local_session
from serving.rollout import readiness
from serving.rollout.changes import Rollout
from serving.rollout.readiness import NeverReady
from serving.torchserve.config import token_life
from serving.torchserve.tokens import HEADER_FILE, KEY_FILE, KINDS, Tokens

# The share of its life at which a token should have been renewed long ago.
OVERDUE = 0.1
# A worker that exited within so many seconds is a problem, not a warning.
RECENT = 3600.0
# The settings of model-config.yaml that TorchServe reports under the same name.
REPORTED = (
    "batchSize",
    "maxBatchDelay",
    "responseTimeout",
    "startupTimeout",
    "maxRetryTimeoutInSec",
)


def check_ready(context: Context) -> Iterator[Finding]:
    ready = RoutingFile(context.settings.run_dir).read() is not None
    state = "accepts clients" if ready else "is starting or restarting"
    yield Finding.judge(
        ready, f"process {context.pid} {state}", f"wait, or see {context.log.parent}"
    )


def check_torchserve(context: Context) -> Iterator[Finding]:
    """Check that TorchServe accepts the management token and answers."""
    if isinstance(context.response, ServiceError):
        yield Finding(PROBLEM, str(context.response), f"see {context.log}")
    else:
        yield Finding(OK, f"answers, with versions {', '.join(sorted(context.response))}")


def check_page(context: Context) -> Iterator[Finding]:
    url = context.settings.frontend_url
    try:
        with local_session() as session:
            status = session.get(f"{url}/readyz", timeout=TIMEOUT).status_code
    except requests.RequestException as error:
        yield Finding(PROBLEM, f"does not answer ({type(error).__name__})", "restart the service")
        return
    state = "ready" if status == 200 else f"not ready (status {status})"
    yield Finding.judge(status == 200, f"{url} is {state}", "see the other checks")


def check_tokens(context: Context) -> Iterator[Finding]:
    """Check that the tokens are renewed in time, and that only their owner can read them."""
    run_dir = context.settings.run_dir
    tokens = Tokens(run_dir)
    life = token_life(run_dir / "config.properties")
    for kind in KINDS:
        left = (tokens.expires(kind) - datetime.now(UTC)).total_seconds()
        state = f"expires in {left / 60:.0f} minutes" if left > 0 else "expired"
        advice = (
            "run `renew-tokens`; see the output of `run`" if left > 0 else "restart the service"
        )
        yield Finding.judge(left >= OVERDUE * life, f"{kind}: {state}", advice)
    for name in (KEY_FILE, HEADER_FILE):
        path = run_dir / name
        if not path.exists():
            yield Finding(PROBLEM, f"{path} is missing", "run `renew-tokens`")
            continue
        shared = path.stat().st_mode & 0o077
        yield Finding.judge(
            not shared,
            f"{'other users' if shared else 'only its owner'} can read {path}",
            f"run `chmod 600 {path}`, then `renew-tokens`",
        )
    header = run_dir / HEADER_FILE
    current = f"Authorization: {tokens.header('inference')['Authorization']}"
    if header.exists() and header.read_text().strip() != current:
        yield Finding(PROBLEM, f"the token in {HEADER_FILE} is outdated", "run `renew-tokens`")


def check_workers(context: Context) -> Iterator[Finding]:
    for name, version in sorted(context.deployment.versions.items()):
        if name not in context.versions:
            yield Finding(PROBLEM, f"{name}: not deployed", f"run `apply` or `deploy {name}`")
            continue
        workers = context.versions[name]["workers"]
        ready = sum(worker["status"] == "READY" for worker in workers)
        yield Finding.judge(
            ready >= version.workers,
            f"{name}: {ready} of {version.workers} ready",
            f"wait, or see {context.log}",
        )


def check_in_sync(context: Context) -> Iterator[Finding]:
    wanted = context.deployment
    if change := files.lock_holder(context.settings.run_dir / "change.lock"):
        raise NotChecked(f"a change is in progress: {change}")
    with closing(Rollout(context.settings)) as rollout:
        differences = rollout.differences(wanted)
    for difference in differences:
        yield Finding(PROBLEM, difference, "run `apply`, or restore the file")
    if not differences:
        yield Finding(OK, "the service matches deployment.yaml")


def check_settings(context: Context) -> Iterator[Finding]:
    """Check that TorchServe uses the settings of each model-config.yaml.

    TorchServe only logs a line about a setting that it cannot read.
    """
    for name in sorted(context.versions):
        config = _model_config(archives.deployed(context.settings, name))
        wrong = _ignored_settings(config, context.versions[name])
        yield Finding.judge(
            not wrong,
            f"{name}: {'; '.join(wrong) or 'as in its model-config.yaml'}",
            f"look for the setting in {context.log}, and fix models/{name}/model-config.yaml",
        )


def check_answers(context: Context) -> Iterator[Finding]:
    """Check that each version classifies the known images as it did when it was evaluated."""
    with closing(InferenceClient(context.settings, timeout=TIMEOUT)) as client:
        for name in sorted(context.versions):
            archive = archives.deployed(context.settings, name)
            try:
                readiness.check_answers(client, name, archive)
            except (NeverReady, ServiceError) as error:
                yield Finding(PROBLEM, f"{name}: {error}")
            else:
                count = len(known_answers.answers(archive))
                yield Finding(OK, f"{name}: all {count} images as expected")


def check_queue(context: Context) -> Iterator[Finding]:
    for name, version in sorted(context.versions.items()):
        queue = version["jobQueueStatus"]
        waiting, room = queue["pendingRequests"], queue["remainingCapacity"]
        yield Finding.judge(
            room > 0,
            f"{name}: {waiting} waiting, room for {room}",
            f"run `scale {name}` with more workers, or send fewer requests",
        )


def check_log(context: Context) -> Iterator[Finding]:
    """Check how often workers exited since the start."""
    exits = worker_exits(read_lines(context.log))
    if not exits:
        yield Finding(OK, "no worker exited unexpectedly since the start")
        return
    last = max(exits)
    yield Finding(
        PROBLEM if time.time() - last < RECENT else WARNING,
        f"workers exited unexpectedly since the start: {len(exits)} times, "
        f"last at {datetime.fromtimestamp(last):%Y-%m-%d %H:%M:%S}",
        f"see {context.log}, and check that the memory suffices",
    )


def check_edge(context: Context) -> Iterator[Finding]:
    """Check that the edge answers, and its keys and certificate, if one runs."""
    edge = edge_status.look(context.settings.edge_note)
    if edge is None:
        yield Finding(OK, "no edge runs")
        return
    state = "answers" if edge.answers else "does not answer"
    yield Finding.judge(edge.answers, f"{state} at {edge.address}", "run `make edge`")
    if edge.keys_fault:
        yield Finding(
            PROBLEM, edge.keys_fault, "fix the file: the edge rejects all keys until then"
        )
    if edge.expires:
        days = (edge.expires - time.time()) / (24 * 3600)
        yield Finding.judge(
            days >= certificates.LAST_DAYS,
            f"the certificate is valid for {days:.0f} days",
            "renew it; a restart of the edge renews a self-signed one",
        )


def _model_config(archive: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(archive) as file:
            document: dict[str, Any] = yaml.safe_load(file.read("model-config.yaml"))
            return document
    except (OSError, KeyError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise BadArchive(f"{archive} has no model-config.yaml: run `make mar`.") from error


def _ignored_settings(config: dict[str, Any], reported: dict[str, Any]) -> list[str]:
    actual = {key: reported.get(key) for key in REPORTED}
    queue = reported["jobQueueStatus"]
    # Under load the two numbers are not of the same moment.
    if not queue["pendingRequests"]:
        actual["jobQueueSize"] = queue["remainingCapacity"]
    return [
        f"{key} is {value}, not {config[key]}"
        for key, value in actual.items()
        if key in config and value != config[key]
    ]


def worker_exits(lines: Iterable[str]) -> list[float]:
    """Return when workers exited unexpectedly.

    A killed worker leaves no line, but starts again under its name; a worker added by `scale` has
    a new name. A worker that exits before it has started leaves a line.
    """
    starts: dict[str, list[float]] = defaultdict(list)
    exits: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        match = re.match(r"(\S+),\d+ +\S+ +\[(W-[^]]+?)(?:-stdout|-stderr)?\] ", line)
        if not match:
            continue
        moment = datetime.fromisoformat(match[1]).timestamp()
        if "Torch worker started." in line:
            starts[match[2]].append(moment)
        elif "Backend worker process died" in line:
            exits[match[2]].append(moment)
    return [
        moment
        for worker in starts.keys() | exits.keys()
        for moment in max(starts[worker][1:], exits[worker], key=len)
    ]

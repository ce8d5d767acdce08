"""Everything that can be wrong with the service, looked at piece by piece: how it is, what to do.

Nothing is changed by that, and no token is shown.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import shutil
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests
import yaml
from packaging.requirements import Requirement

from serving import deployment, files
from serving.client import InferenceClient, ManagementClient, ServiceError
from serving.deployment import Deployment, DeploymentError, archives, known_answers
from serving.deployment.archives import BadArchive
from serving.deployment.routing import RoutingFile
from serving.edge import certificates
from serving.edge import status as edge_watch
from serving.http import local_session
from serving.rollout import readiness
from serving.rollout.changes import Rollout
from serving.rollout.readiness import NeverReady
from serving.settings import ROOT, Settings
from serving.supervisor import service as supervisor
from serving.torchserve import process as torchserve
from serving.torchserve.process import StartError
from serving.torchserve.tokens import HEADER_FILE, KEY_FILE, KINDS, TokenError, Tokens

OK, NOTE, PROBLEM, UNCHECKED = "ok", "note", "problem", "not checked"

PYTHONS = ((3, 10), (3, 13))
FREE_DISK = 2**30
FREE_MEMORY = 500 * 2**20
# A service that hangs must not make the doctor hang as well.
TIMEOUT = (2.0, 10.0)
# Of its life, what is left of a token that should have been renewed long before.
OVERDUE = 0.1
# Seconds for which the end of a worker is news.
RECENT = 3600.0

# What config.properties must say, and TorchServe's own value where it says nothing.
SAFE = {
    "disable_token_authorization": ("false", "false"),
    "allowed_urls": ("^$", "file://.*|http(s)?://.*"),
    "use_env_allowed_urls": ("false", "false"),
    "enable_envvars_config": ("false", "false"),
    "install_py_dep_per_model": ("false", "false"),
}
LISTENERS = (
    "inference_address",
    "management_address",
    "metrics_address",
    "grpc_inference_address",
    "grpc_management_address",
)
# What TorchServe tells of a version, under the names of model-config.yaml.
TOLD = ("batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout", "maxRetryTimeoutInSec")


@dataclass(frozen=True)
class Finding:
    """How one thing is, and what to do if that is wrong."""

    state: str
    what: str
    advice: str = ""
    check: str = ""

    def to_document(self) -> dict[str, str]:
        """Return it as JSON holds it."""
        return {
            "check": self.check,
            "state": self.state,
            "found": self.what,
            "advice": self.advice,
        }


class Unchecked(Exception):
    """A check was not possible; the message says why. That alone is no problem."""


class Patient:
    """What is looked at, asked once: the settings, what is wanted, and what runs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pid = supervisor.running(settings.run_dir)
        self._wanted: Deployment | None = None
        self._described: dict[str, dict[str, Any]] | None = None
        self.silence = ""
        # That has a check of its own.
        with contextlib.suppress(DeploymentError):
            self._wanted = deployment.load(settings.deployment)
        if self.pid is not None:
            self._describe()

    @property
    def wanted(self) -> Deployment:
        """What is to be served; raise Unchecked if deployment.yaml does not say it."""
        if self._wanted is None:
            raise Unchecked(f"{self.settings.deployment.name} is not valid")
        return self._wanted

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """TorchServe's description of each version; raise Unchecked if it gave none."""
        if self._described is None:
            raise Unchecked("TorchServe does not tell")
        return self._described

    @property
    def log(self) -> Path:
        return self.settings.run_dir / "logs" / "torchserve.log"

    def _describe(self) -> None:
        client = ManagementClient(self.settings, timeout=TIMEOUT)
        try:
            self._described = client.versions()
        except ServiceError as error:
            self.silence = str(error)
        finally:
            client.close()


Check = Callable[[Patient], Iterable[Finding]]


def examine(settings: Settings) -> list[Finding]:
    """Make all checks; return what they found."""
    patient = Patient(settings)
    secrets = _secrets(settings.run_dir)
    return [
        replace(
            finding,
            check=name,
            what=_without(secrets, finding.what),
            advice=_without(secrets, finding.advice),
        )
        for name, check in CHECKS.items()
        for finding in _made(check, patient)
    ]


def _made(check: Check, patient: Patient) -> Iterator[Finding]:
    """Make one check, whatever becomes of it."""
    if check in NEED_SERVICE and patient.pid is None:
        yield Finding(UNCHECKED, "nothing runs")
        return
    try:
        yield from check(patient)
    except Unchecked as why:
        yield Finding(UNCHECKED, str(why))
    except (BadArchive, DeploymentError, StartError, ServiceError, NeverReady, TokenError) as error:
        # Their messages say what to do.
        yield Finding(PROBLEM, str(error))
    except Exception as error:
        yield Finding(PROBLEM, f"the check itself failed: {type(error).__name__}: {error}")


# --- The machine


def check_python(patient: Patient) -> Iterator[Finding]:
    """Look at the version of Python."""
    version, (first, last) = sys.version_info[:3], PYTHONS
    named = ".".join(map(str, version))
    if first <= version[:2] <= last:
        yield Finding(OK, named)
    else:
        yield Finding(
            PROBLEM,
            f"{named} is not {_dotted(first)} to {_dotted(last)}",
            "make a new .venv with `make clean setup PYTHON=...`",
        )


def check_packages(patient: Patient) -> Iterator[Finding]:
    """Look for what requirements.txt names."""
    lines = (line.partition("#")[0].strip() for line in _lines(ROOT / "requirements.txt"))
    wanted = [Requirement(line) for line in lines if line]
    wrong = False
    for each in wanted:
        if each.marker and not each.marker.evaluate():
            continue
        try:
            version = metadata.version(each.name)
        except metadata.PackageNotFoundError:
            wrong = True
            yield Finding(PROBLEM, f"{each.name} is missing", "run `make setup`")
            continue
        if not each.specifier.contains(version, prereleases=True):
            wrong = True
            yield Finding(NOTE, f"{each.name} is {version}, tested is {each.specifier}")
    if not wrong:
        yield Finding(OK, "as requirements.txt pins them")


def check_java(patient: Patient) -> Iterator[Finding]:
    """Look for a Java that TorchServe runs on."""
    java = torchserve.find_java()
    version = torchserve.java_version(java)
    if version in torchserve.JAVA_VERSIONS:
        yield Finding(OK, f"Java {version}, {java}")
    else:
        yield Finding(PROBLEM, f"{java} does not run", "run `make setup`, or set JAVA_HOME")


def check_kill(patient: Patient) -> Iterator[Finding]:
    """Look for the program by which TorchServe ends its workers."""
    if shutil.which("kill"):
        yield Finding(OK, "found")
    else:
        yield Finding(
            PROBLEM, "TorchServe ends its workers by it", "install it (Debian: apt install procps)"
        )


def check_disk(patient: Patient) -> Iterator[Finding]:
    """Look at the free space where the service writes."""
    folder = patient.settings.run_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    what = f"{_gigabytes(free)} free in {folder}"
    if free < FREE_DISK:
        yield Finding(PROBLEM, what, "make room, or set RUN_DIR to another disk")
    else:
        yield Finding(OK, what)


def check_memory(patient: Patient) -> Iterator[Finding]:
    """Look at the free memory."""
    free = psutil.virtual_memory().available
    what = f"{_gigabytes(free)} free"
    if free < FREE_MEMORY:
        yield Finding(PROBLEM, what, "end other programs, or serve with fewer workers")
    else:
        yield Finding(OK, what)


# --- What is to be served


def check_folder(patient: Patient) -> Iterator[Finding]:
    """Look who may write where the service keeps its files."""
    folder = patient.settings.run_dir
    if not folder.exists():
        yield Finding(OK, f"{folder} will be made at the start")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(PROBLEM, f"{folder} can't be written to", "give it to who runs the service")
    elif folder.stat().st_mode & 0o022:
        yield Finding(
            PROBLEM,
            f"others may write to {folder}, and so replace what is served",
            f"`chmod 700 {folder}`",
        )
    else:
        yield Finding(OK, f"{folder} is its user's own")


def check_deployment(patient: Patient) -> Iterator[Finding]:
    """Look whether deployment.yaml is valid."""
    wanted = deployment.load(patient.settings.deployment)
    others = [name for name in sorted(wanted.versions) if name != wanted.default]
    beside = f", beside it {', '.join(others)}" if others else ""
    yield Finding(OK, f"version {wanted.default} by default{beside}")


def check_config(patient: Patient) -> Iterator[Finding]:
    """Look whether config.properties, and the copy in force, are safe."""
    path = patient.settings.config
    written = torchserve.read_properties(path)
    yield from _safety(written, path)
    if written.get("enable_model_api", "").lower() == "true":
        yield Finding(
            NOTE,
            "the model API is open (enable_model_api): who has the management token can load code. "
            "deploy and retire need it",
        )
    if patient.pid is None:
        return
    path = patient.settings.run_dir / "config.properties"
    in_force = torchserve.read_properties(path)
    yield from _safety(in_force, path)
    if changed := [key for key, value in written.items() if _differs(key, value, in_force)]:
        yield Finding(
            NOTE,
            f"changed since the start, and not in force: {', '.join(changed)}",
            "start the service anew",
        )


def check_archives(patient: Patient) -> Iterator[Finding]:
    """Look whether a start would find each version's archive, whole and the right one."""
    for name, version in sorted(patient.wanted.versions.items()):
        try:
            yield _archive(patient.settings, name, version.sha256)
        except BadArchive as error:
            yield Finding(PROBLEM, f"{name}: {error}")


def check_ports(patient: Patient) -> Iterator[Finding]:
    """Look whether the ports are free, or held by the service itself, and on loopback alone."""
    if patient.pid is None:
        torchserve.check_ports(patient.settings)
        yield Finding(OK, "all are free")
        return
    own = _listeners(patient.pid)
    opened = {
        port
        for variable, port in patient.settings.ports.items()
        if not _is_loopback(patient.settings.host_of(variable))
    }
    open_to_others = {port for address, port in own if not _is_loopback(address)} - opened
    if open_to_others:
        yield Finding(
            PROBLEM,
            f"the service listens to other machines: {_numbers(open_to_others)}",
            f"put the listeners in {patient.settings.config.name} on 127.0.0.1, and start it anew",
        )
    foreign = {
        variable: port
        for variable, port in patient.settings.ports.items()
        if port not in {port for _, port in own}
    }
    if foreign:
        named = ", ".join(f"{variable} {port}" for variable, port in foreign.items())
        yield Finding(
            PROBLEM,
            f"the service does not listen on {named}",
            "set the ports with which it was started, or start it anew",
        )
    if not open_to_others and not foreign:
        but = f" but for {_numbers(opened)}, as EXPORTER_HOST says" if opened else ""
        yield Finding(OK, f"all are the service's own, on loopback{but}")


# --- What runs


def check_ready(patient: Patient) -> Iterator[Finding]:
    """Look whether clients are let in."""
    if RoutingFile(patient.settings.run_dir).read() is None:
        yield Finding(
            PROBLEM, "it starts, or is being started again", f"wait, or see {patient.log.parent}"
        )
    else:
        yield Finding(OK, f"process {patient.pid} lets clients in")


def check_page(patient: Patient) -> Iterator[Finding]:
    """Look whether the page is ready."""
    url = f"{patient.settings.frontend_url}/readyz"
    try:
        with local_session() as session:
            status = session.get(url, timeout=TIMEOUT).status_code
    except requests.RequestException as error:
        yield Finding(PROBLEM, f"it can't be reached ({type(error).__name__})", "start it anew")
        return
    if status == 200:
        yield Finding(OK, f"ready at {patient.settings.frontend_url}")
    else:
        yield Finding(PROBLEM, f"it is not ready (status {status})", "see the other checks")


def check_management(patient: Patient) -> Iterator[Finding]:
    """Look whether TorchServe takes the management token and answers."""
    if patient.silence:
        yield Finding(PROBLEM, patient.silence, f"see {patient.log}")
    else:
        yield Finding(OK, f"it answers, and holds {', '.join(sorted(patient.described))}")


def check_tokens(patient: Patient) -> Iterator[Finding]:
    """Look when the tokens expire, and who can read them."""
    run_dir = patient.settings.run_dir
    tokens = Tokens(run_dir)
    for kind in KINDS:
        left = (tokens.expires(kind) - datetime.now(UTC)).total_seconds()
        if left <= 0:
            yield Finding(PROBLEM, f"{kind}: expired", "start the service anew")
        elif left < OVERDUE * torchserve.token_life(run_dir / "config.properties"):
            yield Finding(
                PROBLEM,
                f"{kind}: expires in {left / 60:.1f} minutes, and was not renewed",
                "try `renew-tokens`; see what `run` printed",
            )
        else:
            yield Finding(OK, f"{kind}: valid for {left / 60:.0f} minutes, renewed before")
    yield from _token_files(run_dir, tokens)


def check_workers(patient: Patient) -> Iterator[Finding]:
    """Look whether each version has its workers."""
    for name, version in sorted(patient.wanted.versions.items()):
        if name not in patient.described:
            yield Finding(PROBLEM, f"{name}: does not serve", "`apply`, or `deploy` it")
            continue
        workers = patient.described[name]["workers"]
        ready = sum(worker["status"] == "READY" for worker in workers)
        what = f"{name}: {ready} of {version.workers} ready"
        if ready < version.workers:
            yield Finding(PROBLEM, what, f"wait, or see {patient.log}")
        else:
            yield Finding(OK, what)


def check_differences(patient: Patient) -> Iterator[Finding]:
    """Look whether the service is as deployment.yaml wants it."""
    wanted = patient.wanted
    if at_work := files.lock_holder(patient.settings.run_dir / "change.lock"):
        raise Unchecked(f"a change is at work: {at_work}")
    rollout = Rollout(patient.settings)
    try:
        found = rollout.differences(wanted)
    finally:
        rollout.close()
    for difference in found:
        yield Finding(PROBLEM, difference, "`apply`, or restore the file")
    if not found:
        yield Finding(OK, "as deployment.yaml wants it")


def check_settings(patient: Patient) -> Iterator[Finding]:
    """Look whether TorchServe took what each version's model-config.yaml sets.

    It passes over what it does not understand, with no more than a line in its log.
    """
    for name in sorted(patient.described):
        wanted = _model_config(archives.deployed(patient.settings, name))
        wrong = _not_in_force(wanted, patient.described[name])
        if wrong:
            yield Finding(
                PROBLEM,
                f"{name}: {'; '.join(wrong)}",
                f"see what {patient.log} says of it, and mend models/{name}/model-config.yaml",
            )
        else:
            yield Finding(OK, f"{name}: as its model-config.yaml sets them")


def check_answers(patient: Patient) -> Iterator[Finding]:
    """Look whether each version answers the known images as when it was evaluated."""
    client = InferenceClient(patient.settings, timeout=TIMEOUT)
    try:
        for name in sorted(patient.described):
            archive = archives.deployed(patient.settings, name)
            try:
                readiness.check_answers(client, name, archive)
                yield Finding(
                    OK, f"{name}: {len(known_answers.answers(archive))} images, all rightly"
                )
            except (NeverReady, ServiceError) as error:
                yield Finding(PROBLEM, f"{name}: {error}")
    finally:
        client.close()


def check_queue(patient: Patient) -> Iterator[Finding]:
    """Look whether requests still find room."""
    for name, description in sorted(patient.described.items()):
        queue = description["jobQueueStatus"]
        what = f"{name}: {queue['pendingRequests']} wait, room for {queue['remainingCapacity']}"
        if queue["remainingCapacity"]:
            yield Finding(OK, what)
        else:
            yield Finding(PROBLEM, what, f"`scale {name}` to more workers, or ask it less")


def check_log(patient: Patient) -> Iterator[Finding]:
    """Look how often workers ended since the start."""
    ends = _ends(_lines(patient.log))
    if not ends:
        yield Finding(OK, "no worker ended by itself since the start")
        return
    recent = time.time() - max(ends) < RECENT
    yield Finding(
        PROBLEM if recent else NOTE,
        f"workers ended {len(ends)} times since the start, "
        f"the last time at {datetime.fromtimestamp(max(ends)):%Y-%m-%d %H:%M:%S}",
        f"see {patient.log}, and whether the memory suffices",
    )


def check_edge(patient: Patient) -> Iterator[Finding]:
    """Look whether the edge, where one was opened, answers, and who it is and lets in."""
    seen = edge_watch.look(patient.settings.edge_note)
    if seen is None:
        yield Finding(OK, "none is open")
        return
    if seen.answers:
        yield Finding(OK, f"it answers at {seen.address}")
    else:
        yield Finding(PROBLEM, f"it does not answer at {seen.address}", "start it: `make edge`")
    if seen.keys_fault:
        yield Finding(PROBLEM, seen.keys_fault, "nobody gets in: put the file right")
    if seen.expires:
        days = (seen.expires - time.time()) / (24 * 3600)
        cure = "put a new one in its place; one of its own is made anew by a start of the edge"
        if days < certificates.LAST_DAYS:
            yield Finding(PROBLEM, f"its certificate is valid for {days:.0f} days only", cure)
        else:
            yield Finding(OK, f"its certificate is valid for {days:.0f} days")


# In the order in which they are told.
CHECKS: dict[str, Check] = {
    "Python": check_python,
    "packages": check_packages,
    "Java": check_java,
    "kill": check_kill,
    "disk": check_disk,
    "memory": check_memory,
    "folder": check_folder,
    "deployment": check_deployment,
    "config": check_config,
    "archives": check_archives,
    "ports": check_ports,
    "ready": check_ready,
    "TorchServe": check_management,
    "page": check_page,
    "tokens": check_tokens,
    "workers": check_workers,
    "as wanted": check_differences,
    "settings": check_settings,
    "answers": check_answers,
    "queue": check_queue,
    "log": check_log,
    "edge": check_edge,
}
NEED_SERVICE = frozenset(list(CHECKS.values())[list(CHECKS).index("ready") :])


# --- What they are made of


def _safety(config: dict[str, str], path: Path) -> Iterator[Finding]:
    wrong = [
        f"{key}={config.get(key, default)}, not {safe}"
        for key, (safe, default) in SAFE.items()
        if config.get(key, default) != safe
    ]
    for key in LISTENERS:
        if (address := config.get(key)) and not _is_loopback(_host(address)):
            wrong.append(f"{key}={address} is not on loopback")
    if wrong:
        yield Finding(PROBLEM, f"{path}: {'; '.join(wrong)}", "put it right; it opens the service")
    else:
        yield Finding(OK, f"{path} is safe")


def _differs(key: str, value: str, in_force: dict[str, str]) -> bool:
    # The ports are those of the environment.
    return not key.endswith(("_address", "_port")) and in_force.get(key) != value


def _host(address: str) -> str:
    """Return the host of http://HOST:PORT, or of HOST."""
    return (urlsplit(address).hostname or "") if "//" in address else address


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _archive(settings: Settings, name: str, pinned: str | None) -> Finding:
    """Judge the archive that a start would take (archives.provide); raise BadArchive."""
    built, served = archives.built(settings, name), archives.deployed(settings, name)
    kept = pinned and served.is_file() and archives.digest(served) == pinned
    source = served if kept else built
    expected = pinned or archives.noted_digest(source)
    found = archives.check(source, name, expected)
    known_answers.answers(source)
    if not expected:
        return Finding(
            NOTE,
            f"{name}: whole, but nothing says what its SHA-256 must be",
            f"put {source.name}.sha256 beside it, or `sha256` into {settings.deployment.name}",
        )
    if not kept and served.is_file() and archives.digest(served) != found:
        return Finding(
            NOTE,
            f"{name}: another build lies in the model store, and will be served at the next start",
            f"to keep the one that serves, put its `sha256` into {settings.deployment.name}",
        )
    return Finding(OK, f"{name}: whole, {found[:12]}{', as pinned' if pinned else ''}")


def _listeners(pid: int) -> set[tuple[str, int]]:
    """Return addresses and ports on which a process and its children listen; raise Unchecked."""
    found = set()
    try:
        service = psutil.Process(pid)
        for process in (service, *service.children(recursive=True)):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, connection.laddr.port))
    except psutil.Error as error:
        raise Unchecked(f"process {pid} can't be looked at ({type(error).__name__})") from error
    return found


def _token_files(run_dir: Path, tokens: Tokens) -> Iterator[Finding]:
    for name in (KEY_FILE, HEADER_FILE):
        path = run_dir / name
        if not path.exists():
            yield Finding(PROBLEM, f"{path} is missing", "`renew-tokens`")
        elif path.stat().st_mode & 0o077:
            yield Finding(PROBLEM, f"others can read {path}", f"`chmod 600 {path}; renew-tokens`")
        else:
            yield Finding(OK, f"{name} is its user's alone")
    if not (run_dir / HEADER_FILE).exists():
        return
    header = f"Authorization: {tokens.header('inference')['Authorization']}\n"
    if "".join(f"{line}\n" for line in _lines(run_dir / HEADER_FILE)) != header:
        yield Finding(PROBLEM, f"{HEADER_FILE} holds another token than is valid", "`renew-tokens`")


def _model_config(archive: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(archive) as file:
            document: dict[str, Any] = yaml.safe_load(file.read("model-config.yaml"))
            return document
    except (OSError, KeyError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise BadArchive(f"{archive} holds no model-config.yaml: run `make mar`.") from error


def _not_in_force(wanted: dict[str, Any], told: dict[str, Any]) -> list[str]:
    wrong = [
        f"{key} is {told.get(key)}, not {wanted[key]}"
        for key in TOLD
        if key in wanted and told.get(key) != wanted[key]
    ]
    queue = told["jobQueueStatus"]
    size = queue["remainingCapacity"] + queue["pendingRequests"]
    # At work, the two are not of one moment.
    at_rest = not queue["pendingRequests"]
    if "jobQueueSize" in wanted and at_rest and size != wanted["jobQueueSize"]:
        wrong.append(f"jobQueueSize is {size}, not {wanted['jobQueueSize']}")
    return wrong


def _ends(lines: Iterable[str]) -> list[float]:
    """Return when workers ended by themselves.

    One that was killed leaves no line, but is started again under its name; a worker that is
    added, as by `scale`, gets a new name. One that ends before it has started leaves a line.
    """
    starts: dict[str, list[float]] = defaultdict(list)
    deaths: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        match = re.match(r"(\S+),\d+ +\S+ +\[(W-[^]]+?)(?:-stdout|-stderr)?\] ", line)
        if not match:
            continue
        moment = datetime.fromisoformat(match[1]).timestamp()
        if "Torch worker started." in line:
            starts[match[2]].append(moment)
        elif "Backend worker process died" in line:
            deaths[match[2]].append(moment)
    ends = []
    for worker in starts.keys() | deaths.keys():
        restarts = starts[worker][1:]
        ends += restarts if len(restarts) >= len(deaths[worker]) else deaths[worker]
    return ends


def _secrets(run_dir: Path) -> list[str]:
    """Return what must not be shown, should it ever get into a message."""
    try:
        keys = json.loads((run_dir / KEY_FILE).read_text())
        return [each["key"] for each in keys.values() if each["key"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _without(secrets: Iterable[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "(a token)")
    return text


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise Unchecked(f"{path} can't be read ({error.strerror})") from error


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _numbers(ports: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ports)))


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"

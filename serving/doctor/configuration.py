"""Checks of what the service starts with: folder, deployment.yaml, config, archives, ports."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from serving import deployment
from serving.deployment import archives, known_answers
from serving.deployment.archives import BadArchive
from serving.doctor.findings import OK, PROBLEM, WARNING, Context, Finding, NotChecked, is_loopback
from serving.settings import Settings
from serving.torchserve import ports
from serving.torchserve.config import read_properties

# The safe value of each setting in config.properties, and TorchServe's default.
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


def check_folder(context: Context) -> Iterator[Finding]:
    folder = context.settings.run_dir
    if not folder.exists():
        yield Finding(OK, f"{folder} is created at the start")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(PROBLEM, f"{folder} is not writable", "run the service as its owner")
    else:
        shared = folder.stat().st_mode & 0o022
        yield Finding.judge(
            not shared,
            f"{'other users' if shared else 'only its owner'} can write to {folder}",
            f"run `chmod 700 {folder}`: other users could replace the model",
        )


def check_deployment(context: Context) -> Iterator[Finding]:
    found = deployment.load(context.settings.deployment)
    yield Finding(OK, f"versions {', '.join(sorted(found.versions))}, default {found.default}")


def check_config(context: Context) -> Iterator[Finding]:
    """Check that config.properties, and its copy in use, are safe."""
    path = context.settings.config
    config = read_properties(path)
    yield _check_safe(config, path)
    if config.get("enable_model_api", "").lower() == "true":
        yield Finding(
            WARNING,
            "enable_model_api=true: the management token allows loading code; "
            "`deploy` and `retire` need this",
        )
    if context.pid is None:
        return
    path = context.settings.run_dir / "config.properties"
    in_use = read_properties(path)
    yield _check_safe(in_use, path)
    changed = [
        key
        for key, value in config.items()
        # The environment sets the ports.
        if not key.endswith(("_address", "_port")) and in_use.get(key) != value
    ]
    if changed:
        yield Finding(
            WARNING,
            f"changed since the start and not in use: {', '.join(changed)}",
            "restart the service",
        )


def check_archives(context: Context) -> Iterator[Finding]:
    """Check that a start finds the right archive of each version, undamaged."""
    for name, version in sorted(context.deployment.versions.items()):
        try:
            yield _check_archive(context.settings, name, version.sha256)
        except BadArchive as error:
            yield Finding(PROBLEM, f"{name}: {error}")


def check_ports(context: Context) -> Iterator[Finding]:
    """Check that the ports are free or the service's own, and open on loopback only."""
    settings = context.settings
    if context.pid is None:
        ports.check_ports(settings)
        yield Finding(OK, "all are free")
        return
    listeners = _listeners(context.pid)
    opened = {
        port for name, port in settings.ports.items() if not is_loopback(settings.host_of(name))
    }
    exposed = {port for address, port in listeners if not is_loopback(address)} - opened
    if exposed:
        yield Finding(
            PROBLEM,
            f"other machines can connect to port {_join(exposed)}",
            f"set the addresses in {settings.config.name} to 127.0.0.1, and restart the service",
        )
    missing = {
        f"{name} {port}"
        for name, port in settings.ports.items()
        if port not in {port for _, port in listeners}
    }
    if missing:
        yield Finding(
            PROBLEM,
            f"the service does not listen on {_join(missing)}",
            "set the ports it was started with, or restart it",
        )
    if not exposed and not missing:
        exception = f", except {_join(opened)} (EXPORTER_HOST)" if opened else ""
        yield Finding(OK, f"the service listens on all of them, on loopback only{exception}")


def _check_safe(config: dict[str, str], path: Path) -> Finding:
    wrong = [
        f"{key}={config.get(key, default)} must be {safe}"
        for key, (safe, default) in SAFE.items()
        if config.get(key, default) != safe
    ]
    for key in LISTENERS:
        address = config.get(key)
        host = urlsplit(address).hostname if address and "//" in address else address
        if address and not is_loopback(host or ""):
            wrong.append(f"{key}={address} is not on loopback")
    found = f"{path}: {'; '.join(wrong) or 'safe'}"
    return Finding.judge(not wrong, found, "fix it: these values expose the service")


def _check_archive(settings: Settings, name: str, pinned: str | None) -> Finding:
    """Check the archive that a start uses (archives.provide); raise BadArchive."""
    built, deployed = archives.built(settings, name), archives.deployed(settings, name)
    in_use = archives.digest(deployed) if deployed.is_file() else None
    keep = pinned is not None and in_use == pinned
    source = deployed if keep else built
    expected = pinned or archives.noted_digest(source)
    digest = archives.check(source, name, expected)
    known_answers.answers(source)
    if not expected:
        return Finding(
            WARNING,
            f"{name}: undamaged, but no SHA-256 to compare with",
            f"add {source.name}.sha256 beside it, or `sha256` to {settings.deployment.name}",
        )
    if not keep and in_use not in (None, digest):
        return Finding(
            WARNING,
            f"{name}: the model store holds another build, which the next start will use",
            f"to keep the current one, add its `sha256` to {settings.deployment.name}",
        )
    return Finding(OK, f"{name}: undamaged, {digest[:12]}{', as pinned' if pinned else ''}")


def _listeners(pid: int) -> set[tuple[str, int]]:
    """Return where a process and its children listen; raise NotChecked."""
    try:
        service = psutil.Process(pid)
        return {
            (connection.laddr.ip, connection.laddr.port)
            for process in (service, *service.children(recursive=True))
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
    except psutil.Error as error:
        raise NotChecked(f"cannot inspect process {pid} ({type(error).__name__})") from error


def _join(items: Iterable[object]) -> str:
    return ", ".join(map(str, sorted(items, key=str)))

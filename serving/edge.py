"""The edge: nginx between a network and the service, which itself listens on loopback only.

It runs beside the service, as the same user, and may come and go while that serves. What it does
stands in deploy/nginx/.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from serving.settings import HOST, ROOT, Settings, SettingsError
from serving.torchserve import StartError, die_with_parent, why_closed

SOURCES = ROOT / "deploy" / "nginx"
OPENAPI = ROOT / "docs" / "openapi.yaml"
# Where Debian, and others, put what nginx loads.
MODULES = [Path(f"/usr/{each}/nginx/modules") for each in ("lib", "lib64", "share")]
JS_MODULE = "ngx_http_js_module.so"
INSTALL = "install nginx and its njs module (Debian: apt install nginx libnginx-mod-http-js)"
# A certificate of our own names this, too, so that an edge knows the edges behind it.
NAME = "bloodcells"
DAYS = 365
PATIENCE = 10.0
# Longer than deploy/nginx/edge.conf gives what is in flight.
DRAIN_PATIENCE = 65.0
NODE = re.compile(r"(?:(https?)://)?([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})")


@dataclass(frozen=True)
class EdgeSettings:
    """Where the edge listens, by what it is known, and what stands behind it."""

    host: str = HOST
    certificate: Path | None = None
    certificate_key: Path | None = None
    # Requests a second of one client; twice as many may come at once.
    rate: int = 200
    # Other edges; without any, the service of this machine.
    nodes: tuple[str, ...] = ()
    scheme: str = "http"
    # What nodes' certificates are checked by.
    nodes_ca: Path | None = None

    @classmethod
    def from_environment(cls) -> EdgeSettings:
        """Read EDGE_HOST, EDGE_CERTIFICATE and their like; raise SettingsError."""
        certificate, key = _file("EDGE_CERTIFICATE"), _file("EDGE_CERTIFICATE_KEY")
        if (certificate is None) != (key is None):
            raise SettingsError("EDGE_CERTIFICATE and EDGE_CERTIFICATE_KEY belong together.")
        scheme, nodes = _nodes(os.environ.get("EDGE_NODES", ""))
        ca = _file("EDGE_NODES_CA")
        if nodes and scheme == "https" and ca is None:
            raise SettingsError(
                "Set EDGE_NODES_CA to the file by which the certificates of EDGE_NODES are checked."
            )
        return cls(_host(), certificate, key, _rate(), nodes, scheme, ca)


def run(settings: Settings) -> None:
    """Serve until told to stop, then finish what is in flight; raise StartError, SettingsError."""
    own = EdgeSettings.from_environment()
    program, folder = _nginx(), settings.run_dir / "edge"
    _check_port(own.host, settings.edge_port)
    config = prepare(settings, own, folder)
    address = f"https://{_bracketed(own.host)}:{settings.edge_port}"
    process = subprocess.Popen(
        [program, "-e", "stderr", "-p", f"{folder}/", "-c", str(config)],
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for us: nginx would break off what is in flight.
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGQUIT),
    )
    pass_on = {signal.SIGTERM: signal.SIGQUIT, signal.SIGINT: signal.SIGQUIT}
    # As one tells nginx itself: certificates anew, logs anew.
    pass_on |= {signal.SIGHUP: signal.SIGHUP, signal.SIGUSR1: signal.SIGUSR1}
    for number, meant in pass_on.items():
        signal.signal(number, lambda *_, meant=meant: process.send_signal(meant))
    if _listens(process, own.host, settings.edge_port):
        print(f"the edge is open: {address}\nCtrl-C closes it.", flush=True)
    if code := process.wait():
        raise StartError(f"nginx ended with exit code {code}; above it says why.")
    print("the edge is closed", flush=True)


def prepare(settings: Settings, own: EdgeSettings, folder: Path) -> Path:
    """Write what nginx reads into a folder; return its configuration; raise StartError."""
    for each in (folder / "tmp", settings.run_dir / "logs"):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate, key = own.certificate, own.certificate_key
    if certificate is None or key is None:
        certificate, key = _self_signed(own, folder)
    known = {
        "run_dir": str(settings.run_dir),
        "keys": str(keys_path(settings)),
        "nodes": bool(own.nodes),
    }
    (folder / "settings.json").write_text(json.dumps(known))
    local = [f"{HOST}:{settings.inference_port}"], [f"{HOST}:{settings.frontend_port}"]
    servers, pages = (own.nodes, own.nodes) if own.nodes else local
    filled = {
        # Root's nginx would else have its workers run as somebody who can't read RUN_DIR.
        "user": "user root;" if os.geteuid() == 0 else "",
        "js_module": _quoted(_js_module()),
        "here": _quoted(SOURCES),
        "settings": _quoted(folder / "settings.json"),
        "log": _quoted(settings.run_dir / "logs" / "edge.log"),
        "openapi": _quoted(OPENAPI),
        "listen": f"{_bracketed(own.host)}:{settings.edge_port}",
        "certificate": _quoted(certificate),
        "certificate_key": _quoted(key),
        "rate": str(own.rate),
        "burst": str(2 * own.rate),
        "scheme": own.scheme,
        # What failed is tried again after a while, unless there is no other.
        "servers": _servers(servers),
        "pages": _servers(pages),
        "nodes_tls": _nodes_tls(own),
    }
    text = (SOURCES / "edge.conf").read_text()
    config = folder / "edge.conf"
    config.write_text(re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], text))
    return config


def keys_path(settings: Settings) -> Path:
    """Return where the clients' keys lie: EDGE_KEYS, or in RUN_DIR."""
    return Path(os.environ.get("EDGE_KEYS") or settings.run_dir / "edge-keys.json").resolve()


def _servers(addresses: tuple[str, ...] | list[str]) -> str:
    return "\n        ".join(f"server {each} max_fails=1 fail_timeout=2s;" for each in addresses)


def _nodes_tls(own: EdgeSettings) -> str:
    if own.scheme != "https":
        return ""
    return "\n    ".join(
        [
            "proxy_ssl_verify on;",
            f"proxy_ssl_trusted_certificate {_quoted(own.nodes_ca)};",
            f"proxy_ssl_name {NAME};",
            "proxy_ssl_server_name on;",
            "proxy_ssl_protocols TLSv1.2 TLSv1.3;",
        ]
    )


def _self_signed(own: EdgeSettings, folder: Path) -> tuple[Path, Path]:
    """Return a certificate of our own and its key: the last one, while it is valid."""
    certificate, key = folder / "certificate.pem", folder / "certificate.key"
    host = own.host.strip("[]")
    names = f"DNS:{NAME},DNS:localhost,IP:{HOST}"
    if host not in (HOST, "localhost", "0.0.0.0", "::"):
        numeric = ":" in host or re.fullmatch(r"[0-9.]+", host)
        names += f",{'IP' if numeric else 'DNS'}:{host}"
    week = str(7 * 24 * 3600)
    try:
        if certificate.exists() and key.exists():
            command = ["openssl", "x509", "-noout", "-checkend", week, "-in", str(certificate)]
            if subprocess.run(command, capture_output=True).returncode == 0:
                print(f"the certificate is our own: {certificate}", flush=True)
                return certificate, key
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", str(DAYS)]
        command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={NAME}"]
        command += ["-addext", f"subjectAltName={names}", "-out", str(certificate)]
        command += ["-keyout", str(key)]
        subprocess.run(command, check=True, capture_output=True, umask=0o077)
    except FileNotFoundError:
        raise StartError(
            "There is no openssl to make a certificate: set EDGE_CERTIFICATE."
        ) from None
    except subprocess.CalledProcessError as error:
        raise StartError(f"openssl made no certificate: {error.stderr.decode()}") from error
    print(f"made a certificate of our own, for {DAYS} days: {certificate}", flush=True)
    return certificate, key


def _check_port(host: str, port: int) -> None:
    """Raise StartError if the edge can't listen there."""
    if why := why_closed(host, port):
        raise StartError(
            f"The edge can't listen on {host}, port {port} ({why}): stop what does, "
            "or set EDGE_PORT or EDGE_HOST to another."
        )


def _listens(process: subprocess.Popen[bytes], host: str, port: int) -> bool:
    """Wait until nginx listens; return whether it does."""
    reached = {"0.0.0.0": HOST, "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((reached, port), timeout=1).close()
            return process.poll() is None
        except OSError:
            time.sleep(0.05)
    return False


def _nginx() -> str:
    """Return nginx, which may lie where only root looks; raise StartError."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise StartError(f"There is no nginx: {INSTALL}.")
    return program


def _js_module() -> Path:
    for folder in MODULES:
        if (folder / JS_MODULE).exists():
            return folder / JS_MODULE
    raise StartError(f"nginx lacks {JS_MODULE}: {INSTALL}.")


def _quoted(path: Path | None) -> str:
    """Return a path as nginx's configuration takes it; raise StartError."""
    text = str(path)
    # nginx has no way to write a dollar sign that is no variable.
    if re.search(r'["$\\\n]', text):
        raise StartError(f"nginx can't be told of {text!r}: choose a folder of a plainer name.")
    return f'"{text}"'


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _host() -> str:
    host = os.environ.get("EDGE_HOST") or HOST
    if not re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", host):
        raise SettingsError(f"EDGE_HOST must be an address or a name, not {host!r}.")
    return host


def _rate() -> int:
    value = os.environ.get("EDGE_RATE") or str(EdgeSettings.rate)
    if not value.isdecimal() or not 0 < int(value) <= 100_000:
        raise SettingsError(f"EDGE_RATE must be requests a second, not {value!r}.")
    return int(value)


def _nodes(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the scheme and the addresses of `https://host:port,...`; raise SettingsError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        return "http", ()
    found = [NODE.fullmatch(part) for part in parts]
    schemes = {(match[1] or "https") for match in found if match}
    if None in found or len(schemes) != 1:
        raise SettingsError(
            f"EDGE_NODES must be [https://]HOST:PORT,... or all of http://, not {text!r}."
        )
    return schemes.pop(), tuple(f"{match[2]}:{match[3]}" for match in found if match)


def _file(name: str) -> Path | None:
    value = os.environ.get(name)
    if not value:
        return None
    path = Path(value).resolve()
    if not os.access(path, os.R_OK):
        raise SettingsError(f"{name}: {path} can't be read.")
    return path

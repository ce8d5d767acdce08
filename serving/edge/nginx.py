"""The edge: nginx between a network and the service, which itself listens on loopback only.

It runs beside the service, as the same user, and may come and go while that serves. What it does
stands in deploy/nginx/.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.edge import certificates
from serving.edge import status as edge_watch
from serving.edge.certificates import CertificateError
from serving.files import Locked, lock
from serving.settings import HOST, ROOT, Settings, SettingsError
from serving.torchserve import StartError
from serving.torchserve.ports import why_closed
from serving.torchserve.process import die_with_parent

SOURCES = ROOT / "deploy" / "nginx"
OPENAPI = ROOT / "docs" / "openapi.yaml"
# Where Debian, and others, put what nginx loads.
MODULES = [Path(f"/usr/{each}/nginx/modules") for each in ("lib", "lib64", "share")]
JS_MODULE = "ngx_http_js_module.so"
INSTALL = "install nginx and its njs module (Debian: apt install nginx libnginx-mod-http-js)"
# A certificate of our own names this, too, so that an edge knows the edges behind it.
NAME = "bloodcells"
DAY = 24 * 3600.0
PATIENCE = 10.0
# Seconds between two looks at the certificates.
EVERY = 5.0
# More than most need; each keeps connections to the page, which has few.
PROCESSES = min(os.cpu_count() or 1, 4)
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
    # Seconds until another node is asked for a prediction that one does not answer.
    nodes_timeout: int = 10
    # nginx's own; the machine's cores may be many more than a container may use.
    processes: int = PROCESSES
    # Whether the page is there, which asks no key.
    page: bool = True
    # Addresses of what stands in front and tells by X-Real-IP who asks.
    front: tuple[str, ...] = ()

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
        return cls(
            host=_host(),
            certificate=certificate,
            certificate_key=key,
            rate=_number("EDGE_RATE", cls.rate, 100_000),
            nodes=nodes,
            scheme=scheme,
            nodes_ca=ca,
            nodes_timeout=_number("EDGE_NODES_TIMEOUT", cls.nodes_timeout, 65),
            processes=_number("EDGE_PROCESSES", cls.processes, 16),
            page=_page(),
            front=_front(),
        )


def run(settings: Settings) -> None:
    """Serve until told to stop, then finish what is in flight; raise StartError, SettingsError."""
    # What is written from here on is for its owner alone.
    os.umask(0o077)
    own = EdgeSettings.from_environment()
    program, folder = _nginx(), settings.run_dir / "edge"
    for each in (folder / "tmp", settings.run_dir / "logs"):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with lock(folder / "lock", "An edge already runs"):
            _serve(settings, own, program, folder)
    except Locked as error:
        raise StartError(
            f"{error} in {settings.run_dir}: give this one another RUN_DIR."
        ) from error


def _serve(settings: Settings, own: EdgeSettings, program: str, folder: Path) -> None:
    _check_port(own.host, settings.edge_port)
    config = prepare(settings, own, folder)
    files = [*_pair(own, folder), *([own.nodes_ca] if own.nodes_ca else [])]
    known = _contents(files)
    process = subprocess.Popen(
        [program, "-e", "stderr", "-p", f"{folder}/", "-c", str(config)],
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for us: nginx would break off what is in flight.
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGQUIT),
    )

    def close(*_: object) -> None:
        # From here on, that it does not answer is no fault.
        settings.edge_note.unlink(missing_ok=True)
        process.send_signal(signal.SIGQUIT)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, close)
    # As one tells nginx itself: certificates anew, logs anew.
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _: process.send_signal(number))
    if _listens(process, own.host, settings.edge_port):
        port = settings.edge_port
        edge_watch.note(settings.edge_note, _reached(own.host), port, keys_path(settings))
        address = f"https://{_bracketed(own.host)}:{port}"
        print(f"the edge is open: {address}\nCtrl-C closes it.", flush=True)
    code = _follow(files, known, process)
    # Of a master that was killed, the workers would serve on, with nobody to lead or end them.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if code < 0:
        raise StartError(f"nginx was killed (signal {-code}): for want of memory? See `dmesg`.")
    if code:
        raise StartError(f"nginx ended with exit code {code}; above it says why.")
    settings.edge_note.unlink(missing_ok=True)
    print("the edge is closed", flush=True)


def _follow(files: Sequence[Path], known: bytes, process: subprocess.Popen[bytes]) -> int:
    """Have nginx read these files anew whenever they change; return its exit code."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(EVERY)
        # While they are exchanged one may be away, and nginx keeps those that it has.
        with contextlib.suppress(OSError):
            now = _contents(files)
            if now != known:
                print("the certificates have changed; bad ones are not taken", flush=True)
                process.send_signal(signal.SIGHUP)
            known = now


def _contents(files: Sequence[Path]) -> bytes:
    return b"".join(path.read_bytes() for path in files)


def prepare(settings: Settings, own: EdgeSettings, folder: Path) -> Path:
    """Write what nginx reads into a folder; return its configuration; raise StartError."""
    certificate, key = _certificate(own, folder)
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
        "processes": str(own.processes),
        "settings": _quoted(folder / "settings.json"),
        "log": _quoted(settings.run_dir / "logs" / "edge.log"),
        "openapi": _quoted(OPENAPI),
        "listen": f"{_bracketed(own.host)}:{settings.edge_port}",
        "certificate": _quoted(certificate),
        "certificate_key": _quoted(key),
        "rate": str(own.rate),
        "burst": str(2 * own.rate),
        "scheme": own.scheme,
        # A node that is cut off does not even refuse. A version's own responseTimeout is 60 s.
        "connect_timeout": "1s" if own.nodes else "2s",
        "prediction_timeout": str(own.nodes_timeout if own.nodes else 65),
        "front": _told_by(own.front),
        "page_closed": "" if own.page else "return 404;",
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
    # Not where a link leads now: a mounted Secret is exchanged by another link.
    return Path(os.environ.get("EDGE_KEYS") or settings.run_dir / "edge-keys.json").absolute()


def _servers(addresses: tuple[str, ...] | list[str]) -> str:
    return "\n        ".join(f"server {each} max_fails=1 fail_timeout=2s;" for each in addresses)


def _told_by(front: tuple[str, ...]) -> str:
    """Return by whom and how the edge is told who asks."""
    lines = [f"set_real_ip_from {each};" for each in front]
    return "\n    ".join([*lines, "real_ip_header X-Real-IP;"] if front else [])


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


def _pair(own: EdgeSettings, folder: Path) -> tuple[Path, Path]:
    """Return where the certificate and its key lie: without any, of our own."""
    if own.certificate and own.certificate_key:
        return own.certificate, own.certificate_key
    return folder / "certificate.pem", folder / "certificate.key"


def _certificate(own: EdgeSettings, folder: Path) -> tuple[Path, Path]:
    """Return the certificate and its key; make one of our own where it must; raise StartError.

    Only at a start: whoever knows it by its file needs the new one.
    """
    certificate, key = _pair(own, folder)
    if own.certificate is None and _is_due(certificate, key, _names(own)):
        try:
            certificates.sign(certificate, key, _names(own), NAME)
        except CertificateError as error:
            raise StartError(str(error)) from error
        certificate.with_suffix(".names").write_text(_names(own))
        print(f"made a certificate of our own: {certificate}", flush=True)
    return certificate, key


def _is_due(certificate: Path, key: Path, names: str) -> bool:
    """Tell whether our own certificate is not there, is for other names, or ends soon."""
    named = certificate.with_suffix(".names")
    if not (certificate.exists() and key.exists() and named.exists()):
        return True
    end = certificates.expires(certificate.read_text())
    ends_soon = end is not None and end - time.time() < certificates.LAST_DAYS * DAY
    return ends_soon or named.read_text() != names


def _names(own: EdgeSettings) -> str:
    host = own.host.strip("[]")
    names = f"DNS:{NAME},DNS:localhost,IP:{HOST}"
    if host not in (HOST, "localhost", "0.0.0.0", "::"):
        numeric = ":" in host or re.fullmatch(r"[0-9.]+", host)
        names += f",{'IP' if numeric else 'DNS'}:{host}"
    return names


def _check_port(host: str, port: int) -> None:
    """Raise StartError if the edge can't listen there."""
    if why := why_closed(host, port):
        raise StartError(
            f"The edge can't listen on {host}, port {port} ({why}): stop what does, "
            "or set EDGE_PORT or EDGE_HOST to another."
        )


def _listens(process: subprocess.Popen[bytes], host: str, port: int) -> bool:
    """Wait until nginx listens; return whether it does."""
    reached = _reached(host)
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((reached, port), timeout=1).close()
            return process.poll() is None
        except OSError:
            time.sleep(0.05)
    return False


def _reached(host: str) -> str:
    """Return by what address this machine reaches what listens on a host."""
    plain = host.strip("[]")
    return {"0.0.0.0": HOST, "::": "::1"}.get(plain, plain)


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


def _number(name: str, default: int, most: int) -> int:
    value = os.environ.get(name) or str(default)
    if not value.isdecimal() or not 0 < int(value) <= most:
        raise SettingsError(f"{name} must be a number from 1 to {most}, not {value!r}.")
    return int(value)


def _page() -> bool:
    value = os.environ.get("EDGE_PAGE") or "on"
    if value not in ("on", "off"):
        raise SettingsError(f"EDGE_PAGE must be on or off, not {value!r}.")
    return value == "on"


def _front() -> tuple[str, ...]:
    value = os.environ.get("EDGE_FRONT", "")
    try:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        return tuple(str(ipaddress.ip_network(part)) for part in parts)
    except ValueError as error:
        raise SettingsError(f"EDGE_FRONT must be addresses or networks: {error}.") from error


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
    hosts = {match[2] for match in found if match}
    if schemes == {"http"} and not hosts <= {HOST, "localhost"}:
        raise SettingsError("EDGE_NODES by http:// would send keys and images in the clear.")
    return schemes.pop(), tuple(f"{match[2]}:{match[3]}" for match in found if match)


def _file(name: str) -> Path | None:
    value = os.environ.get(name)
    if not value:
        return None
    # Not where a link leads now: a mounted Secret is exchanged by another link.
    path = Path(value).absolute()
    if not os.access(path, os.R_OK):
        raise SettingsError(f"{name}: {path} can't be read.")
    return path

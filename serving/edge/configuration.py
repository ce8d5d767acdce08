"""The configuration of nginx: deploy/nginx/edge.conf, filled in."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path

from serving.edge.settings import EdgeSettings, keys_path
from serving.settings import HOST, ROOT, Settings
from serving.torchserve import StartError

SOURCES = ROOT / "deploy" / "nginx"
OPENAPI = ROOT / "docs" / "openapi.yaml"
INSTALL = "install nginx and its njs module (Debian: apt install nginx libnginx-mod-http-js)"
MODULES = [Path(f"/usr/{each}/nginx/modules") for each in ("lib", "lib64", "share")]
JS_MODULE = "ngx_http_js_module.so"
# For each nginx process: many more than clients have requests in progress, because a connection
# without a request can be held for 10 s.
CONNECTIONS = 16_384
# Open files that are no connections.
OTHER_FILES = 256


def write(
    settings: Settings, own: EdgeSettings, certificate: Path, key: Path, folder: Path
) -> Path:
    """Write what nginx reads to a folder; return its configuration; raise StartError."""
    known = {
        "run_dir": str(settings.run_dir),
        "keys": str(keys_path(settings)),
        "in_flight": str(_in_flight(folder)),
        "page": f"{settings.frontend_url}/static/icon.svg",
    }
    (folder / "settings.json").write_text(json.dumps(known))
    files = _open_files()
    values = {
        # Started by root, nginx runs its workers as a user who cannot read RUN_DIR.
        "user": "user root;" if os.geteuid() == 0 else "",
        "js_module": _quoted(_js_module()),
        "sources": _quoted(SOURCES),
        "limits": _quoted(SOURCES / "limits.conf"),
        "refusals": _quoted(SOURCES / "refusals.conf"),
        "processes": str(own.processes),
        "files": str(files),
        "connections": str(files - OTHER_FILES),
        "settings": _quoted(folder / "settings.json"),
        "log": _quoted(settings.run_dir / "logs" / "edge.log"),
        "openapi": _quoted(OPENAPI),
        "listen": f"{bracketed(own.host)}:{settings.edge_port}",
        "certificate": _quoted(certificate),
        "certificate_key": _quoted(key),
        "rate": str(own.rate),
        "burst": str(2 * own.rate),
        "trusted_proxies": "".join(f"set_real_ip_from {each}; " for each in own.front),
        "page_closed": "" if own.page else "return 404;",
        "torchserve": f"{HOST}:{settings.inference_port}",
        "page": f"{HOST}:{settings.frontend_port}",
    }
    template = (SOURCES / "edge.conf").read_text()
    config = folder / "edge.conf"
    config.write_text(re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template))
    return config


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _open_files() -> int:
    """Return how many files an nginx process may open: as many as it needs and is allowed."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CONNECTIONS + OTHER_FILES
    return needed if allowed == resource.RLIM_INFINITY else min(needed, allowed)


def _in_flight(folder: Path) -> Path:
    """Return an empty folder for the files of the requests that TorchServe is working on."""
    path = folder / "in-flight"
    path.mkdir(exist_ok=True)
    for left in path.iterdir():
        left.unlink()
    return path


def _js_module() -> Path:
    for folder in MODULES:
        if (folder / JS_MODULE).exists():
            return folder / JS_MODULE
    raise StartError(f"nginx lacks {JS_MODULE}: {INSTALL}.")


def _quoted(path: Path) -> str:
    """Quote a path for nginx; raise StartError."""
    # nginx cannot escape a dollar sign.
    if re.search(r'["$\\\n]', str(path)):
        raise StartError(f"nginx cannot use the path {str(path)!r}: choose a plainer name.")
    return f'"{path}"'

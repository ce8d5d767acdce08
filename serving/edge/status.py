"""The state of the edge, for the service's metrics and `doctor`."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path

from serving.edge import certificates
from serving.edge.keys import KeyFile, KeyFileError

TIMEOUT = 4.0


@dataclass(frozen=True)
class Seen:
    """Whether the edge answers, when its certificate expires, and what is wrong with its keys."""

    address: str
    answers: bool
    # In seconds since the epoch; None if it does not answer.
    expires: float | None
    keys_fault: str | None


def note(path: Path, host: str, port: int, keys: Path) -> None:
    """Write the address of an open edge and the path of its keys."""
    path.write_text(json.dumps({"host": host, "port": port, "keys": str(keys)}))


def look(path: Path) -> Seen | None:
    """Check the edge that wrote this note; return None if there is no note."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    host, port = found["host"], found["port"]
    certificate = _answer(host, port)
    fault = None
    try:
        KeyFile(Path(found["keys"])).read()
    except KeyFileError as error:
        fault = str(error)
    return Seen(
        f"{host}:{port}",
        certificate is not None,
        certificates.expires(certificate.encode()) if certificate else None,
        fault,
    )


def _answer(host: str, port: int) -> str | None:
    """Return the certificate (PEM) of an edge that answers /healthz; None if it does not."""
    # It is on this machine; its certificate need not name the address used here.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
    try:
        with contextlib.closing(connection):
            connection.connect()
            shown = connection.sock.getpeercert(binary_form=True)
            connection.request("GET", "/healthz")
            answers = connection.getresponse().status == 200
        return ssl.DER_cert_to_PEM_cert(shown) if answers and shown else None
    except (OSError, http.client.HTTPException):
        return None

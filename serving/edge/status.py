"""What those beside the edge can tell of it: the service's metrics, and `doctor`."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path

from serving.edge import certificates
from serving.edge.keys import KeyFile, KeyFileError

# Seconds that it has to answer.
TIMEOUT = 4.0


@dataclass(frozen=True)
class Seen:
    """Whether the edge answers, how long its certificate is valid, what is wrong with its keys."""

    address: str
    answers: bool
    # In seconds since the epoch; None if nobody knows.
    expires: float | None
    keys_fault: str | None


def note(path: Path, host: str, port: int, keys: Path) -> None:
    """Write down how an open edge is found."""
    path.write_text(json.dumps({"host": host, "port": port, "keys": str(keys)}))


def look(path: Path) -> Seen | None:
    """Look at the edge that has left its note there; None where none is open."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    host, port = found["host"], found["port"]
    certificate = _answer(host, port)
    expires = certificates.expires(certificate) if certificate else None
    fault = None
    try:
        KeyFile(Path(found["keys"])).read()
    except KeyFileError as error:
        fault = str(error)
    return Seen(f"{host}:{port}", certificate is not None, expires, fault)


def _answer(host: str, port: int) -> str | None:
    """Return the certificate that the edge shows as it says that it lives; None if it doesn't."""
    # It is here; whether its certificate suits its clients, is not the question.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
    try:
        with contextlib.closing(connection):
            connection.connect()
            shown = connection.sock.getpeercert(binary_form=True)
            connection.request("GET", "/healthz")
            lives = connection.getresponse().status == 200
        return ssl.DER_cert_to_PEM_cert(shown) if lives and shown else None
    except (OSError, http.client.HTTPException):
        return None

"""Certificates, by the machine's openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

DAYS = 365
# An alert comes in these last ones (deploy/prometheus/rules.yml).
LAST_DAYS = 14


class CertificateError(Exception):
    """No certificate can be made; the message says why."""


def sign(certificate: Path, key: Path, names: str, common: str) -> None:
    """Write a certificate that signs itself, and its key; raise CertificateError.

    The names are those of openssl's subjectAltName: `DNS:bloodcells,IP:127.0.0.1`.
    """
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", str(DAYS)]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={common}"]
    command += ["-addext", f"subjectAltName={names}", "-out", str(certificate)]
    command += ["-keyout", str(key)]
    try:
        subprocess.run(command, check=True, capture_output=True, umask=0o077)
    except FileNotFoundError:
        raise CertificateError(
            "There is no openssl to make a certificate: set EDGE_CERTIFICATE."
        ) from None
    except subprocess.CalledProcessError as error:
        raise CertificateError(f"openssl made no certificate: {error.stderr.decode()}") from error


def expires(certificate: str) -> float | None:
    """Return when a certificate (PEM) expires, in seconds since the epoch; None if nobody knows."""
    command = ["openssl", "x509", "-noout", "-enddate"]
    try:
        told = subprocess.run(
            command, input=certificate, check=True, capture_output=True, text=True
        ).stdout
        return ssl.cert_time_to_seconds(told.strip().removeprefix("notAfter="))
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None

"""TLS certificates: the edge's own, and the expiry date of any."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serving.edge.settings import EdgeSettings
from serving.files import atomic_write
from serving.settings import HOST

# The common name, and the name by which a load balancer verifies the edges behind it.
NAME = "bloodcells"
VALID_DAYS = 365
# The own certificate is renewed at a start in its last days; deploy/prometheus/rules.yml alerts.
LAST_DAYS = 14


def provide(settings: EdgeSettings, folder: Path) -> tuple[Path, Path]:
    """Return the certificate and its key; create or renew the edge's own if none is configured.

    The own certificate is renewed only at a start, because clients that trust its file need a copy.
    """
    if settings.certificate and settings.certificate_key:
        return settings.certificate, settings.certificate_key
    certificate, key = folder / "certificate.pem", folder / "certificate.key"
    names = _names(settings.host)
    if not key.exists() or _is_due(certificate, names):
        create(certificate, key, names)
        print(f"created a self-signed certificate: {certificate}", flush=True)
    return certificate, key


def create(certificate: Path, key: Path, names: list[str]) -> None:
    """Write a self-signed certificate for some host names and addresses, and its private key."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with atomic_write(key, 0o600) as file:
        file.write(pem)
    with atomic_write(certificate, 0o600) as file:
        file.write(signed.public_bytes(serialization.Encoding.PEM))


def expires(certificate: bytes) -> float:
    """Return when a certificate (PEM) expires, in seconds since the epoch; raise ValueError."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()


def _is_due(certificate: Path, names: list[str]) -> bool:
    """Return whether a certificate is missing, has other names or expires soon."""
    with contextlib.suppress(FileNotFoundError, ValueError, x509.ExtensionNotFound):
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        has = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        left = found.not_valid_after_utc - datetime.now(UTC)
        return list(has) != [_name(each) for each in names] or left.days < LAST_DAYS
    return True


def _names(host: str) -> list[str]:
    names, host = [NAME, "localhost", HOST], host.strip("[]")
    return names if host in (*names, "0.0.0.0", "::") else [*names, host]


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)

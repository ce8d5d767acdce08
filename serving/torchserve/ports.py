"""Check that the service's ports are free."""

from __future__ import annotations

import socket

from serving.settings import Settings
from serving.torchserve import StartError


def check_ports(settings: Settings) -> None:
    """Raise StartError if two ports are the same or another process listens on one of them."""
    names: dict[int, str] = {}
    for variable, port in settings.ports.items():
        if port in names:
            raise StartError(f"{names[port]} and {variable} are both {port}: change one of them.")
        names[port] = variable
    for variable, port in settings.ports.items():
        if why := why_closed(settings.host_of(variable), port):
            raise StartError(
                f"Port {port} can't be used ({why}): stop the other program, or "
                f"set {variable} to another port."
            )


def why_closed(host: str, port: int) -> str | None:
    """Return why a new process can't listen on a port, or None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            return str(error.strerror)
    return None

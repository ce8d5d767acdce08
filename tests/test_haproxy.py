"""The configuration of HAProxy; `make nodes` shows how it behaves when nodes fail."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from edges import wait

from serving.edge import certificates
from serving.settings import ROOT
from testing.connections import readable
from testing.service import free_ports

CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"


@pytest.fixture
def program() -> str:
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if not found and not os.environ.get("CI"):
        pytest.skip("haproxy is not installed")
    return str(found)


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """Return a value for every variable of the configuration; no node listens."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "certificate.key"
    certificates.create(certificate, key, ["bloodcells"])
    pair = tmp_path / "pair.pem"
    pair.write_text(certificate.read_text() + key.read_text())
    return {
        "FRONT_ADDRESS": "127.0.0.1:9443",
        "FRONT_CERTIFICATE": str(pair),
        "FRONT_SOCKET": str(tmp_path / "admin.sock"),
        "NODE_1": "127.0.0.1:9501",
        "NODE_2": "127.0.0.1:9502",
        "NODE_3": "127.0.0.1:9503",
        "NODES_CA": str(certificate),
        "PREDICTION_TIMEOUT": "3s",
    }


def test_haproxy_accepts_its_configuration_and_every_variable(
    program: str, variables: dict[str, str]
) -> None:
    assert set(re.findall(r"presetenv (\w+)", CONFIGURATION.read_text())) == set(variables)

    def check(**changed: str) -> int:
        command = [program, "-c", "-f", str(CONFIGURATION)]
        return subprocess.run(command, env=os.environ | variables | changed).returncode

    assert check() == 0
    # Each variable is used: a wrong value is an error.
    for name in variables:
        assert check(**{name: "nowhere:x"}) == 1, name


@contextlib.contextmanager
def running(program: str, variables: dict[str, str], address: str) -> Iterator[Callable[..., Any]]:
    """Run HAProxy on a free port of an address; yield what connects to it from an address."""
    (port,) = free_ports(1)
    environment = os.environ | variables | {"FRONT_ADDRESS": f"{address}:{port}"}
    with contextlib.ExitStack() as stack:

        def connect(source: str) -> socket.socket:
            made = socket.create_connection((address, port), 60, (source, 0))
            return stack.enter_context(made)

        def listens() -> bool:
            with contextlib.suppress(ConnectionRefusedError):
                connect(address)
                return True
            return False

        started = subprocess.Popen(
            [program, "-f", str(CONFIGURATION)], env=environment, stdout=subprocess.DEVNULL
        )
        stack.callback(started.wait)
        stack.callback(started.kill)
        wait(listens)
        yield connect


@pytest.mark.live
def test_an_address_has_a_share_of_the_connections(program: str, variables: dict[str, str]) -> None:
    with running(program, variables, "127.0.0.1") as connect:
        held = [connect("127.0.0.2") for _ in range(301)]
        assert len(readable(held, 60)) == 1
        context = ssl.create_default_context(cafile=variables["NODES_CA"])
        context.wrap_socket(connect("127.0.0.3"), server_hostname="bloodcells").close()


def has_version_6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as made:
        made.bind(("::1", 0))
        return True
    return False


@pytest.mark.live
@pytest.mark.skipif(not has_version_6(), reason="this machine has no IPv6")
def test_a_network_of_version_6_counts_as_one(program: str, variables: dict[str, str]) -> None:
    def counted() -> list[str]:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(variables["FRONT_SOCKET"])
            admin.sendall(b"show table front\n")
            return re.findall(r"key=(\S+)", admin.makefile().read())

    with running(program, variables, "::1"):
        wait(counted)
        # The start of ::1, of 64 bits.
        assert counted() == ["::"]

"""The configuration of HAProxy; `make nodes` shows how it behaves when nodes fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from serving.edge import certificates
from serving.settings import ROOT

CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"


def test_haproxy_accepts_its_configuration_and_every_variable(tmp_path: Path) -> None:
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program and not os.environ.get("CI"):
        pytest.skip("haproxy is not installed")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "certificate.key"
    certificates.create(certificate, key, ["bloodcells"])
    pair = tmp_path / "pair.pem"
    pair.write_text(certificate.read_text() + key.read_text())
    variables = {
        "FRONT_ADDRESS": "127.0.0.1:9443",
        "FRONT_CERTIFICATE": str(pair),
        "FRONT_SOCKET": str(tmp_path / "admin.sock"),
        "NODE_1": "127.0.0.1:9501",
        "NODE_2": "127.0.0.1:9502",
        "NODE_3": "127.0.0.1:9503",
        "NODES_CA": str(certificate),
        "PREDICTION_TIMEOUT": "3s",
    }
    assert set(re.findall(r"presetenv (\w+)", CONFIGURATION.read_text())) == set(variables)

    def check(**changed: str) -> int:
        command = [str(program), "-c", "-f", str(CONFIGURATION)]
        return subprocess.run(command, env=os.environ | variables | changed).returncode

    assert check() == 0
    # Each variable is used: a wrong value is an error.
    for name in variables:
        assert check(**{name: "nowhere:x"}) == 1, name

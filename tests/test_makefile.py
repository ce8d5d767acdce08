"""The Makefile's commands."""

from __future__ import annotations

import subprocess

from serving.settings import ROOT


def make(*arguments: str) -> str:
    return subprocess.check_output(["make", "--directory", ROOT, *arguments], text=True)


def test_every_command_is_listed_with_a_help_text() -> None:
    [phony] = [
        line.partition(":")[2].split()
        for line in (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
        if line.startswith(".PHONY")
    ]
    listed = {line.split()[1] for line in make("help").splitlines() if line.startswith("  make ")}
    assert listed == set(phony)

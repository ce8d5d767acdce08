"""The command line of the service, without TorchServe behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment_of, free_settings

from serving import __main__ as supervisor
from serving.settings import ROOT
from serving.torchserve import StartError


def test_only_one_holds_the_folder(tmp_path: Path) -> None:
    with supervisor._pid_file(tmp_path):
        assert supervisor._running(tmp_path) == os.getpid()
        with pytest.raises(StartError, match="already runs"), supervisor._pid_file(tmp_path):
            pass
        assert (tmp_path / "pid").exists()
    assert supervisor._running(tmp_path) is None


def test_a_pid_file_left_behind_means_nothing(tmp_path: Path) -> None:
    """Also when another process has that number by now: this one, here."""
    (tmp_path / "pid").write_text(str(os.getpid()))
    assert supervisor._running(tmp_path) is None
    with supervisor._pid_file(tmp_path):
        assert supervisor._running(tmp_path) == os.getpid()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("INFERENCE_PORT", "many", "INFERENCE_PORT must be a port number"),
        ("MODEL_STORE", "nowhere", "bloodcells-2.0.mar is missing in"),
    ],
)
def test_a_wrong_setting_is_one_clear_sentence(
    tmp_path: Path, variable: str, value: str, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving", "run"],
        env=environment_of(free_settings(tmp_path / "run")) | {variable: value},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert supervisor._running(tmp_path / "run") is None

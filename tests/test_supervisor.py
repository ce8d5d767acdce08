"""The service's start and stop, without TorchServe behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import free_settings

from serving.deployment.routing import FILE, Routing, RoutingFile
from serving.settings import ROOT, Settings
from serving.supervisor import service as supervisor
from serving.torchserve.process import StartError, remove_leftovers
from testing.service import environment_of


def test_only_one_holds_the_folder(tmp_path: Path) -> None:
    with supervisor._pid_file(tmp_path):
        assert supervisor.running(tmp_path) == os.getpid()
        with pytest.raises(StartError, match="already runs"), supervisor._pid_file(tmp_path):
            pass
        assert (tmp_path / "pid").exists()
    assert supervisor.running(tmp_path) is None


def test_a_pid_file_left_behind_means_nothing(tmp_path: Path) -> None:
    """Also when another process has that number by now: this one, here."""
    (tmp_path / "pid").write_text(str(os.getpid()))
    assert supervisor.running(tmp_path) is None
    with supervisor._pid_file(tmp_path):
        assert supervisor.running(tmp_path) == os.getpid()


def test_stop_takes_away_what_a_killed_service_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RoutingFile(tmp_path).publish(Routing("1.0", ("1.0",)))
    supervisor.stop(Settings(run_dir=tmp_path))
    assert capsys.readouterr().out == "nothing runs\n"
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(("name", "kept"), [("bloodcells-x", False), ("precious", True)])
def test_only_a_scratch_folder_is_removed(tmp_path: Path, name: str, kept: bool) -> None:
    scratch, run_dir = tmp_path / name, tmp_path / "run"
    scratch.mkdir()
    run_dir.mkdir()
    (run_dir / "scratch").write_text(str(scratch))
    remove_leftovers(run_dir)
    assert scratch.exists() == kept


def test_a_folder_of_ones_own_is_closed_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    supervisor.close_to_others(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_folder_of_somebody_elses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(StartError, match="belongs to another user"):
        supervisor.close_to_others(tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("INFERENCE_PORT", "many", "INFERENCE_PORT must be a port number"),
        ("MODEL_STORE", "nowhere", "bloodcells-1.0.mar is missing: run `make mar`"),
        ("DEPLOYMENT", "nowhere.yaml", "nowhere.yaml can't be read: No such file"),
        ("DEPLOYMENT", "README.md", "README.md is not YAML"),
        ("CONFIG", "nowhere.properties", "nowhere.properties can't be read: No such file"),
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
    assert supervisor.running(tmp_path / "run") is None

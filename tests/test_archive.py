"""The archive: reproducible, and complete for an unmodified TorchServe."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from serving.deployment import archives, known_answers
from serving.settings import ROOT, Settings
from serving.torchserve.java import find_java
from testing.service import free_ports

ARCHIVE = archives.built(Settings(), "1.0")


def build(version: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / "scripts" / "build_mar.sh", version],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the sources of an archive, so that the real store does not change."""
    for name in ("handler", "models", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "serving").mkdir()
    for name in ("__init__.py", "files.py"):
        shutil.copy(ROOT / "serving" / name, tmp_path / "serving")
    return tmp_path


def test_builds_at_once_have_the_same_bytes(copy: Path) -> None:
    """Whatever the dates of the files are: ARCHIVE is an earlier build."""
    for path in (copy / "handler").iterdir():
        os.utime(path, (0, 10**9))
    command = [copy / "scripts" / "build_mar.sh", "1.0"]
    environment = os.environ | {"PYTHON": sys.executable}
    builds = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [each.wait() for each in builds] == [0, 0]
    built = copy / "model_store" / ARCHIVE.name
    assert built.read_bytes() == ARCHIVE.read_bytes()
    assert archives.noted_digest(built) == archives.digest(ARCHIVE)


def test_its_hash_is_beside_it_as_sha256sum_writes_it() -> None:
    found = archives.check(ARCHIVE, "1.0", archives.noted_digest(ARCHIVE))
    noted = ARCHIVE.with_name(f"{ARCHIVE.name}.sha256").read_text()
    assert noted == f"{found}  {ARCHIVE.name}\n"


def test_a_version_without_files_is_refused(copy: Path) -> None:
    done = build("7.0", copy)
    assert done.returncode == 1
    assert "make train VERSION=7.0" in done.stderr


@pytest.mark.parametrize("card_has_hashes", [True, False])
def test_files_that_do_not_match_the_card_are_refused(copy: Path, card_has_hashes: bool) -> None:
    folder = copy / "models" / "1.0"
    (folder / "network.onnx").write_bytes(b"another")
    if not card_has_hashes:
        card = json.loads((folder / "card.json").read_text())
        del card["sha256"]
        (folder / "card.json").write_text(json.dumps(card))
    done = build("1.0", copy)
    assert done.returncode == 1
    assert "does not match its SHA-256 in card.json" in done.stderr
    assert "make train VERSION=1.0" in done.stderr
    assert not list((copy / "model_store").glob("*.mar"))


def test_a_card_without_classes_is_refused(copy: Path) -> None:
    path = copy / "models" / "1.0" / "card.json"
    path.write_text(path.read_text().replace('"classes"', '"labels"'))
    done = build("1.0", copy)
    assert done.returncode == 1
    assert 'models/1.0/card.json has no "classes".' in done.stderr


@pytest.mark.live
@pytest.mark.long
def test_a_stock_torchserve_serves_it(tmp_path: Path) -> None:
    """The launcher and the settings that come with TorchServe, in an empty folder."""
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(ARCHIVE, store)
    inference, *others = free_ports(5)
    names = ("management_address", "metrics_address")
    settings = [f"inference_address=http://127.0.0.1:{inference}"]
    settings += [f"{n}=http://127.0.0.1:{p}" for n, p in zip(names, others, strict=False)]
    settings += [f"grpc_inference_port={others[2]}", f"grpc_management_port={others[3]}"]
    (tmp_path / "stock.properties").write_text("\n".join(settings) + "\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"JAVA_HOME": str(find_java().parent.parent), "TEMP": str(tmp_path)}
    command = [Path(sys.executable).parent / "torchserve", "--start", "--foreground", "--ncs"]
    command += ["--disable-token-auth", "--ts-config", "stock.properties"]
    command += ["--model-store", "store", "--models", f"bloodcells={ARCHIVE.name}"]
    with (tmp_path / "output").open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        answer = ask(f"http://127.0.0.1:{inference}/predictions/bloodcells", patience=600)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    known = known_answers.answers(ARCHIVE)["neutrophil.png"]
    assert known_answers.agree(answer["probabilities"], known)


def ask(url: str, patience: float) -> dict[str, dict[str, float]]:
    """Retry until there is an answer; only a hang reaches the limit."""
    deadline = time.monotonic() + patience
    image = (known_answers.SAMPLES / "neutrophil.png").read_bytes()
    headers = {"Content-Type": "application/octet-stream"}
    while time.monotonic() < deadline:
        try:
            response = requests.post(url, data=image, headers=headers, timeout=patience)
            if response.status_code == 200:
                answer: dict[str, dict[str, float]] = response.json()
                return answer
        except requests.ConnectionError:
            pass
        time.sleep(0.5)
    raise AssertionError("no answer in time")

"""The comparison with a GPU, as far as none is needed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu
from handler.engine import Engine
from serving.deployment import archives
from serving.settings import ROOT, Settings


def test_only_the_device_of_an_archive_is_another(tmp_path: Path) -> None:
    archive = archives.built(Settings(), "1.0")
    gpu.with_device(archive, tmp_path, "gpu")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / archive.name) as new:
        assert old.namelist() == new.namelist()
        differ = [name for name in old.namelist() if old.read(name) != new.read(name)]
        assert differ == ["model-config.yaml"]
        assert b"deviceType: gpu " in new.read("model-config.yaml")


def test_the_networks_take_the_inputs_that_are_timed() -> None:
    for version, each in gpu.INPUTS.items():
        for name, (shape, kind) in each.items():
            engine = Engine((ROOT / "models" / version / name).read_bytes(), 1, None)
            assert len(engine(np.zeros((2, *shape), kind))) == 2


def test_the_page_tells_the_run() -> None:
    found: dict[str, Any] = json.loads(gpu.RESULTS.read_text())
    page = gpu.page(found)
    assert page == gpu.RESULTS.with_suffix(".md").read_text()
    found["services"][0]["many"]["failed"] = 7
    assert "s | 7 |" in gpu.page(found)

"""What runs the networks: the same as torch says, on the device that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import CARDS, VERSIONS

from handler import engine
from handler.engine import Engine
from handler.networks import Locator, load_networks
from serving.settings import ROOT
from training.export import in_torch, to_onnx

GRAPHS = [(version, name) for version in VERSIONS for name in ("network", "locator")]
GRAPHS = [(version, name) for version, name in GRAPHS if f"{name}.onnx" in CARDS[version]["sha256"]]


@pytest.mark.parametrize("count", [1, 2, 16])
@pytest.mark.parametrize(("version", "name"), GRAPHS)
def test_what_serves_says_what_torch_says(version: str, name: str, count: int) -> None:
    folder = ROOT / "models" / version
    served = Engine((folder / f"{name}.onnx").read_bytes(), 1, None)
    [wanted] = served._session.get_inputs()
    random = np.random.default_rng(count)
    size = (count, *wanted.shape[1:])
    inputs: Any = random.random(size, np.float32)
    if "uint8" in wanted.type:
        inputs = random.integers(0, 256, size, np.uint8)
    expected = in_torch(load_networks(folder, CARDS[version])[name])(inputs)
    assert served(inputs) == pytest.approx(expected, abs=1e-4)


class Session:
    """Stands in for a session of ONNX Runtime, and keeps what it was told."""

    def __init__(self, _model: bytes, _options: Any, providers: list[Any]) -> None:
        self.providers = providers

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"name": "inputs"})]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.onnxruntime, "InferenceSession", Session)
    known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(engine.onnxruntime, "get_available_providers", lambda: known)


@pytest.mark.usefixtures("gpus")
def test_the_device_is_the_one_asked_for() -> None:
    assert Engine(b"", 1, None)._session.providers == ["CPUExecutionProvider"]
    first, rest = Engine(b"", 1, 3)._session.providers
    assert first == ("CUDAExecutionProvider", {"device_id": 3})
    assert rest == "CPUExecutionProvider"


def test_a_gpu_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="install onnxruntime-gpu"):
        Engine(b"", 1, 0)


def test_a_graph_takes_any_number_of_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Locator()
    to_onnx(network, tmp_path / "locator.onnx")
    served = Engine((tmp_path / "locator.onnx").read_bytes(), 1, None)
    for count in (1, 3, 5):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 128, 128, 3), np.uint8)
        assert served(pixels) == pytest.approx(in_torch(network)(pixels), abs=1e-4)

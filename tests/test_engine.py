"""The engine computes the same as torch, on the configured device."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import CARDS, VERSIONS

from handler import engine
from handler.bloodcells_handler import BloodCellHandler
from handler.engine import Engine
from scripts.draw_cells import draw_cell
from serving.settings import ROOT
from training.export import in_torch
from training.networks import load_networks
from training.protocol import FIELD_CLASSES

GRAPHS = [
    (version, name.removesuffix(".onnx"))
    for version in VERSIONS
    for name in CARDS[version]["sha256"]
    if name.endswith(".onnx")
]


@pytest.mark.parametrize(("version", "name"), GRAPHS)
def test_a_graph_computes_what_torch_does_for_any_number_of_inputs(version: str, name: str) -> None:
    """Nearly, if in 8 bits.

    Releases of ONNX Runtime differ in `count_include_pad`, so no graph may set that flag.
    """
    folder = ROOT / "models" / version
    graph = (folder / f"{name}.onnx").read_bytes()
    assert b"count_include_pad\x18\x01" not in graph
    served = Engine(graph, 1, None)
    [wanted] = served._session.get_inputs()
    _count, height, width, _channels = wanted.shape
    cells = [draw_cell(label, 0, (width, height)) for label in FIELD_CLASSES] * 2
    network = in_torch(load_networks(folder, CARDS[version])[name])
    for count in (1, 2, 8):
        inputs = np.stack([np.asarray(cell) for cell in cells[:count]])
        expected = network(inputs)
        rounding = 0.1 if b"QuantizeLinear" in graph else 2e-4
        assert abs(served(inputs) - expected).max() < rounding * abs(expected).max()


class Session:
    """Stands in for a session of ONNX Runtime, and records how it is used."""

    def __init__(self, _model: bytes, _options: Any, providers: list[Any]) -> None:
        self.providers = providers

    def get_providers(self) -> list[str]:
        return [name if isinstance(name, str) else name[0] for name in self.providers]

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"name": "inputs"})]

    def run(self, _outputs: None, inputs: dict[str, Any]) -> list[Any]:
        self.sizes = [*getattr(self, "sizes", []), len(inputs["inputs"])]
        return [inputs["inputs"]]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.onnxruntime, "InferenceSession", Session)
    known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(engine.onnxruntime, "get_available_providers", lambda: known)


@pytest.mark.usefixtures("gpus")
def test_the_device_is_the_configured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a GPU needs CUDA's libraries."""
    loaded: list[bool] = []
    monkeypatch.setattr(engine.onnxruntime, "preload_dlls", lambda: loaded.append(True))
    assert Engine(b"", 1, None)._session.providers == ["CPUExecutionProvider"]
    assert not loaded
    first, rest = Engine(b"", 1, 3)._session.providers
    assert first == ("CUDAExecutionProvider", {"device_id": 3, "use_tf32": 0})
    assert rest == "CPUExecutionProvider"
    assert loaded


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("gpu", "sizes"), [(0, [8, 8, 16]), (None, [3, 8, 11])])
def test_a_gpu_gets_full_batches(gpu: int | None, sizes: list[int]) -> None:
    """CUDA plans each new number of inputs, which takes a third of a second."""
    network = Engine(b"", 1, gpu, 8)
    for count in (3, 8, 11):
        inputs = np.arange(2 * count, dtype=np.uint8).reshape(count, 2)
        assert np.array_equal(network(inputs), inputs)
    assert network._session.sizes == sizes


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its driver, or without onnxruntime-gpu."""
    only_cores = ["CPUExecutionProvider"]
    monkeypatch.setattr(Session, "get_providers", lambda _self: only_cores)
    with pytest.raises(RuntimeError, match="can't use GPU 0"):
        Engine(b"", 1, 0)
    monkeypatch.setattr(engine.onnxruntime, "get_available_providers", lambda: only_cores)
    with pytest.raises(RuntimeError, match="Install onnxruntime-gpu"):
        Engine(b"", 1, 0)


EXAMINES = """
import json, sys
from pathlib import Path
import numpy as np
from handler.preprocessing import DecodedImage
from handler.pipelines import load

for folder in map(Path, sys.argv[1:]):
    version = load(folder, json.loads((folder / "card.json").read_text()), 2)
    version.warm_up()
    width, height = version.fit((640, 480))
    version.explain(DecodedImage(np.full((height, width, 3), 200, np.uint8), 640, 480))
print(sorted({"torch", "matplotlib"} & set(sys.modules)))
"""


def test_answers_need_no_torch() -> None:
    """It would cost each worker seconds and three times the memory."""
    folders = [str(ROOT / "models" / version) for version in VERSIONS]
    command = [sys.executable, "-c", EXAMINES, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_gpu_that_torchserve_does_not_see_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the worker would run on the cores, unnoticed."""
    # The handler changes this level; caplog restores it.
    caplog.set_level(logging.ERROR)
    (tmp_path / "card.json").write_text("{}")
    context = SimpleNamespace(
        system_properties={"model_dir": str(tmp_path), "gpu_id": None},
        manifest={"model": {"modelName": "bloodcells"}},
        model_yaml_config={"deviceType": "gpu", "handler": {"threads": 1}},
    )
    with pytest.raises(RuntimeError, match="TorchServe finds none"):
        BloodCellHandler().initialize(context)

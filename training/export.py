"""Export the networks from torch to ONNX, from unscaled pixels on.

The scaling of the pixels is part of the first convolution, and so is every batch normalisation of
the convolution before it. On request the convolutions compute in 8 bits.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from handler.engine import Engine, Network
from handler.locator import CANVAS
from handler.preprocessing import HEIGHT, WIDTH, Floats, Pixels
from training.networks import (
    CELL_CONTRAST,
    LOCATOR_CONTRAST,
    BloodCellNet,
    CellNet,
    Locator,
    normalized_canvases,
    scale,
)

OPSET = 18
# What 8 bits are enough for. Pooled features and logits keep their precision.
QUANTIZED = ["Conv", "Add", "AveragePool", "Resize"]

Served = BloodCellNet | Locator | CellNet


class _AsServed(nn.Module):
    """A network with the steps around it, from pixels (N, H, W, 3) uint8.

    A BloodCellNet maps 80x60 to logits, a Locator 128x128 to (N, 5, 32, 32), a CellNet 80x60 to
    (N, classes + 1 + embedding).
    """

    def __init__(self, network: Served) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        if not isinstance(network, BloodCellNet):
            first = next(each for each in self.network.modules() if isinstance(each, nn.Conv2d))
            contrast = CELL_CONTRAST if isinstance(network, CellNet) else LOCATOR_CONTRAST
            first.weight.data *= contrast / 255

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        planes = pixels.permute(0, 3, 1, 2)
        if isinstance(self.network, CellNet):
            embedding = self.network.embed(planes.float() - 127.5)
            return torch.cat([self.network.classifier(embedding), embedding], 1)
        if isinstance(self.network, Locator):
            return self.network.locate(normalized_canvases(planes.float()))
        logits: torch.Tensor = self.network(scale(planes))
        return logits


def in_torch(network: Served) -> Network:
    """Return a network as it is served, but run by torch."""
    served = _AsServed(network)

    @torch.inference_mode()
    def call(pixels: Pixels | Floats) -> Floats:
        outputs: Floats = served(torch.from_numpy(pixels)).numpy()
        return outputs

    return call


def as_served(network: Served, calibration: Pixels | None = None) -> Engine:
    """Return a network as the service runs it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        to_onnx(network, path, calibration)
        return Engine(path.read_bytes(), 1, None)


def to_onnx(network: Served, path: Path, calibration: Pixels | None = None) -> None:
    """Write a network to a file as it is served, for any number of inputs.

    In 8 bits if there are inputs to calibrate the range of each layer with.
    """
    width, height = (CANVAS, CANVAS) if isinstance(network, Locator) else (WIDTH, HEIGHT)
    with warnings.catch_warnings():
        # Torch recommends another exporter, which takes ten times as long.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _AsServed(network),
            (torch.zeros(2, height, width, 3, dtype=torch.uint8),),
            path,
            dynamo=False,
            input_names=["inputs"],
            output_names=["outputs"],
            dynamic_axes={"inputs": {0: "N"}, "outputs": {0: "N"}},
            opset_version=OPSET,
        )
    if calibration is not None:
        _quantize(path, calibration)


def is_quantized(path: Path) -> bool:
    """Return whether an exported network computes in 8 bits."""
    return any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def _quantize(path: Path, calibration: Pixels) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        batches: Iterator[Pixels] = iter(np.array_split(calibration, -(-len(calibration) // 32)))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"inputs": batch}

    quant_pre_process(path, path, skip_symbolic_shape=True)
    quantization.quantize_static(
        path,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=QUANTIZED,
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        activation_type=quantization.QuantType.QUInt8,
        # Weights of 7 bits: with 8, x86 processors without VNNI cut off sums of two products.
        reduce_range=True,
    )

"""Export the networks and the gate from torch to ONNX, with the steps around them.

The graphs take what the service has: unscaled pixels; cells are read twice, as they are and turned.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from handler.engine import Network
from handler.locator import CANVAS
from handler.preprocessing import HEIGHT, WIDTH, Floats, Pixels
from training.gate import Gate
from training.networks import BloodCellNet, CellNet, Locator, flip_averaged_logits, scale

OPSET = 18

Served = BloodCellNet | Locator | CellNet | Gate


class _AsServed(nn.Module):
    """A network with the steps around it.

    A BloodCellNet maps pixels (N, 60, 80, 3) uint8 to logits, a Locator canvases
    (N, 128, 128, 3) uint8 to (N, 5, 32, 32), a CellNet amounts of dye (N, 3, 60, 80) to logits
    averaged over each cell as it is and turned, a Gate pixels of its size to scores (N,).
    """

    def __init__(self, network: Served) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if isinstance(self.network, CellNet):
            return flip_averaged_logits(self.network, inputs)
        planes = inputs.permute(0, 3, 1, 2)
        tones = planes.float() if isinstance(self.network, Gate) else scale(planes)
        outputs: torch.Tensor = self.network(tones)
        return outputs

    def example(self, count: int) -> torch.Tensor:
        """Return so many blank inputs."""
        if isinstance(self.network, CellNet):
            return torch.zeros(count, 3, HEIGHT, WIDTH)
        width, height = WIDTH, HEIGHT
        if isinstance(self.network, Locator):
            width = height = CANVAS
        elif isinstance(self.network, Gate):
            width, height = self.network.size
        return torch.zeros(count, height, width, 3, dtype=torch.uint8)


def in_torch(network: Served) -> Network:
    """Return a network as it is served, but run by torch: training needs many of them."""
    served = _AsServed(network)

    @torch.inference_mode()
    def call(inputs: Pixels | Floats) -> Floats:
        outputs: Floats = served(torch.from_numpy(inputs)).numpy()
        return outputs

    return call


def to_onnx(network: Served, path: Path) -> None:
    """Write a network to a file as it is served, for any number of inputs."""
    served = _AsServed(network)
    with warnings.catch_warnings():
        # Torch recommends another exporter, which takes ten times as long.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            served,
            (served.example(2),),
            path,
            dynamo=False,
            input_names=["inputs"],
            output_names=["outputs"],
            dynamic_axes={"inputs": {0: "N"}, "outputs": {0: "N"}},
            opset_version=OPSET,
        )

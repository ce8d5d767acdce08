"""The networks in torch: the classifiers of fields and of cells, and the locator of cells.

The service runs their ONNX exports (training/export.py, handler/engine.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from handler.preprocessing import HEIGHT, WIDTH, Pixels

# Scale the images to about unit variance.
FIELD_CONTRAST, LOCATOR_CONTRAST, CELL_CONTRAST = 5.0, 4.0, 4.0


class BloodCellNet(nn.Module):
    """Version 1.0: classify whole fields, (N, 3, 60, 80) in [0, 1], as logits (N, classes).

    The original project's network: two 3x3 convolutions, dropout, two linear layers. Channels,
    the max-pooling after each convolution (1: none) and the hidden width are configurable. It does
    not locate the cell.
    """

    def __init__(
        self,
        classes: int,
        channels: Sequence[int],
        pools: Sequence[int],
        hidden: int,
        dropout: Sequence[float],
    ) -> None:
        super().__init__()
        # ReLU and max-pooling commute; pooling first leaves ReLU fewer values.
        self.features = nn.Sequential(
            nn.Conv2d(3, channels[0], 3, padding=1),
            nn.MaxPool2d(pools[0]),
            nn.ReLU(),
            nn.Conv2d(channels[0], channels[1], 3, padding=1),
            nn.MaxPool2d(pools[1]),
            nn.ReLU(),
            nn.Dropout(dropout[0]),
            nn.Flatten(),
        )
        height, width = (side // pools[0] // pools[1] for side in (HEIGHT, WIDTH))
        self.classifier = nn.Sequential(
            nn.Linear(channels[1] * height * width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout[1]),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Without the mean colour, lamp, exposure and white balance matter less.
        images = (images - images.mean((2, 3), keepdim=True)) * FIELD_CONTRAST
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits


class Locator(nn.Module):
    """Locate cells: map canvases (N, 3, 128, 128) in [0, 1] to (N, 5, 32, 32), see `channels`.

    A feature pyramid that predicts a heat map of centres and a box at each (CenterNet: Zhou et al.
    2019).
    """

    channels = ("centre's logit", "shift right", "shift down", "log width", "log height")

    def __init__(self) -> None:
        super().__init__()
        self.down4 = nn.Sequential(_block(3, 16, 2), _block(16, 32, 2))
        self.down8 = nn.Sequential(_block(32, 48, 2), _block(48, 48))
        self.down16 = nn.Sequential(_block(48, 64, 2), _block(64, 64))
        self.down32 = nn.Sequential(_block(64, 64, 2), _block(64, 64))
        self.side4, self.side8 = nn.Conv2d(32, 32, 1), nn.Conv2d(48, 48, 1)
        self.side16 = nn.Conv2d(64, 64, 1)
        self.up8, self.up4 = nn.Conv2d(64, 48, 1), nn.Conv2d(48, 32, 1)
        self.merge8, self.merge4 = _block(48, 48), _block(32, 32)
        self.head = nn.Conv2d(32, len(self.channels), 1)
        # Centres are rare.
        self.head.bias = nn.Parameter(torch.tensor([-3.0, 0.0, 0.0, 0.0, 0.0]))

    def forward(self, canvases: torch.Tensor) -> torch.Tensor:
        return self.locate(normalized_canvases(canvases) * LOCATOR_CONTRAST)

    def locate(self, canvases: torch.Tensor) -> torch.Tensor:
        quarter = self.down4(canvases)
        eighth = self.down8(quarter)
        sixteenth = self.down16(eighth)
        context = self.side16(sixteenth) + _double(self.down32(sixteenth))
        eighth = self.merge8(self.side8(eighth) + _double(self.up8(context)))
        located: torch.Tensor = self.head(
            self.merge4(self.side4(quarter) + _double(self.up4(eighth)))
        )
        return located


class CellNet(nn.Module):
    """Classify cells: map windows (N, 3, 60, 80) in [0, 1] to logits (N, classes + 1).

    The last logit is of other cells. A small residual network (He et al. 2016); the mean and the
    maximum of its last features are the cell's embedding, (N, 2 * channels[-1]).
    """

    def __init__(self, classes: int, channels: Sequence[int], dropout: float) -> None:
        super().__init__()
        blocks = [_Residual(channels[0], channels[0], 1)]
        blocks += [_Residual(inputs, outputs, 2) for inputs, outputs in pairwise(channels)]
        self.features = nn.Sequential(_block(3, channels[0], 2, side=5), *blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * channels[-1], classes + 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        embedding = self.embed((windows - 0.5) * CELL_CONTRAST)
        logits: torch.Tensor = self.classifier(self.dropout(embedding))
        return logits

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the embedding of windows in [-2, 2]."""
        features = self.features(windows)
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)


def normalized_canvases(canvases: torch.Tensor) -> torch.Tensor:
    """Subtract the mean colour: lamp, exposure and white balance matter less."""
    return canvases - canvases.mean((2, 3), keepdim=True)


def to_input(images: Iterable[Pixels]) -> torch.Tensor:
    """Stack N images of one size to a network's input: (N, 3, H, W) float32 in [0, 1]."""
    return scale(to_planes(np.stack(list(images))))


def to_planes(pixels: Pixels) -> torch.Tensor:
    """View (N, H, W, 3) as (N, 3, H, W); memory stays channels last, which is faster."""
    return torch.as_tensor(pixels).permute(0, 3, 1, 2)


def scale(planes: torch.Tensor) -> torch.Tensor:
    """Scale uint8 to float32 in [0, 1]."""
    return planes.float().div_(255)


def load_networks(folder: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Load "network", and "locator" if the version has one, from a version's weights.pt.

    Raises OSError, or RuntimeError if the weights do not fit the networks in the card.
    """
    weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
    reader = CellNet if card["finds_cells"] else BloodCellNet
    networks: dict[str, nn.Module] = {"network": reader(len(card["classes"]), **card["network"])}
    if card["finds_cells"]:
        networks["locator"] = Locator()
    for name, network in networks.items():
        network.load_state_dict(weights[name])
        network.eval().requires_grad_(False)
    return networks


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _block(inputs, outputs, stride)
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.shortcut = nn.Sequential()
        if stride > 1:
            # A window that reaches over the edge averages only what lies inside.
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(features)) + self.shortcut(features))


def _block(inputs: int, outputs: int, stride: int = 1, side: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _double(features: torch.Tensor) -> torch.Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="nearest")

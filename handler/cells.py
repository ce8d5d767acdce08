"""One cell at a time: cut it out, at a size of its own, and tell which it is.

A window of 80x60 lies around each cell found, so that the cell fills three quarters of its height
however far the microscope was zoomed. The network sees amounts of dye (handler/stains.py), not
colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from handler.locator import CANVAS, Located, to_canvas
from handler.network import CLASSES
from handler.preprocessing import HEIGHT, WIDTH, Box, Pixels, cut, to_input
from handler.stains import Floats, amounts, measure

# The window's height in units of the cell's longer side.
ZOOM = 1.35


class CellNet(nn.Module):
    """Map amounts of dye (N, 3, 60, 80) to logits (N, 5): CLASSES, and none of them.

    A small residual network (He et al. 2016) with GroupNorm, which does not remember the training
    laboratory; its features are pooled by mean and by maximum.
    """

    def __init__(self, channels: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0], 5, 2, 2, bias=False), _norm(channels[0]), nn.ReLU()
        )
        blocks = [_Residual(channels[0], channels[0], 1)]
        blocks += [_Residual(inputs, outputs, 2) for inputs, outputs in pairwise(channels)]
        self.features = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * channels[-1], len(CLASSES) + 1)

    @property
    def last_convolution(self) -> nn.Module:
        """Return the layer that a heat map is of."""
        return self.features[-1]

    def forward(self, dyes: torch.Tensor) -> torch.Tensor:
        features = self.features(self.stem(2 * dyes - 0.5))
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        logits: torch.Tensor = self.classifier(self.dropout(pooled))
        return logits


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), _norm(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), _norm(outputs)
        )
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(inputs, outputs, 1, bias=False)
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(features)) + self.shortcut(features))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 8, channels)


@dataclass
class Cutout:
    """One cell: its window (60, 80, 3) and the light and dyes around it (3, 3)."""

    pixels: Pixels
    stains: Floats


def cut_out(
    field: Pixels,
    located: Sequence[Located],
    size: tuple[int, int] = (WIDTH, HEIGHT),
    zoom: float = ZOOM,
) -> list[Cutout]:
    """Cut every located cell out of its field (H, W, 3)."""
    thumbnail, scale = to_canvas(field), CANVAS / max(field.shape)
    boxes = [_scaled(cell.box, scale) for cell in located]
    return [
        Cutout(cut(field, window(cell.box, zoom, size[0] / size[1]), size), stains)
        for cell, stains in zip(located, measure(thumbnail, boxes), strict=True)
    ]


def window(box: Box, zoom: float = ZOOM, proportions: float = WIDTH / HEIGHT) -> Box:
    """Return the window around a cell's box; it may reach beyond the picture."""
    left, top, right, bottom = box
    down = max(right - left, bottom - top) * zoom / 2
    across = down * proportions
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - across, y - down, x + across, y + down


def to_amounts(cutouts: Sequence[Cutout]) -> torch.Tensor:
    """Stack N cutouts to the network's input: amounts of dye (N, 3, 60, 80)."""
    pixels = to_input(cutout.pixels for cutout in cutouts)
    return amounts(pixels, torch.from_numpy(np.stack([cutout.stains for cutout in cutouts])))


def tell(network: CellNet, dyes: torch.Tensor) -> torch.Tensor:
    """Return the logits (N, 5) of amounts of dye: the mean over each cell as it is and turned.

    Held-out cells, and those of a laboratory never seen, are told rightly a little more often so.
    """
    upright, turned = network(torch.cat([dyes, dyes.flip(2, 3)])).chunk(2)
    logits: torch.Tensor = (upright + turned) / 2
    return logits


def _scaled(box: Box, scale: float) -> Box:
    left, top, right, bottom = box
    return left * scale, top * scale, right * scale, bottom * scale

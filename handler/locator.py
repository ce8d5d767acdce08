"""Where the white cells are: a small network that marks their centres and sizes.

A feature pyramid with a heat map of centres and, at each, the box's size (CenterNet: Zhou et al.
2019). It sees the field within 128x128; what it says is in pixels of the field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from handler.preprocessing import Box, Pixels, to_input

CANVAS = 128
# Pixels of the canvas between two places where a centre can be.
STRIDE = 4
# A cell whose size the network calls 0 (it answers in logarithms), in pixels of the canvas.
UNIT = 32.0
CONTRAST = 4.0
MAX_CELLS = 32
# Peaks lower than this are no cells; of two boxes that overlap by more (intersection over union),
# the lower is dropped.
MIN_SCORE = 0.3
MAX_OVERLAP = 0.4


@dataclass(frozen=True)
class Located:
    """A white cell in a field: its box in pixels of the field, and how sure that is, to 1."""

    box: Box
    score: float


class Locator(nn.Module):
    """Map canvases (N, 3, 128, 128) in [0, 1] to (N, 5, 32, 32): see the names of `channels`."""

    channels = ("centre's logit", "shift right", "shift down", "log width", "log height")

    def __init__(self) -> None:
        super().__init__()
        self.down4 = nn.Sequential(_block(3, 16, 2), _block(16, 32, 2))
        self.down8 = nn.Sequential(_block(32, 48, 2), _block(48, 48))
        self.down16 = nn.Sequential(_block(48, 64, 2), _block(64, 64))
        self.down32 = nn.Sequential(_block(64, 64, 2), _block(64, 64))
        self.side4, self.side8 = nn.Conv2d(32, 48, 1), nn.Conv2d(48, 64, 1)
        self.side16 = nn.Conv2d(64, 64, 1)
        self.up8, self.up4 = _block(64, 48), _block(48, 32)
        self.head = nn.Conv2d(32, len(self.channels), 1)
        # Centres are rare.
        self.head.bias = nn.Parameter(torch.tensor([-3.0, 0.0, 0.0, 0.0, 0.0]))

    def forward(self, canvases: torch.Tensor) -> torch.Tensor:
        # Less its own mean colour, so that lamp, exposure and white balance matter less.
        canvases = (canvases - canvases.mean((2, 3), keepdim=True)) * CONTRAST
        quarter = self.down4(canvases)
        eighth = self.down8(quarter)
        sixteenth = self.down16(eighth)
        context = self.side16(sixteenth) + _double(self.down32(sixteenth))
        eighth = self.up8(self.side8(eighth) + _double(context))
        located: torch.Tensor = self.head(self.up4(self.side4(quarter) + _double(eighth)))
        return located


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    # GroupNorm does not remember the training laboratory's colours, as BatchNorm would.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.GroupNorm(outputs // 8, outputs),
        nn.ReLU(),
    )


def _double(features: torch.Tensor) -> torch.Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="nearest")


@torch.inference_mode()
def locate(locator: Locator, fields: Sequence[Pixels], device: torch.device) -> list[list[Located]]:
    """Find the white cells in each field (H, W, 3), the surest first, at most MAX_CELLS."""
    canvases = to_input(to_canvas(field) for field in fields)
    output = locator(canvases.to(device)).cpu()
    return [
        _within(each, field, CANVAS / max(field.shape))
        for each, field in zip(decode(output), fields, strict=True)
    ]


def to_canvas(field: Pixels) -> Pixels:
    """Scale a field to lie in the upper left of 128x128, with black beside it."""
    scale = CANVAS / max(field.shape)
    height, width = (max(1, round(side * scale)) for side in field.shape[:2])
    canvas = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    scaled = Image.fromarray(field).resize((width, height), Image.Resampling.BOX)
    canvas[:height, :width] = np.asarray(scaled)
    return canvas


def decode(output: torch.Tensor) -> list[list[Located]]:
    """Read the locator's output (N, 5, 32, 32): for each canvas its cells, in its pixels."""
    heat = output[:, :1].sigmoid()
    peaks = torch.where(F.max_pool2d(heat, 3, 1, 1) == heat, heat, 0.0).flatten(1)
    scores, places = peaks.topk(MAX_CELLS)
    across = output.shape[3]
    found = []
    for row, (marks, spots) in enumerate(zip(scores.tolist(), places.tolist(), strict=True)):
        cells: list[Located] = []
        for score, spot in zip(marks, spots, strict=True):
            if score < MIN_SCORE:
                break
            down, right = divmod(spot, across)
            box = _box(right, down, output[row, 1:, down, right].tolist())
            if all(overlap(box, cell.box) <= MAX_OVERLAP for cell in cells):
                cells.append(Located(box, score))
        found.append(cells)
    return found


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over the union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / (area(one) + area(other) - both)


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _box(right: int, down: int, shape: Sequence[float]) -> Box:
    x, y = (right + 0.5 + shape[0]) * STRIDE, (down + 0.5 + shape[1]) * STRIDE
    # No cell is larger than three canvases or smaller than a pixel, whatever a wild number says.
    width, height = (math.exp(max(-2.5, min(side, 2.5))) * UNIT / 2 for side in shape[2:])
    return x - width, y - height, x + width, y + height


def _within(cells: Sequence[Located], field: Pixels, scale: float) -> list[Located]:
    """Return boxes of the canvas as boxes of the field, without what reaches beyond it."""
    height, width = field.shape[:2]
    inside = []
    for cell in cells:
        left, top, right, bottom = (side / scale for side in cell.box)
        box = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
        if box[0] < box[2] and box[1] < box[3]:
            inside.append(Located(box, cell.score))
    return inside

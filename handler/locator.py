"""Locate white cells: decode the locator network's centres and sizes to boxes.

The network (training/networks.py) gets the field scaled into 128x128, the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from handler.engine import Network
from handler.preprocessing import Box, Floats, Pixels

CANVAS = 128
# Canvas pixels between two neighbouring cells of the network's output.
STRIDE = 4
# Side in canvas pixels of a box whose logarithmic size is 0.
UNIT = 32.0
MAX_CELLS = 32
# Lowest score of a cell, and highest overlap (intersection over union) with a cell of higher score.
MIN_SCORE = 0.3
MAX_OVERLAP = 0.4


@dataclass(frozen=True)
class Located:
    """A white cell: its box in pixels of the field, and the score of the detection in [0, 1]."""

    box: Box
    score: float


def locate(locator: Network, fields: Sequence[Pixels]) -> list[list[Located]]:
    """Return the white cells of each field (H, W, 3), by descending score, at most MAX_CELLS."""
    output = locator(np.stack([to_canvas(field) for field in fields]))
    return [
        _within(each, field, CANVAS / max(field.shape))
        for each, field in zip(decode(output), fields, strict=True)
    ]


def to_canvas(field: Pixels) -> Pixels:
    """Scale a field (H, W, 3) into the upper left of 128x128; the rest is black."""
    scale = CANVAS / max(field.shape)
    height, width = (max(1, round(side * scale)) for side in field.shape[:2])
    canvas = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    scaled = Image.fromarray(field).resize((width, height), Image.Resampling.BOX)
    canvas[:height, :width] = np.asarray(scaled)
    return canvas


def decode(output: Floats) -> list[list[Located]]:
    """Decode the locator's output (N, 5, 32, 32) to the cells of each canvas, in canvas pixels."""
    with np.errstate(over="ignore"):
        heat: Floats = np.reciprocal(1 + np.exp(-output[:, 0]))
    peaks = np.where(_neighbourhood_maximum(heat) == heat, heat, 0)
    return [_cells(*each) for each in zip(peaks, output[:, 1:], strict=True)]


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over the union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / (area(one) + area(other) - both)


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _neighbourhood_maximum(heat: Floats) -> Floats:
    """Return the maximum over the 3x3 neighbourhood of each place of heat (N, H, W)."""
    for axis in (1, 2):
        padded = np.pad(heat, [(int(each == axis),) * 2 for each in range(3)])
        before, here, after = (
            padded.take(range(start, start + heat.shape[axis]), axis) for start in range(3)
        )
        heat = np.maximum(np.maximum(before, after), here)
    return heat


def _cells(peaks: Floats, shapes: Floats) -> list[Located]:
    """Return the cells at peaks (H, W) with shapes (4, H, W), by descending score."""
    places = np.flatnonzero(peaks >= MIN_SCORE)
    surest = places[np.argsort(-peaks.flat[places], kind="stable")][:MAX_CELLS]
    cells: list[Located] = []
    for down, right in zip(*np.unravel_index(surest, peaks.shape), strict=True):
        box = _box(int(right), int(down), shapes[:, down, right].tolist())
        if all(overlap(box, cell.box) <= MAX_OVERLAP for cell in cells):
            cells.append(Located(box, float(peaks[down, right])))
    return cells


def _box(right: int, down: int, shape: Sequence[float]) -> Box:
    x, y = (right + 0.5 + shape[0]) * STRIDE, (down + 0.5 + shape[1]) * STRIDE
    # Bounds a box to between a pixel and three canvases, whatever the network returns.
    width, height = (math.exp(max(-2.5, min(side, 2.5))) * UNIT / 2 for side in shape[2:])
    return x - width, y - height, x + width, y + height


def _within(cells: Sequence[Located], field: Pixels, scale: float) -> list[Located]:
    """Convert boxes from canvas to field pixels, clipped to the field."""
    height, width = field.shape[:2]
    inside = []
    for cell in cells:
        left, top, right, bottom = (side / scale for side in cell.box)
        box = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
        if box[0] < box[2] and box[1] < box[3]:
            inside.append(Located(box, cell.score))
    return inside

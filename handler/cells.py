"""Cell crops: an 80x60 window around each located cell, converted to amounts of dye.

The window is scaled so that a cell fills three quarters of its height at any magnification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from handler.locator import CANVAS, Located, to_canvas
from handler.preprocessing import HEIGHT, WIDTH, Box, Floats, Pixels, cut, normalized
from handler.stains import amounts, measure

# Window height divided by the longer side of the cell's box.
ZOOM = 1.35


@dataclass
class Cutout:
    """One cell: its window (60, 80, 3), and the stains around it (3, 3), as `measure` has them."""

    pixels: Pixels
    stains: Floats


def cut_out(
    field: Pixels,
    located: Sequence[Located],
    size: tuple[int, int] = (WIDTH, HEIGHT),
    zoom: float = ZOOM,
) -> list[Cutout]:
    """Cut each located cell out of its field (H, W, 3); size is (width, height)."""
    thumbnail, scale = to_canvas(field), CANVAS / max(field.shape)
    boxes = [_scaled(cell.box, scale) for cell in located]
    return [
        Cutout(cut(field, window(cell.box, zoom, size[0] / size[1]), size), stains)
        for cell, stains in zip(located, measure(thumbnail, boxes), strict=True)
    ]


def window(box: Box, zoom: float = ZOOM, proportions: float = WIDTH / HEIGHT) -> Box:
    """Return the window around a cell's box; it may extend beyond the image."""
    left, top, right, bottom = box
    down = max(right - left, bottom - top) * zoom / 2
    across = down * proportions
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - across, y - down, x + across, y + down


def to_amounts(cutouts: Sequence[Cutout]) -> Floats:
    """Stack N cutouts to a network's input: amounts of dye (N, 3, 60, 80)."""
    pixels = np.stack([cutout.pixels for cutout in cutouts])
    stains = np.stack([cutout.stains for cutout in cutouts])
    return amounts(normalized(pixels), stains)


def _scaled(box: Box, scale: float) -> Box:
    left, top, right, bottom = box
    return left * scale, top * scale, right * scale, bottom * scale

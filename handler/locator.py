"""Locate white cells: decode the locator network's centres and sizes to boxes.

The network gets the field scaled into 128x128, the canvas. Where it finds no large cell, not even
a doubtful one, it looks a second time, at tiles of the field: cells are two and a half times as
large in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from handler.engine import Network
from handler.preprocessing import Box, Floats, Pixels

CANVAS = 128
# Canvas pixels between two neighbouring cells of the network's output.
STRIDE = 4
# Side in canvas pixels of a box whose logarithmic size is 0.
UNIT = 32.0
MAX_CELLS = 32
# Lowest score of a cell, and of a large cell where no other reaches the first. In a laboratory that
# it does not know, the locator doubts large cells more than the red cells and lobes of nuclei that
# tiles show.
MIN_SCORE, LEAST_SCORE = 0.4, 0.2
# The largest share of the smaller of two boxes that both may cover: the box of a part of a cell
# lies within that of the cell.
MAX_SHARED = 0.6
# Shares of the field's longer side: a cell whose longer side is less than SMALL is small, and a
# doubtful one may be taken from LARGE on.
SMALL, LARGE = 0.16, 0.25
# The side of a tile, and the steps between tiles at most, as shares of the field's longer side. So
# three tiles cover it, and a small cell that is cut off by one is whole in another, or nearly.
TILE, STEP = 0.4, 0.3
MAX_TILES = 9
# A box that comes this close to the edge of a tile, in canvas pixels, may be of a part of a cell.
EDGE = 2

# Cells (K, 5): left, top, right, bottom and the score of each.
Cells = npt.NDArray[np.float64]

# The shape of a heat map with a border, and the distances to a place and its neighbours in it.
_BORDERED = (CANVAS // STRIDE + 2,) * 2
_AROUND = np.array([row * _BORDERED[1] + column for row in (-1, 0, 1) for column in (-1, 0, 1)])
_LEAST_LOGIT = math.log(LEAST_SCORE / (1 - LEAST_SCORE))
# Bounds a box to between a pixel and three canvases, whatever the network returns.
_MAX_LOG_SIZE = 2.5


@dataclass(frozen=True)
class Located:
    """A white cell: its box in pixels of the field, and the score of the detection in [0, 1]."""

    box: Box
    score: float


def locate(locator: Network, fields: Sequence[Pixels]) -> list[list[Located]]:
    """Return the white cells of each field (H, W, 3), by descending score, at most MAX_CELLS."""
    found = _look(locator, fields)
    return [
        _listed(_settled(locator, field, cells)) for field, cells in zip(fields, found, strict=True)
    ]


def to_canvas(field: Pixels) -> Pixels:
    """Scale a field (H, W, 3) into the upper left of 128x128; the rest is black.

    Each pixel is the mean of four pixels of the field. Boxes are as good as from the mean of all,
    and it takes a third of the time.
    """
    height, width = field.shape[:2]
    down, across = (max(1, round(side * CANVAS / max(height, width))) for side in (height, width))
    rows = _mean(*(field.reshape(height, -1)[places] for places in _quarters(height, down, 1)))
    columns = _mean(*(rows[:, places] for places in _quarters(width, across, 3)))
    canvas = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    canvas[:down, :across] = columns.reshape(down, across, 3)
    return canvas


@lru_cache(64)
def _quarters(side: int, scaled: int, colours: int) -> Any:
    """Return which values of a side to average in pairs (2, scaled * colours)."""
    places = (np.arange(scaled) + np.array([[0.25], [0.75]])) * (side / scaled)
    return (places.astype(np.intp)[..., None] * colours + np.arange(colours)).reshape(2, -1)


def _mean(one: Pixels, other: Pixels) -> Pixels:
    # Without the overflow of a sum.
    return (one & other) + ((one ^ other) >> 1)


def decode(output: Floats) -> list[Cells]:
    """Decode the locator's output (N, 5, 32, 32) to the cells of each canvas, in its pixels.

    Also those that are doubtful, from LEAST_SCORE on.
    """
    bordered = np.full((len(output), *_BORDERED), -np.inf, np.float32)
    bordered[:, 1:-1, 1:-1] = output[:, 0]
    heat = bordered.ravel()
    places = np.flatnonzero(heat >= _LEAST_LOGIT)
    # A cell is where none of the eight neighbours is higher.
    places = places[heat[places] >= heat[places[:, None] + _AROUND].max(1)]
    canvases, rows, columns = np.unravel_index(places, bordered.shape)
    shapes = output[canvases, 1:, rows - 1, columns - 1].astype(float)
    middles = (np.stack([columns, rows], 1) - 0.5 + shapes[:, :2]) * STRIDE
    reaches = np.exp(shapes[:, 2:].clip(-_MAX_LOG_SIZE, _MAX_LOG_SIZE)) * UNIT / 2
    scores = 1 / (1 + np.exp(-heat[places, None].astype(float)))
    cells = np.concatenate([middles - reaches, middles + reaches, scores], 1)
    parts = (_by_score(cells[canvases == canvas]) for canvas in range(len(output)))
    return [_distinct(part) for part in parts]


def intersection(one: npt.ArrayLike, other: npt.ArrayLike) -> Any:
    """Return the area that two boxes share, or each pair in two arrays."""
    left, top, right, bottom = np.asarray(one).T[:4]
    left2, top2, right2, bottom2 = np.asarray(other).T[:4]
    width = np.minimum(right, right2) - np.maximum(left, left2)
    height = np.minimum(bottom, bottom2) - np.maximum(top, top2)
    return np.maximum(width, 0) * np.maximum(height, 0)


def area(boxes: npt.ArrayLike) -> Any:
    """Return the area of a box, or of each in an array."""
    left, top, right, bottom = np.asarray(boxes).T[:4]
    return (right - left) * (bottom - top)


def tiles(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Return the boxes of the tiles that cover a field: at most MAX_TILES."""
    longest = max(width, height)
    side = max(1, round(TILE * longest))
    columns, rows = (_starts(length, side, longest) for length in (width, height))
    return [
        (left, top, min(left + side, width), min(top + side, height))
        for top in rows
        for left in columns
    ]


def _starts(length: int, side: int, longest: int) -> list[int]:
    """Return where tiles of a side begin, evenly spaced from one end of a length to the other."""
    room = max(length - side, 0)
    # Rounding must not add a fourth.
    gaps = min(math.ceil(room / (STEP * longest)), 2)
    return [round(room * at / gaps) for at in range(gaps + 1)] if gaps else [0]


def _look(locator: Network, fields: Sequence[Pixels]) -> list[Cells]:
    """Return the cells of each field, in its pixels, by one call of the locator."""
    output = locator(np.stack([to_canvas(field) for field in fields]))
    return [_within(cells, field) for cells, field in zip(decode(output), fields, strict=True)]


def _settled(locator: Network, field: Pixels, cells: Cells) -> Cells:
    """Choose from the cells of a first look, or look closer."""
    sizes = (cells[:, 2:4] - cells[:, :2]).max(1) / max(field.shape[:2])
    sure = _sure(cells)
    if (sizes[sure] >= SMALL).any():
        return cells[sure]
    if (large := np.flatnonzero(~sure & (sizes >= LARGE))).size:
        sure[large[0]] = True
        return cells[sure]
    return _look_closer(locator, field, cells[sure])


def _sure(cells: Cells) -> npt.NDArray[np.bool_]:
    return cells[:, 4] >= MIN_SCORE


def _look_closer(locator: Network, field: Pixels, cells: Cells) -> Cells:
    """Add the cells in the tiles of a field to those that were found."""
    height, width = field.shape[:2]
    places = tiles(width, height)
    parts = [field[top:bottom, left:right] for left, top, right, bottom in places]
    closer = (
        _moved(inside[_sure(inside)], place, (width, height))
        for inside, place in zip(_look(locator, parts), places, strict=True)
    )
    return _distinct(_by_score(np.concatenate([cells, *closer])))


def _moved(cells: Cells, tile: tuple[int, int, int, int], size: tuple[int, int]) -> Cells:
    """Convert the cells of a tile to pixels of the field, without those that may be cut off."""
    left, top, right, bottom = tile
    # Where the field ends, the tile cuts nothing off.
    inner = np.array([left > 0, top > 0, right < size[0], bottom < size[1]])
    margin = EDGE * max(right - left, bottom - top) / CANVAS
    distances = np.abs(cells[:, :4] - (0, 0, right - left, bottom - top))
    whole: Cells = cells[~((distances <= margin) & inner).any(1)]
    whole[:, :4] += left, top, left, top
    return whole


def _within(cells: Cells, field: Pixels) -> Cells:
    """Convert cells from canvas to field pixels, clipped to the field."""
    height, width = field.shape[:2]
    boxes = (cells[:, :4] * (max(width, height) / CANVAS)).clip(0, (width, height, width, height))
    inside: Cells = np.concatenate([boxes, cells[:, 4:]], 1)[(boxes[:, :2] < boxes[:, 2:]).all(1)]
    return inside


def _by_score(cells: Cells) -> Cells:
    return cells[np.argsort(-cells[:, 4], kind="stable")]


def _distinct(cells: Cells) -> Cells:
    """Drop the cells that share much with one before them; return at most MAX_CELLS."""
    kept: list[Cells] = []
    while len(cells) and len(kept) < MAX_CELLS:
        kept.append(cells[0])
        cells = cells[1:]
        if len(cells):
            smaller = np.minimum(area(kept[-1]), area(cells))
            cells = cells[intersection(kept[-1], cells) <= MAX_SHARED * smaller]
    return np.array(kept).reshape(-1, 5)


def _listed(cells: Cells) -> list[Located]:
    return [Located((*box,), score) for *box, score in cells.tolist()]

"""The second look of the locator, at tiles of fields that show small cells or none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.locator import (
    CANVAS,
    EDGE,
    LARGE,
    MAX_CELLS,
    MAX_TILES,
    SMALL,
    STRIDE,
    UNIT,
    Located,
    locate,
    tiles,
)
from handler.preprocessing import Box, Floats, Pixels
from training.locate import overlap

PLACES = CANVAS // STRIDE

Place = tuple[int, int, int, int]


class Reader:
    """A stand-in for the locator: it sees a cell where a canvas has a bright rectangle.

    It sees none of which a side is below `least` pixels of the canvas. A cell's blue is its score,
    of 255; its red is different from other cells'. Mixed pixels at its edge are not seen.
    """

    def __init__(self, least: float = 0.0) -> None:
        self.least = least
        self.calls: list[int] = []

    def __call__(self, canvases: Pixels | Floats) -> Floats:
        self.calls.append(len(canvases))
        output = np.zeros((len(canvases), 5, PLACES, PLACES), np.float32)
        output[:, 0] = -9
        for canvas, out in zip(canvases, output, strict=True):
            bright = canvas[..., 1] == 255
            for red in np.unique(canvas[bright][:, 0]):
                rows, columns = np.nonzero(bright & (canvas[..., 0] == red))
                top, left, bottom, right = (
                    rows.min(),
                    columns.min(),
                    rows.max() + 1,
                    columns.max() + 1,
                )
                width, height = right - left, bottom - top
                if min(width, height) < self.least:
                    continue
                x, y = (left + right) / 2 / STRIDE, (top + bottom) / 2 / STRIDE
                column, row = min(int(x), PLACES - 1), min(int(y), PLACES - 1)
                share = canvas[rows[0], columns[0], 2] / 255
                shape = (x - column - 0.5, y - row - 0.5)
                sizes = math.log(width / UNIT), math.log(height / UNIT)
                out[:, row, column] = [math.log(share / (1 - share)), *shape, *sizes]
        return output


def field(*boxes: Place, size: tuple[int, int] = (320, 240), score: int = 200) -> Pixels:
    """Return a black field (H, W, 3) with rectangles."""
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    for at, (left, top, right, bottom) in enumerate(boxes, 1):
        pixels[top:bottom, left:right] = (at, 255, score)
    return pixels


def boxes(cells: Sequence[Located]) -> list[Box]:
    return sorted(cell.box for cell in cells)


def looked(reader: Reader, *fields: Pixels) -> list[list[Located]]:
    return locate(reader, list(fields))


WIDE = (100, 60, 200, 160)
# Scores of 255.
DOUBTFUL, UNSEEN = 80, 40


def test_a_field_with_a_large_cell_is_looked_at_once() -> None:
    reader = Reader()
    [cells] = looked(reader, field(WIDE, (10, 10, 20, 20)))
    assert len(cells) == 2
    assert reader.calls == [1]


@pytest.mark.parametrize(
    ("side", "calls"), [(int(SMALL * 640) + 8, [1]), (int(SMALL * 640) - 8, [1, MAX_TILES])]
)
def test_a_field_with_only_small_cells_is_looked_at_twice(side: int, calls: list[int]) -> None:
    reader = Reader()
    [cells] = looked(reader, field((200, 200, 200 + side, 220), size=(640, 480)))
    assert reader.calls == calls
    [box] = boxes(cells)
    assert box == pytest.approx((200, 200, 200 + side, 220), abs=4)


@pytest.mark.parametrize(
    ("side", "score", "calls"),
    [
        (int(LARGE * 320) + 4, DOUBTFUL, [1]),
        (int(LARGE * 320) - 4, DOUBTFUL, [1, MAX_TILES]),
        (int(LARGE * 320) + 4, UNSEEN, [1, MAX_TILES]),
    ],
)
def test_the_best_doubtful_large_cell_is_taken_where_none_is_sure(
    side: int, score: int, calls: list[int]
) -> None:
    reader = Reader()
    pixels = field((100, 60, 100 + side, 100), (220, 60, 220 + side, 100), score=score)
    pixels[pixels[..., 0] == 2, 2] = score + 8
    [cells] = looked(reader, pixels)
    assert reader.calls == calls
    assert len(cells) == (calls == [1])
    assert all(cell.box[0] == pytest.approx(220, abs=2) for cell in cells)


@pytest.mark.parametrize(("sure", "found"), [(WIDE, 1), ((10, 10, 30, 30), 2)])
def test_a_doubtful_cell_is_taken_beside_small_ones_only(sure: Place, found: int) -> None:
    reader = Reader()
    pixels = field(sure, (220, 60, 310, 100), score=DOUBTFUL)
    pixels[pixels[..., 0] == 1, 2] = 200
    [cells] = looked(reader, pixels)
    assert len(cells) == found
    assert cells[0].box == pytest.approx(sure, abs=2)
    assert reader.calls == [1]


def test_a_field_without_a_cell_is_looked_at_twice_and_has_none() -> None:
    reader = Reader()
    assert looked(reader, field()) == [[]]
    assert reader.calls == [1, MAX_TILES]


def test_only_some_fields_of_a_batch_are_looked_at_twice() -> None:
    reader = Reader(least=8)
    small = (30, 30, 45, 45)
    found = looked(reader, field(WIDE), field(small), field(), field(small, WIDE))
    assert [len(cells) for cells in found] == [1, 1, 0, 1]
    assert reader.calls == [4, MAX_TILES, MAX_TILES]
    assert found[1][0].box == pytest.approx(small, abs=1)


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (640, 640), (100, 75)])
def test_small_cells_that_the_first_look_misses_are_found_everywhere(size: tuple[int, int]) -> None:
    """Each is whole in a tile, wherever it is."""
    width, height = size
    side = round(0.08 * max(size))
    for x, y in np.random.default_rng(0).uniform(0, 1, (40, 2)):
        left, top = round(x * (width - side)), round(y * (height - side))
        reader = Reader(least=14)
        [cells] = looked(reader, field((left, top, left + side, top + side), size=size))
        [box] = boxes(cells)
        assert box == pytest.approx((left, top, left + side, top + side), abs=0.01 * max(size) + 1)
        assert reader.calls == [1, MAX_TILES]


def test_a_cell_that_a_tile_cuts_off_counts_only_where_it_is_whole() -> None:
    """The tiles of 320x240 are 128 wide, from 0, 96 and 192 on."""
    reader = Reader(least=14)
    [cells] = looked(reader, field((110, 20, 140, 50)))
    assert boxes(cells) == [pytest.approx((110, 20, 140, 50), abs=0.5)]


@pytest.mark.parametrize("gap", [EDGE - 1, EDGE + 1])
def test_a_cell_close_to_the_inner_edge_of_a_tile_may_be_cut_off(gap: int) -> None:
    """The first look does not see it, and no other tile shows all of it."""
    reader = Reader(least=14)
    right = 128 - gap
    [cells] = looked(reader, field((right - 60, 0, right, 16)))
    assert len(cells) == (gap > EDGE)


def test_cells_at_the_edges_of_the_field_are_kept() -> None:
    corners = [(0, 0, 20, 20), (300, 0, 320, 20), (0, 220, 20, 240), (300, 220, 320, 240)]
    [cells] = looked(Reader(least=14), field(*corners))
    assert boxes(cells) == [pytest.approx(box, abs=0.01) for box in sorted(corners)]


def test_a_cell_that_several_looks_find_is_one() -> None:
    """Of the first look and four tiles the surest stays."""
    [cells] = looked(Reader(), field((100, 65, 120, 85)))
    assert boxes(cells) == [pytest.approx((100, 65, 120, 85), abs=3)]


def test_the_number_of_cells_is_bounded() -> None:
    many = [(x, y, x + 14, y + 14) for x in range(4, 310, 24) for y in range(4, 220, 24)]
    pixels = np.zeros((240, 320, 3), np.uint8)
    for at, (left, top, right, bottom) in enumerate(many, 1):
        pixels[top:bottom, left:right] = (at, 255, 100 + at)
    [cells] = looked(Reader(least=10), pixels)
    assert len(many) > len(cells) == MAX_CELLS
    scores = [cell.score for cell in cells]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= (100 + len(many) - MAX_CELLS) / 255 - 0.01


def test_thirty_two_small_cells_are_found() -> None:
    many = [(x, y, x + 20, y + 20) for x in range(10, 310, 38) for y in range(10, 220, 56)]
    [cells] = looked(Reader(least=12), field(*many))
    assert len(many) == len(cells) == 32
    for one, other in zip(boxes(cells), sorted(many), strict=True):
        assert overlap(one, other) > 0.8


SIDES = st.integers(1, 640)


@given(SIDES, SIDES)
def test_tiles_cover_the_field(width: int, height: int) -> None:
    """Each is within it, and at most nine are needed at any proportions."""
    covered = np.zeros((height, width), bool)
    places = tiles(width, height)
    assert len(places) <= MAX_TILES
    for left, top, right, bottom in places:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        covered[top:bottom, left:right] = True
    # Tiles of a pixel can't overlap, and can't cover a field of four.
    assert covered.all() or max(width, height) < 5


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 3), (640, 1), (1, 640), (640, 17), (5, 5)])
@pytest.mark.parametrize("light", [0, 255])
def test_fields_of_extreme_sizes_are_looked_at(size: tuple[int, int], light: int) -> None:
    pixels = np.full((*size[::-1], 3), light, np.uint8)
    pixels[..., 2] = 200
    [cells] = looked(Reader(least=1000), pixels)
    assert cells == []
    [cells] = looked(Reader(), pixels)
    assert len(cells) == (1 if light else 0)
    for cell in cells:
        assert 0 <= cell.box[0] < cell.box[2] <= size[0]
        assert 0 <= cell.box[1] < cell.box[3] <= size[1]

"""The locator: how its output is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from handler.engine import Network
from handler.locator import (
    CANVAS,
    LEAST_SCORE,
    MAX_CELLS,
    STRIDE,
    UNIT,
    Located,
    decode,
    locate,
    to_canvas,
)
from handler.locator import _listed as listed
from handler.locator import _within as within
from handler.preprocessing import Box, Floats
from training.export import in_torch
from training.locate import _targets
from training.networks import Locator

PLACES = CANVAS // STRIDE
NOWHERE = -9.0


def output(*peaks: tuple[int, int, float, Sequence[float]]) -> Floats:
    """Make an output with peaks: column, row, score, (shift right, shift down, width, height).

    Width and height are in pixels of the canvas.
    """
    made = np.zeros((1, 5, PLACES, PLACES), np.float32)
    made[:, 0] = NOWHERE
    for column, row, score, (right, down, width, height) in peaks:
        shape = [right, down, math.log(width / UNIT), math.log(height / UNIT)]
        made[0, :, row, column] = [math.log(score / (1 - score)), *shape]
    return made


def decoded(*peaks: tuple[int, int, float, Sequence[float]]) -> list[Located]:
    [cells] = decode(output(*peaks))
    return listed(cells)


def test_a_peak_is_a_cell() -> None:
    [cell] = decoded((10, 20, 0.8, (0.25, -0.5, 40, 24)))
    assert cell.score == pytest.approx(0.8)
    x, y = (10 + 0.5 + 0.25) * STRIDE, (20 + 0.5 - 0.5) * STRIDE
    assert cell.box == pytest.approx((x - 20, y - 12, x + 20, y + 12), abs=1e-4)


def test_low_scores_and_the_slopes_of_a_peak_are_not_cells() -> None:
    shape = (0, 0, 4, 4)
    slopes = (10, 9, 0.8, shape), (10, 10, 0.7, shape)
    low, high = (20, 9, LEAST_SCORE - 0.01, shape), (20, 20, LEAST_SCORE + 0.01, shape)
    cells = decoded((9, 9, 0.9, shape), *slopes, low, high)
    assert [cell.score for cell in cells] == pytest.approx([0.9, LEAST_SCORE + 0.01])


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        ((8, 11), [0.9]),
        ((8, 13), [0.9, 0.8]),
        ((6, 9, 12), [0.9, 0.7]),
    ],
)
def test_of_boxes_that_share_much_the_surest_stay(
    columns: Sequence[int], kept: list[float]
) -> None:
    """Boxes 40 wide, 4 for each column apart: two share (40 - apart) / 40."""
    peaks = zip(columns, (0.9, 0.8, 0.7), strict=False)
    cells = decoded(*((column, 8, score, (0, 0, 40, 40)) for column, score in peaks))
    assert [cell.score for cell in cells] == pytest.approx(kept)


def test_a_part_of_a_cell_is_not_another_cell() -> None:
    whole, part = (8, 8, 0.9, (0, 0, 60, 60)), (10, 10, 0.8, (0, 0, 24, 24))
    assert [cell.score for cell in decoded(whole, part)] == pytest.approx([0.9])


def test_the_number_of_cells_is_bounded() -> None:
    peaks = [(x, y, 0.5 + x / 100, (0, 0, 4, 4)) for x in range(1, 31, 3) for y in range(1, 31, 3)]
    cells = decoded(*peaks)
    assert len(cells) == MAX_CELLS
    assert min(cell.score for cell in cells) >= 0.68


@pytest.mark.parametrize("number", [-20.0, 1e3, 1e30])
def test_wild_sizes_stay_numbers(number: float) -> None:
    wild = output((4, 4, 0.9, (0, 0, 9, 9)), (20, 20, 0.8, (0, 0, 9, 9)))
    wild[0, 3:, 4, 4] = wild[0, 3:, 20, 20] = number
    [cells] = decode(wild)
    for cell in listed(cells):
        assert all(map(math.isfinite, cell.box))
        assert 0 <= cell.box[2] - cell.box[0] <= 4 * CANVAS
    assert cells[0, 4] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (320, 240, (128, 96)),
        (48, 64, (96, 128)),
        (320, 1, (128, 1)),
        (1, 320, (1, 128)),
        (7, 5, (128, 91)),
    ],
)
def test_a_field_lies_in_the_upper_left_of_the_canvas(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    canvas = to_canvas(np.full((height, width, 3), (200, 100, 50), np.uint8))
    assert canvas.shape == (CANVAS, CANVAS, 3)
    assert canvas.dtype == np.uint8
    across, down = expected
    assert (canvas[:down, :across] == (200, 100, 50)).all()
    assert not canvas[down:].any()
    assert not canvas[:, across:].any()


def test_each_pixel_of_the_canvas_is_the_mean_of_four() -> None:
    field = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    means = field.reshape(CANVAS, 2, CANVAS, 2, 3).mean((1, 3))
    assert np.abs(to_canvas(field) - means).max() <= 1
    part = field[100 : 100 + CANVAS, 50 : 50 + CANVAS]
    assert (to_canvas(part) == part).all()


FIELD = np.zeros((240, 320, 3), np.uint8)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((-20, -4, 20, 30), (0, 0, 50, 75)),
        ((100, 80, 140, 130), (250, 200, 320, 240)),
        ((-500, -500, 500, 500), (0, 0, 320, 240)),
    ],
)
def test_a_box_of_the_canvas_is_one_of_the_field_and_within_it(box: Box, expected: Box) -> None:
    [cell] = within(np.array([[*box, 0.5]]), FIELD)
    assert cell.tolist() == pytest.approx([*expected, 0.5])


@pytest.mark.parametrize("box", [(10, 97, 50, 120), (-30, 10, -1, 40), (130, 10, 140, 20)])
def test_boxes_outside_the_field_are_dropped(box: Box) -> None:
    """Below row 96 the canvas of a landscape is black."""
    inside = (10, 10, 20, 20, 0.4)
    assert len(within(np.array([[*box, 0.9], inside]), FIELD)) == 1


@pytest.fixture(scope="module")
def locator() -> Network:
    """Return a locator whose weights are random, and which finds much."""
    torch.manual_seed(1)
    network = Locator()
    network.head.bias.data[0] = 0.0
    return in_torch(network)


def test_a_field_alone_and_in_a_batch_has_the_same_cells(locator: Network) -> None:
    random = np.random.default_rng(0)
    sizes = [(72, 96), (96, 72), (90, 90)]
    fields = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    together = locate(locator, fields)
    assert any(together)
    for cells, field in zip(together, fields, strict=True):
        [alone] = locate(locator, [field])
        assert [cell.score for cell in alone] == pytest.approx(
            [cell.score for cell in cells], abs=1e-3
        )
        for one, other in zip(alone, cells, strict=True):
            assert one.box == pytest.approx(other.box, abs=0.05)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2)])
def test_an_empty_field_is_accepted(locator: Network, size: tuple[int, int]) -> None:
    for cells in locate(locator, [np.full((*size, 3), each, np.uint8) for each in (0, 255)]):
        for cell in cells:
            assert 0 <= cell.box[0] < cell.box[2] <= size[1]
            assert 0 <= cell.box[1] < cell.box[3] <= size[0]


@pytest.mark.parametrize(
    "box", [(40, 40, 80, 72), (0, 0, 30, 20), (100, 90, 128, 128), (61, 61, 66, 67)]
)
def test_the_targets_decode_to_the_box(box: Box) -> None:
    heat, shapes, _near, _counts = _targets(torch.tensor([[[*box, 1.0]]]))
    logits = heat.clamp(1e-4, 1 - 1e-4).logit()[:, None]
    [[cell]] = decode(torch.cat([logits, shapes], 1).numpy())
    assert cell[:4] == pytest.approx(box, abs=0.01)

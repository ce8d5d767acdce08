"""The locator: how its output is read, and that it learns where painted cells are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from handler.locator import (
    CANVAS,
    MAX_CELLS,
    MIN_SCORE,
    STRIDE,
    UNIT,
    Located,
    decode,
    locate,
    overlap,
    to_canvas,
)
from handler.locator import _within as within
from handler.preprocessing import Box, Floats
from training import locate as training
from training.augment import warp
from training.export import in_torch
from training.locate import (
    Field,
    _loss,
    _targets,
    _turned,
    _view,
    measure_locator,
    train_locator,
)
from training.networks import Locator
from training.recipes import LOCATOR, LocatorRecipe

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
    return cells


def test_a_peak_is_a_cell() -> None:
    [cell] = decoded((10, 20, 0.8, (0.25, -0.5, 40, 24)))
    assert cell.score == pytest.approx(0.8)
    x, y = (10 + 0.5 + 0.25) * STRIDE, (20 + 0.5 - 0.5) * STRIDE
    assert cell.box == pytest.approx((x - 20, y - 12, x + 20, y + 12), abs=1e-4)


def test_low_scores_and_the_slopes_of_a_peak_are_not_cells() -> None:
    shape = (0, 0, 4, 4)
    slopes = (10, 9, 0.8, shape), (10, 10, 0.7, shape)
    low, high = (20, 9, MIN_SCORE - 0.01, shape), (20, 20, MIN_SCORE + 0.01, shape)
    cells = decoded((9, 9, 0.9, shape), *slopes, low, high)
    assert [cell.score for cell in cells] == pytest.approx([0.9, MIN_SCORE + 0.01])


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        ((8, 12), [0.9]),
        ((8, 13), [0.9, 0.8]),
        ((6, 10, 14), [0.9, 0.7]),
    ],
)
def test_of_boxes_that_overlap_much_the_surest_stay(
    columns: Sequence[int], kept: list[float]
) -> None:
    """Boxes 40 wide, 4 for each column apart: two overlap by (40 - apart) / (40 + apart)."""
    peaks = zip(columns, (0.9, 0.8, 0.7), strict=False)
    cells = decoded(*((column, 8, score, (0, 0, 40, 40)) for column, score in peaks))
    assert [cell.score for cell in cells] == pytest.approx(kept)


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
    for cell in cells:
        assert all(map(math.isfinite, cell.box))
        assert 0 <= cell.box[2] - cell.box[0] <= 4 * CANVAS
    assert cells[0].score == pytest.approx(0.9)


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
    [cell] = within([Located(box, 0.5)], FIELD, CANVAS / 320)
    assert cell.box == pytest.approx(expected)
    assert cell.score == 0.5


@pytest.mark.parametrize("box", [(10, 97, 50, 120), (-30, 10, -1, 40), (130, 10, 140, 20)])
def test_boxes_outside_the_field_are_dropped(box: Box) -> None:
    """Below row 96 the canvas of a landscape is black."""
    inside = Located((10, 10, 20, 20), 0.4)
    assert len(within([Located(box, 0.9), inside], FIELD, CANVAS / 320)) == 1


def paint(seed: int, width: int = 96, height: int = 72, cells: int = 1) -> Field:
    """Paint dark purple discs among reddish rings on light ground, none over another."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), (235, 228, 220), float)
    for x, y in random.uniform(0, (width, height), (12, 2)):
        distance = np.hypot(across - x, down - y)
        pixels[distance < 9] = (215, 150, 150)
        pixels[distance < 4] = (228, 195, 190)
    boxes: list[Box] = []
    while len(boxes) < cells:
        x, y = random.uniform(16, (width - 16, height - 16))
        radius = random.uniform(11, 14)
        box = (x - radius, y - radius, x + radius, y + radius)
        if all(overlap(box, other) == 0 for other in boxes):
            pixels[np.hypot(across - x, down - y) < radius] = (95, 55, 140)
            boxes.append(box)
    noisy = pixels + random.normal(0, 3, pixels.shape)
    return Field(noisy.clip(0, 255).astype(np.uint8), boxes)


@pytest.fixture(scope="module")
def trained() -> Locator:
    recipe = LocatorRecipe(60, batch_size=4, learning_rate=4e-3, cell_sizes=(0.25, 0.4))
    return train_locator([paint(seed) for seed in range(12)], recipe, 0, "painted")


def test_a_trained_locator_finds_painted_cells(trained: Locator) -> None:
    """An untrained one finds none."""
    fields = [paint(seed, cells=1 + seed % 2) for seed in range(100, 108)]
    found = locate(in_torch(trained), [field.pixels for field in fields])
    measured = measure_locator(found, [field.boxes for field in fields])
    assert measured["recall"] >= 0.5
    assert measured["false_share"] <= 0.4
    assert not trained.training


def test_a_seed_gives_the_same_locator_again() -> None:
    recipe = LocatorRecipe(steps=2, batch_size=2)
    fields = [paint(seed) for seed in range(3)]
    one, same, other = (train_locator(fields, recipe, seed, "").state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_field_alone_and_in_a_batch_has_the_same_cells(trained: Locator) -> None:
    fields = [paint(1).pixels, paint(2, 72, 96).pixels, paint(3, 90, 90).pixels]
    together = locate(in_torch(trained), fields)
    assert any(together)
    for cells, field in zip(together, fields, strict=True):
        [alone] = locate(in_torch(trained), [field])
        assert [cell.score for cell in alone] == pytest.approx(
            [cell.score for cell in cells], abs=1e-3
        )
        for one, other in zip(alone, cells, strict=True):
            assert one.box == pytest.approx(other.box, abs=0.05)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2)])
def test_an_empty_field_is_accepted(trained: Locator, size: tuple[int, int]) -> None:
    for cells in locate(
        in_torch(trained), [np.full((*size, 3), each, np.uint8) for each in (0, 255)]
    ):
        for cell in cells:
            assert 0 <= cell.box[0] < cell.box[2] <= size[1]
            assert 0 <= cell.box[1] < cell.box[3] <= size[0]


@pytest.mark.parametrize("shade", [-0.2, 0.2])
def test_the_colour_of_the_lamp_does_not_matter(shade: float) -> None:
    torch.manual_seed(0)
    locator = Locator().eval()
    canvas = torch.rand(1, 3, CANVAS, CANVAS)
    tint = shade * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(locator(canvas + tint), locator(canvas), atol=1e-4, rtol=0)


def located(*boxes: Box) -> list[Located]:
    return [Located(box, 0.9 - at / 10) for at, box in enumerate(boxes)]


SQUARE: Box = (0, 0, 10, 10)
HALF: Box = (0, 0, 10, 5)
LESS: Box = (0, 0, 10, 4.9)
ELSEWHERE: Box = (50, 50, 60, 60)


@pytest.mark.parametrize(
    ("found", "drawn", "right", "false"),
    [
        ([HALF], [SQUARE], 1, 0),
        ([LESS], [SQUARE], 0, 1),
        ([], [SQUARE], 0, 0),
        ([ELSEWHERE], [SQUARE], 0, 1),
        ([SQUARE, SQUARE], [SQUARE], 1, 1),
        ([ELSEWHERE, SQUARE], [SQUARE, ELSEWHERE], 2, 0),
    ],
)
def test_a_box_is_correct_once_if_it_overlaps_by_half(
    found: list[Box], drawn: list[Box], right: int, false: int
) -> None:
    measured = measure_locator([located(*found)], [drawn])
    assert (measured["boxes"], measured["found"], measured["false_boxes"]) == (
        len(drawn),
        right,
        false,
    )


def angle(degrees: float) -> np.ndarray:
    turn = math.radians(degrees)
    return np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])


CENTRE, ONTO = np.array([60.0, 40.0]), np.array([64.0, 64.0])


@pytest.mark.parametrize(
    ("onto", "expected", "share"),
    [((0, 64), (0, 54, 10, 74), 0.5), ((128, 128), (118, 118, 128, 128), 0.25)],
)
def test_a_cell_cut_off_keeps_its_visible_part(
    onto: tuple[int, int], expected: Box, share: float
) -> None:
    box, visible = _turned((50, 30, 70, 50), angle(0), np.array(onto), CENTRE)
    assert box == pytest.approx(expected)
    assert visible == pytest.approx(share)


def test_views_and_boxes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The box is where the dark disc is in the view."""
    monkeypatch.setattr(training, "recolour", lambda images: images)
    monkeypatch.setattr(training, "refocus", lambda images, *_, **__: images)
    monkeypatch.setattr(
        training, "warp", lambda images, maps, size, _: warp(images, maps, size, torch.ones(1))
    )
    down, across = np.mgrid[:120, :160]
    field = np.full((120, 160, 3), 255, np.uint8)
    field[np.hypot(across + 0.5 - 90, down + 0.5 - 70) < 20] = 0
    views, boxes = _view(
        [Field(field, [(70, 50, 110, 90)])] * 8, LOCATOR.cell_sizes, np.random.default_rng(0)
    )
    assert views.shape == (8, 3, CANVAS, CANVAS)
    for view, [(box, visible)] in zip(views, boxes, strict=True):
        if visible < 0.999:
            continue
        dark = np.argwhere(view[0].numpy() < 0.5)
        top, left = dark.min(0)
        bottom, right = dark.max(0) + 1
        assert (left, top, right, bottom) == pytest.approx(box, abs=1.5)


@pytest.mark.parametrize(
    "box", [(40, 40, 80, 72), (0, 0, 30, 20), (100, 90, 128, 128), (61, 61, 66, 67)]
)
def test_the_targets_decode_to_the_box(box: Box) -> None:
    heat, shapes, _near, _counts = _targets([[(box, 1.0)]])
    logits = heat.clamp(1e-4, 1 - 1e-4).logit()[:, None]
    [[cell]] = decode(torch.cat([logits, shapes], 1).numpy())
    assert cell.box == pytest.approx(box, abs=0.01)


def test_the_correct_output_costs_least() -> None:
    """False alarms cost nothing in a hardly visible cell."""
    targets = _targets([[((40, 40, 80, 72), 1.0)]])
    heat, shapes = targets[:2]
    right = torch.cat([heat.clamp(1e-4, 1 - 1e-4).logit()[:, None], shapes], 1)
    costs = [float(_loss(each, *targets)) for each in (right, right.roll(8, 3), right * 0)]
    assert costs[0] < 0.3
    assert costs[0] < min(costs[1:]) / 3
    seen, hidden = ((40.0, 40.0, 80.0, 72.0), 1.0), ((0.0, 100.0, 12.0, 128.0), 0.2)
    right[0, 0, 26:31, :3] = 5
    assert float(_loss(right, *_targets([[seen, hidden]]))) < 0.3
    assert float(_loss(right, *_targets([[seen]]))) > 1

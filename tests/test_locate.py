"""Training the locator: what canvases show, what it should output, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handler.locator import CANVAS, Located, locate
from handler.preprocessing import Box
from training import locate as training
from training import workers
from training.export import in_torch
from training.locate import (
    MOST_BOXES,
    Canvases,
    Source,
    _draw_field,
    _field,
    _loss,
    _targets,
    _turned,
    draw_canvases,
    frames,
    measure_locator,
    overlap,
    train_locator,
    turned,
)
from training.networks import Locator
from training.recipes import Fit, LocatorRecipe

FIT = Fit(40, 6, 4e-3, 0.02, decay=0.8, mean_from=0.5)
RECIPE = LocatorRecipe(FIT, 40, cell_sizes=(0.25, 0.4))


def paint(path: Path, seed: int, width: int = 96, height: int = 72, cells: int = 1) -> Source:
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
    file = path / f"{seed}.png"
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file)
    shares = ((b[0] / width, b[1] / height, b[2] / width, b[3] / height) for b in boxes)
    laboratory = "even" if seed % 2 == 0 else "odd"
    return Source(file, tuple(shares), laboratory, laboratory)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("fields")
    return [paint(folder, seed, cells=1 + seed % 2) for seed in range(8)] + [
        paint(folder, 100, cells=0)
    ]


@pytest.fixture(scope="module")
def canvases(sources: list[Source], tmp_path_factory: pytest.TempPathFactory) -> Canvases:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.os, "cpu_count", lambda: 1)
        return draw_canvases(sources, RECIPE, tmp_path_factory.mktemp("drawn") / "canvases")


def test_canvases_show_cells_of_one_part(canvases: Canvases) -> None:
    assert canvases.pixels.shape == (40, CANVAS, CANVAS, 3)
    assert canvases.boxes.shape == (40, MOST_BOXES, 5)
    assert set(canvases.parts) == {"even", "odd"}
    counts = (~np.isnan(canvases.boxes[..., 0])).sum(1)
    assert 0 < counts.mean() < 12
    assert counts.max() > 3
    seen = canvases.boxes[~np.isnan(canvases.boxes[..., 0])]
    assert 0 <= seen[:, :4].min() <= seen[:, :4].max() <= CANVAS
    assert 0 <= seen[:, 4].min() <= seen[:, 4].max() <= 1 + 1e-6


def test_a_trained_locator_finds_painted_cells(canvases: Canvases, tmp_path: Path) -> None:
    locator, _history = train_locator(canvases, np.arange(40), RECIPE, 0, "painted")
    fresh = [paint(tmp_path, seed) for seed in range(200, 208)]
    fields = [_field(source) for source in fresh]
    pixels = [field.levels[0][0].permute(1, 2, 0).numpy() for field in fields]
    found = locate(in_torch(locator), pixels)
    measured = measure_locator(found, [field.boxes for field in fields], [96] * 8)
    assert measured["recall"] >= 0.5
    assert not locator.training


def test_a_seed_gives_the_same_locator_again(canvases: Canvases) -> None:
    recipe = LocatorRecipe(Fit(2, 2, 4e-3, 0.02, 0.8, 0.5))
    rows = np.flatnonzero(canvases.parts == "odd")
    one, same, other = (
        train_locator(canvases, rows, recipe, seed, "")[0].state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("shade", [-0.2, 0.2])
def test_the_colour_of_the_lamp_does_not_matter(shade: float) -> None:
    torch.manual_seed(0)
    locator = Locator().eval()
    canvas = torch.rand(1, 3, CANVAS, CANVAS)
    tint = shade * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(locator(canvas + tint), locator(canvas), atol=1e-4, rtol=0)


def test_symmetries_turn_boxes_with_the_canvas() -> None:
    pixels = np.zeros((1, CANVAS, CANVAS, 3), np.uint8)
    pixels[0, 10:20, 40:90] = 255
    boxes = np.full((1, MOST_BOXES, 5), np.nan, np.float32)
    boxes[0, 0] = 40, 10, 90, 20, 1
    seen = set()
    for seed in range(40):
        changed, moved = turned(pixels, boxes, np.random.default_rng(seed))
        left, top, right, bottom, visible = moved[0, 0].tolist()
        seen.add((left, top))
        white = np.argwhere(changed[0, :, :, 0])
        assert (left, top) == tuple(white.min(0)[::-1])
        assert (right, bottom) == tuple(white.max(0)[::-1] + 1)
        assert visible == 1
    assert len(seen) == 8
    assert boxes[0, 0].tolist() == [40, 10, 90, 20, 1]


def test_a_drawn_field_and_its_boxes_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The box is where the dark disc is, at every resolution."""
    monkeypatch.setattr(training.torch, "rand", torch.ones)
    monkeypatch.setattr(training.torch, "zeros", torch.ones)
    down, across = np.mgrid[:240, :320]
    field = np.full((240, 320, 3), 255, np.uint8)
    field[np.hypot(across + 0.5 - 180, down + 0.5 - 140) < 40] = 0
    Image.fromarray(field).save(tmp_path / "field.png")
    box = (140 / 320, 100 / 240, 220 / 320, 180 / 240)
    random, whole = np.random.default_rng(0), 0
    for source in (
        Source(tmp_path / "field.png", (box,), "a", "a"),
        Source(tmp_path / "field.png", (box,), "a", "a", whole=False),
    ):
        made = _field(source)
        assert max(made.levels[0].shape[2:]) <= (384 if source.whole else 192)
        for _ in range(20):
            square, [(drawn, visible)] = _draw_field(made, CANVAS, (0.1, 0.9), random)
            assert square.shape == (1, 3, CANVAS, CANVAS)
            if visible < 0.999:
                continue
            whole += 1
            dark = np.argwhere(square[0, 0].numpy() < 0.5)
            top, left = dark.min(0)
            bottom, right = dark.max(0) + 1
            assert (left, top, right, bottom) == pytest.approx(drawn, abs=2)
    assert whole > 10


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
    measured = measure_locator([located(*found)], [drawn], [100])
    assert (measured["boxes"], measured["found"], measured["false_boxes"]) == (
        len(drawn),
        right,
        false,
    )


def test_recall_is_also_measured_by_the_share_of_the_frame() -> None:
    measured = measure_locator(
        [located(SQUARE), located(ELSEWHERE, SQUARE)], [[SQUARE], [SQUARE]], [100, 200]
    )
    rows = {row["from"]: row for row in measured["by_share"] if row["boxes"] or row["false_boxes"]}
    assert [rows[0.08][name] for name in ("boxes", "found", "false_boxes")] == [1, 1, 0]
    assert [rows[0.04][name] for name in ("boxes", "found", "false_boxes")] == [1, 1, 1]
    assert sum(row["boxes"] for row in measured["by_share"]) == measured["boxes"] == 2


def test_frames_of_mosaics_have_smaller_cells(sources: list[Source]) -> None:
    alone, four = (frames(sources, grid) for grid in (1, 2))
    assert (len(alone), len(four)) == (8, 2)
    assert {pixels.shape for pixels, _ in [*alone, *four]} == {(480, 640, 3)}
    assert sum(len(boxes) for _, boxes in four) == 12
    for pixels, boxes in four:
        for left, top, right, bottom in boxes:
            middle = pixels[round((top + bottom) / 2), round((left + right) / 2)]
            assert middle.tolist() == pytest.approx([95, 55, 140], abs=15)


def angle(degrees: float) -> np.ndarray:
    turn = math.radians(degrees)
    return np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])


CENTRE = np.array([60.0, 40.0])


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


def test_the_correct_output_costs_least() -> None:
    """False alarms cost nothing in a hardly visible cell."""
    targets = _targets(torch.tensor([[[40.0, 40, 80, 72, 1]]]))
    heat, shapes = targets[:2]
    right = torch.cat([heat.clamp(1e-4, 1 - 1e-4).logit()[:, None], shapes], 1)
    costs = [float(_loss(each, *targets)) for each in (right, right.roll(8, 3), right * 0)]
    assert costs[0] < 0.3
    assert costs[0] < min(costs[1:]) / 3
    seen, hidden = [40.0, 40, 80, 72, 1], [0.0, 100, 12, 128, 0.2]
    right[0, 0, 26:31, :3] = 5
    assert float(_loss(right, *_targets(torch.tensor([[seen, hidden]])))) < 0.3
    assert float(_loss(right, *_targets(torch.tensor([[seen]])))) > 1

"""Single cells: how they are cut out, and how the network that tells them apart is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handler.cells import ZOOM, Cutout, cut_out, to_amounts, window
from handler.locator import Located
from handler.networks import CellNet, Locator, flip_averaged_logits
from handler.preprocessing import HEIGHT, WIDTH, Box, Pixels, within_field
from handler.stains import AMOUNTS
from handler.verdict import CLASSES
from training import cells as training
from training.augment import cut_off, misjudge, recolour, refocus, restain, turns, warp
from training.cells import (
    MARGIN,
    PATCH,
    CellRecipe,
    CellSet,
    augment,
    collect,
    join,
    middle,
    predict_cells,
    surest,
    train_cells,
    train_network,
)
from training.data import OTHER, Sample
from training.metrics import balanced

SMALL = CellRecipe(channels=(8, 16), steps=4, batch_size=6, dropout=0.1)
AZURE, EOSIN = np.array((0.8, 1.1, 0.5)), np.array((0.12, 0.4, 0.35))


def paint(label: int = 0, seed: int = 0, width: int = 160, height: int = 120) -> Pixels:
    """Paint a cell in the middle of a smear.

    Its nucleus is small or large and has eosin around it or not; OTHER has no nucleus.
    """
    random = np.random.default_rng(seed)
    unit = height / 120
    down, across = (np.mgrid[:height, :width] + 0.5) / unit
    middle = width / unit / 2, 60.0
    blue, red = np.zeros((2, height, width))
    for x, y in [*random.uniform(0, 30, (2, 2)), *random.uniform((110, 85), (140, 115), (2, 2))]:
        red = np.maximum(red, np.hypot(across - x, down - y) < 10)
    distance = np.hypot(across - middle[0], down - middle[1])
    if label == OTHER:
        red[distance < 20] = 0.3
    else:
        blue[distance < (20 if label >= 2 else 11)] = 1
        red[(distance < 20) & (blue == 0)] = 1.2 if label % 2 else 0.0
    # Not the same when it is turned.
    blue[(distance < 20) & (across > middle[0] + 8) & (down < middle[1] - 8)] = 0
    density = blue[..., None] * AZURE + red[..., None] * EOSIN
    exact = 245 * np.exp(-density) + random.normal(0, 1.5, density.shape)
    pixels: Pixels = np.rint(exact).clip(0, 255).astype(np.uint8)
    return pixels


def box_of(field: Pixels) -> Box:
    """Return the box of the cell that `paint` paints."""
    height, width = field.shape[:2]
    radius = 20 * height / 120
    return width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius


def cutouts_of(fields: Sequence[Pixels]) -> list[Cutout]:
    return [cut_out(field, [Located(box_of(field), 0.9)])[0] for field in fields]


def painted(labels: Sequence[int], seed: int = 0, laboratory: str = "here") -> CellSet:
    fields = [paint(label, seed + at) for at, label in enumerate(labels)]
    wide = [
        cut_out(field, [Located(box_of(field), 0.9)], (PATCH, PATCH), ZOOM * MARGIN)[0].pixels
        for field in fields
    ]
    names = np.array([f"{laboratory} {at}" for at in range(len(labels))])
    return CellSet(
        cutouts_of(fields),
        np.stack(wide),
        np.array(labels),
        names,
        np.full(len(labels), laboratory),
        np.ones(len(labels), bool),
    )


# The window around a cell


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((100, 100, 140, 140), (84, 93, 156, 147)),
        ((100, 110, 140, 130), (84, 93, 156, 147)),
        ((110, 100, 130, 140), (84, 93, 156, 147)),
        ((0, 0, 40, 40), (-16, -7, 56, 47)),
    ],
    ids=["square", "wide", "high", "beyond the picture"],
)
def test_a_window_is_as_high_as_the_longer_side_and_a_third(box: Box, expected: Box) -> None:
    assert window(box, zoom=1.35) == pytest.approx(expected)


@pytest.mark.parametrize("box", [(3.2, 4.5, 91.7, 33.1), (-5, 0, 2, 300)])
@pytest.mark.parametrize(("zoom", "proportions"), [(1, 1), (2.5, 1), (1.35, 4 / 3)])
def test_a_window_keeps_middle_and_proportions(box: Box, zoom: float, proportions: float) -> None:
    left, top, right, bottom = window(box, zoom, proportions)
    middle = (left + right) / 2, (top + bottom) / 2
    assert middle == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    assert bottom - top == pytest.approx(zoom * max(box[2] - box[0], box[3] - box[1]))
    assert right - left == pytest.approx(proportions * (bottom - top))


# Cutting out


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 30, 30),
        (130, 90, 160, 120),
        (-10, 40, 20, 70),
        (0, 0, 160, 120),
        (50, 50, 52, 51),
        (80, 60, 80.2, 60.2),
        (159, 119, 160, 120),
    ],
)
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (PATCH, PATCH)])
def test_a_cell_anywhere_is_cut_out_at_the_size_asked_for(box: Box, size: tuple[int, int]) -> None:
    [cutout] = cut_out(paint(), [Located(box, 0.5)], size)
    assert cutout.pixels.shape == (size[1], size[0], 3)
    assert cutout.pixels.dtype == np.uint8
    assert cutout.stains.shape == (3, 3)
    assert np.isfinite(to_amounts([cutout])).all()


@pytest.mark.parametrize("size", [(1, 1), (320, 1), (1, 320), (2, 3)])
def test_a_cell_of_the_smallest_field_is_cut_out(size: tuple[int, int]) -> None:
    field = np.full((*size, 3), 200, np.uint8)
    [cutout] = cut_out(field, [Located((0, 0, size[1], size[0]), 0.5)])
    assert cutout.pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.isfinite(to_amounts([cutout])).all()


def test_the_cell_is_in_the_middle_and_fills_three_quarters_of_the_height() -> None:
    [cutout] = cutouts_of([paint(label=2)])
    nucleus = np.argwhere(to_amounts([cutout])[0, 0] > 0.5)
    low, high = nucleus.min(0).tolist(), (nucleus.max(0) + 1).tolist()
    # 60 / 1.35 pixels; the upper right is cut off, but neither whole side.
    assert (low[0] + high[0]) / 2 == pytest.approx(HEIGHT / 2, abs=1.5)
    assert (low[1] + high[1]) / 2 == pytest.approx(WIDTH / 2, abs=1.5)
    assert high[0] - low[0] == pytest.approx(HEIGHT / ZOOM, abs=3)


@pytest.mark.parametrize("size", [(320, 240), (240, 180), (120, 90)])
def test_a_cell_looks_the_same_however_far_the_microscope_was_zoomed(size: tuple[int, int]) -> None:
    one, other = to_amounts(cutouts_of([paint(1), paint(1, 0, *size)]))
    assert abs(one - other).mean() < 0.06


def test_what_lies_beyond_the_field_is_black() -> None:
    [cutout] = cut_out(paint(), [Located((-15, 40, 15, 70), 0.5)])
    assert not cutout.pixels[:, : WIDTH // 2 - 1].any()
    assert cutout.pixels[:, WIDTH // 2 + 1 :].min() > 0


def test_cells_come_in_their_order_with_stains_of_their_own() -> None:
    field = paint(2)
    field[10:30, 100:130] = np.rint(245 * np.exp(-0.5 * AZURE))
    boxes = [box_of(field), (100, 10, 130, 30)]
    dark, pale = cut_out(field, [Located(box, 0.5) for box in boxes])
    assert dark.stains[1].sum() > 1.5 * pale.stains[1].sum()
    [alone] = cut_out(field, [Located(boxes[1], 0.5)])
    assert (alone.pixels == pale.pixels).all()


def test_no_cells_are_no_cutouts() -> None:
    assert cut_out(paint(), []) == []


@pytest.mark.parametrize("count", [1, 3])
def test_amounts_of_dye_are_the_networks_input(count: int) -> None:
    dyes = to_amounts(cutouts_of([paint(label) for label in range(count)]))
    assert (dyes.shape, dyes.dtype) == ((count, 3, HEIGHT, WIDTH), np.float32)
    assert AMOUNTS[0] <= dyes.min() <= dyes.max() <= AMOUNTS[1]


def test_the_middle_of_a_nucleus_is_one_azure_and_no_eosin() -> None:
    [dyes] = to_amounts(cutouts_of([paint(label=2)]))
    assert dyes[:, HEIGHT // 2, WIDTH // 2].tolist() == pytest.approx([1, 0, 0], abs=0.1)


# The network


@pytest.mark.parametrize("channels", [(8,), (8, 16), (16, 32, 64, 96), (8, 16, 16, 24, 32)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_network_has_a_logit_for_each_class_and_for_none(
    channels: tuple[int, ...], count: int
) -> None:
    with torch.no_grad():
        logits = CellNet(channels, 0.1).eval()(torch.rand(count, 3, HEIGHT, WIDTH))
    assert logits.shape == (count, len(CLASSES) + 1)


def test_a_cell_alone_and_in_a_batch_has_the_same_logits() -> None:
    torch.manual_seed(0)
    network = CellNet((8, 16), 0.5).eval()
    cutouts = cutouts_of([paint(label) for label in range(4)])
    together = predict_cells(network, cutouts)
    alone = torch.cat([predict_cells(network, [cutout]) for cutout in cutouts])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)


def test_the_last_convolution_is_what_the_answer_is_pooled_from() -> None:
    network = CellNet((8, 16, 24), 0.1).eval()
    seen: list[torch.Tensor] = []
    network.last_convolution.register_forward_hook(lambda *each: seen.append(each[2]))
    with torch.no_grad():
        logits = network(torch.rand(2, 3, HEIGHT, WIDTH))
        pooled = torch.cat([seen[0].mean((2, 3)), seen[0].amax((2, 3))], 1)
        torch.testing.assert_close(network.classifier(pooled), logits)
    assert seen[0].shape == (2, 24, 8, 10)


# Which cells are drawn, and how often


def test_laboratories_count_alike_and_classes_in_each() -> None:
    here, there = painted([0, 0, 0, 1]), painted([2, 3, 3, 0], laboratory="there")
    both = join([here, there])
    share = balanced(both.laboratories, both.labels)
    assert share.tolist() == pytest.approx(
        [1 / 12] * 3 + [1 / 4] + [1 / 6] + [1 / 12] * 2 + [1 / 6]
    )


LEFT, MIDDLE, RIGHT = (
    Located((0, 40, 60, 80), 0.9),
    Located((70, 50, 90, 70), 0.6),
    Located((100, 0, 140, 50), 0.8),
)
COVERING = Located((75, 40, 120, 100), 0.5)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([LEFT, RIGHT, MIDDLE], MIDDLE),
        ([LEFT, MIDDLE, COVERING], MIDDLE),
        ([LEFT, COVERING], COVERING),
        ([LEFT, RIGHT], LEFT),
        ([], None),
    ],
    ids=["middle", "surest in the middle", "covering", "none there", "none"],
)
def test_the_labelled_cell_is_the_one_in_the_middle(
    cells: list[Located], expected: Located | None
) -> None:
    assert middle(cells, paint()) == expected


@pytest.mark.parametrize(("cells", "expected"), [([LEFT, MIDDLE], LEFT), ([], None)])
def test_the_labelled_cell_is_the_surest(cells: list[Located], expected: Located | None) -> None:
    assert surest(cells, paint()) == expected


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Return painted images, the second of another size and the third without any cell."""
    made = []
    for at, field in enumerate([paint(0), paint(1, 1, 360, 270), np.zeros((9, 9, 3), np.uint8)]):
        path = tmp_path / f"{at}.png"
        Image.fromarray(field).save(path)
        made.append(Sample(path, at, CLASSES[at], f"group {at}"))
    return made


@pytest.fixture
def known_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have cells found where they are painted, and a more likely one elsewhere."""

    def find(_locator: Locator, fields: Sequence[Pixels]) -> list[list[Located]]:
        return [
            [Located((0, 0, 20, 20), 0.9), Located(box_of(field), 0.5)] if field.any() else []
            for field in fields
        ]

    monkeypatch.setattr(training, "locate", find)


@pytest.mark.usefixtures("known_places")
def test_labelled_cells_are_cut_out_where_they_are_found(samples: list[Sample]) -> None:
    cells = collect(samples, "here", Locator(), middle)
    assert cells.found.tolist() == [True, True, False]
    assert cells.labels.tolist() == [0, 1]
    assert cells.groups.tolist() == ["group 0", "group 1"]
    assert cells.laboratories.tolist() == ["here"] * 2
    assert cells.patches.shape == (2, PATCH, PATCH, 3)
    fields = [training.read_field(sample.path) for sample in samples[:2]]
    assert [field.shape[1::-1] for field in fields] == [(160, 120), within_field((360, 270))]
    for cutout, expected in zip(cells.cutouts, cutouts_of(fields), strict=True):
        assert (cutout.pixels == expected.pixels).all()


@pytest.mark.usefixtures("known_places")
def test_the_other_way_to_choose_gives_other_cells(samples: list[Sample]) -> None:
    one, other = (collect(samples[:1], "here", Locator(), choose) for choose in (middle, surest))
    assert (one.patches != other.patches).any()


@pytest.mark.parametrize(
    "where", [np.array([3, 1]), np.array([False, True, False, True])], ids=["indices", "mask"]
)
def test_taking_some_cells_takes_all_of_them(where: np.ndarray) -> None:
    cells = painted([0, 1, 2, 3])
    taken = cells.take(where)
    expected = [1, 3] if where.dtype == bool else [3, 1]
    assert taken.labels.tolist() == expected
    assert taken.groups.tolist() == [f"here {at}" for at in expected]
    assert (taken.patches == cells.patches[expected]).all()
    assert all(one is cells.cutouts[at] for one, at in zip(taken.cutouts, expected, strict=True))


# What is drawn of a cell


def as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def unturned(strength: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.eye(2).repeat(len(strength), 1, 1), torch.zeros(len(strength), 2)

    monkeypatch.setattr(training, "turns", unturned)
    for name in ("cut_off", "misjudge", "restain", "refocus"):
        monkeypatch.setattr(training, name, lambda first, *_, **__: first)


def stains_of(cells: CellSet) -> torch.Tensor:
    return torch.from_numpy(np.stack([cutout.stains for cutout in cells.cutouts]))


def test_training_sees_what_the_service_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what is drawn: the same window of the same cell, in the same units."""
    as_it_is(monkeypatch)
    cells = painted([0, 1, 2, 3])
    drawn, served = augment(cells.patches, stains_of(cells)).numpy(), to_amounts(cells.cutouts)
    assert drawn.shape == served.shape
    assert abs(drawn - served).mean() < 0.04
    turned = served[..., ::-1]
    assert abs(drawn - turned).mean() > 3 * abs(drawn - served).mean()


def test_a_cell_at_the_border_is_drawn_with_black_beyond_it_as_it_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_it_is(monkeypatch)
    cell = [Located((-15, 40, 15, 70), 0.5)]
    [served] = cut_out(paint(), cell)
    [wide] = cut_out(paint(), cell, (PATCH, PATCH), ZOOM * MARGIN)
    drawn = augment(wide.pixels[None], torch.from_numpy(wide.stains)[None])
    assert abs(drawn.numpy() - to_amounts([served])).mean() < 0.06


def test_what_is_drawn_is_an_input_of_the_network() -> None:
    torch.manual_seed(0)
    cells = painted([0, 1, 2, 3] * 4)
    drawn = augment(cells.patches, stains_of(cells))
    assert (drawn.shape, drawn.dtype) == ((16, 3, HEIGHT, WIDTH), torch.float32)
    assert drawn.isfinite().all()
    assert -10 < drawn.min() < drawn.max() < 20


def test_every_draw_differs_but_a_seed_repeats_it() -> None:
    cells = painted([0] * 2)
    patches = cells.patches[[0, 0]]
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(augment(patches, stains_of(cells)))
    assert torch.equal(draws[0], draws[1])
    assert (draws[0] - draws[2]).abs().mean() > 0.05
    assert (draws[0][0] - draws[0][1]).abs().mean() > 0.05


@pytest.mark.parametrize(
    ("strength", "most_scale", "most_shift"), [(1.0, 0.35, 0.15), (0.0, 0.1, 0.04)]
)
def test_turns_keep_to_their_bounds(strength: float, most_scale: float, most_shift: float) -> None:
    torch.manual_seed(0)
    maps, shifts = turns(torch.full((2000,), strength))
    size = torch.linalg.det(maps).abs().sqrt().log().abs().max()
    assert 0.9 * most_scale < size <= most_scale + 1e-4
    assert 0.9 * most_shift < shifts.abs().max() <= most_shift
    assert 0.4 < (torch.linalg.det(maps) < 0).float().mean() < 0.6
    # Any angle: the first axis points everywhere.
    assert len(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).mul(2).round().unique()) >= 12


def images() -> torch.Tensor:
    return torch.rand(6, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1


def test_a_map_that_changes_nothing_gives_the_image() -> None:
    identity = torch.eye(2, 3).repeat(6, 1, 1)
    same = warp(images(), identity, (24, 32), torch.zeros(1))
    torch.testing.assert_close(same, images(), atol=1e-4, rtol=0)


def test_beyond_the_image_is_what_it_is_filled_with() -> None:
    away = torch.tensor([[1.0, 0, 5], [0, 1, 0]]).repeat(6, 1, 1)
    fill = torch.rand(6, 3, 1, 1)
    torch.testing.assert_close(
        warp(images(), away, (4, 5), fill), fill.expand(-1, -1, 4, 5), atol=1e-5, rtol=0
    )


def test_a_share_of_the_images_is_cut_off() -> None:
    torch.manual_seed(0)
    bright = torch.ones(400, 3, 24, 32)
    black = (cut_off(bright, 0.25) == 0).all(1).double().mean((1, 2))
    assert 0.12 < (black > 0).double().mean() < 0.28
    assert black.max() < 0.5
    assert torch.equal(cut_off(images(), 0.0), images())


FULL = torch.ones(6)


@pytest.mark.parametrize(
    "change",
    [
        recolour,
        lambda each: refocus(each, FULL, blurred=0.5, reach=2, noise=0.05),
        lambda each: restain(each, FULL),
    ],
)
def test_changes_keep_the_shape_and_give_each_image_its_own(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    torch.manual_seed(0)
    one = images()[:1].expand(6, -1, -1, -1)
    changed = change(one)
    assert changed.shape == one.shape
    assert changed.isfinite().all()
    assert (changed[1:] - changed[:1]).abs().mean((1, 2, 3)).min() > 1e-3


def test_colours_stay_colours() -> None:
    torch.manual_seed(0)
    hard = torch.cat([torch.zeros(50, 3, 4, 4), torch.ones(50, 3, 4, 4)])
    assert 0 <= recolour(hard).min() <= recolour(hard).max() <= 1


def test_without_blur_and_noise_most_images_stay() -> None:
    """Only a fifth is sharpened."""
    torch.manual_seed(0)
    many = images().repeat(20, 1, 1, 1)
    changed = (refocus(many, torch.ones(120), blurred=0.0, reach=2.0, noise=0.0) - many).abs().amax(
        (1, 2, 3)
    ) > 1e-4
    assert 0.1 < changed.double().mean() < 0.3


def test_blur_keeps_the_mean_and_takes_the_detail() -> None:
    torch.manual_seed(1)
    chequered = torch.zeros(40, 3, 24, 32)
    chequered[..., ::2] = 1
    blurred = refocus(chequered, torch.ones(40), blurred=1.0, reach=2.6, noise=0.0)
    assert blurred.mean() == pytest.approx(0.5, abs=0.02)
    assert blurred.std((1, 2, 3)).median() < 0.3


def test_the_measured_stain_is_mistaken_but_not_by_much() -> None:
    torch.manual_seed(0)
    stains = torch.rand(500, 3, 3) + 0.5
    errors = (misjudge(stains, torch.ones(500)) / stains).log().std((0, 2))
    assert errors.tolist() == pytest.approx([0.03, 0.1, 0.15], rel=0.15)


def test_at_no_strength_nothing_is_blurred_and_there_is_no_noise() -> None:
    """What is left is that a fifth is sharpened."""
    torch.manual_seed(0)
    many = images().repeat(20, 1, 1, 1)
    changed = refocus(many, torch.zeros(120), blurred=1.0, reach=2.6, noise=0.1)
    same = (changed - many).abs().amax((1, 2, 3)) < 1e-4
    assert 0.7 < same.double().mean() < 0.9


def test_at_no_strength_the_stain_is_as_it_was() -> None:
    torch.manual_seed(0)
    none, dyes = torch.zeros(6), images()
    torch.testing.assert_close(restain(dyes, none), dyes)
    stains = torch.rand(6, 3, 3) + 0.5
    torch.testing.assert_close(misjudge(stains, none), stains)


def test_a_cell_is_told_the_same_turned_by_half() -> None:
    torch.manual_seed(0)
    network = CellNet((8, 16), 0.0).eval()
    dyes = torch.rand(5, 3, HEIGHT, WIDTH)
    once, told = network(dyes), flip_averaged_logits(network, dyes)
    assert told.shape == (5, len(CLASSES) + 1)
    torch.testing.assert_close(told, flip_averaged_logits(network, dyes.flip(2, 3)))
    torch.testing.assert_close(told, (once + network(dyes.flip(2, 3))) / 2)
    assert (told - once).abs().max() > 1e-4


# Training


def same_weights(one: CellNet, other: CellNet) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_learns() -> None:
    labels = [1, 2, OTHER] * 8
    recipe = replace(SMALL, steps=40, batch_size=15, learning_rate=1e-2, decay=0.9)
    network, _history = train_cells(painted(labels), recipe, 0, "painted")
    fresh = painted(labels, seed=1000)
    right = predict_cells(network, fresh.cutouts).argmax(1).numpy() == fresh.labels
    assert right.mean() > 0.85
    assert not network.training


def test_a_seed_gives_the_same_network_again() -> None:
    cells = painted([0, 1, 2, 3])
    one, same, other = (train_cells(cells, SMALL, seed, "")[0] for seed in (3, 3, 4))
    assert same_weights(one, same)
    assert not same_weights(one, other)


def test_training_goes_on_from_a_copy_of_given_weights() -> None:
    cells = painted([0, 1, 2, 3])
    torch.manual_seed(9)
    start = CellNet(SMALL.channels, SMALL.dropout)
    before = {name: weight.clone() for name, weight in start.state_dict().items()}
    still, _ = train_cells(cells, replace(SMALL, learning_rate=0.0), 0, "", start)
    moved, _ = train_cells(cells, SMALL, 0, "", start)
    fresh, _ = train_cells(cells, SMALL, 0, "")
    assert same_weights(still, start)
    assert not same_weights(moved, start)
    assert not same_weights(moved, fresh)
    assert all(torch.equal(weight, before[name]) for name, weight in start.state_dict().items())


def test_what_is_kept_is_the_running_mean() -> None:
    """With a decay of 1 it stays at the first weights that it saw."""
    cells = painted([0, 1, 2, 3])
    first, _ = train_cells(cells, replace(SMALL, decay=1.0, mean_from=0.5), 0, "")
    last, _ = train_cells(cells, replace(SMALL, decay=0.0, mean_from=0.5), 0, "")
    between, _ = train_cells(cells, replace(SMALL, decay=0.5, mean_from=0.5), 0, "")
    weights = [network.classifier.weight for network in (first, between, last)]
    # It saw the weights after steps 3 and 4.
    torch.testing.assert_close(weights[1], (weights[0] + weights[2]) / 2)
    assert not torch.equal(weights[0], weights[2])


def test_the_history_has_a_row_for_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ROW", 3)
    _network, history = train_cells(painted([0, 1]), replace(SMALL, steps=7), 0, "")
    assert len(history) == 2
    assert all(0 <= row["train_accuracy"] <= 1 < 5 * row["train_loss"] for row in history)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the trainings that are run, and let them do nothing."""
    run: list[str] = []

    def train(
        cells: CellSet, recipe: CellRecipe, seed: int, title: str
    ) -> tuple[CellNet, list[dict[str, float]]]:
        run.append(" ".join(np.unique(cells.laboratories)))
        torch.manual_seed(seed)
        return CellNet(recipe.channels, recipe.dropout), [{"train_loss": 1.0}]

    monkeypatch.setattr(training, "train_cells", train)
    return run


@pytest.mark.usefixtures("known_places")
def test_what_was_trained_is_not_trained_again(
    samples: list[Sample], trainings: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    locator, checkpoint = Locator(), tmp_path / "new" / "network.pt"
    one, other = (
        train_network(locator, samples[:1], samples[1:], SMALL, 0, checkpoint) for _ in range(2)
    )
    assert trainings == ["pbc photographs"]
    assert same_weights(one[0], other[0])
    assert one[1] == other[1] == [{"train_loss": 1.0}]


@pytest.mark.usefixtures("known_places")
@pytest.mark.parametrize("what", ["recipe", "seed", "images", "other images", "locator", "code"])
def test_a_checkpoint_of_another_run_is_not_used(
    samples: list[Sample],
    trainings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    locators = [Locator() for _ in range(2)]
    checkpoint = tmp_path / "network.pt"
    train_network(locators[0], samples[:1], samples[1:2], SMALL, 0, checkpoint)
    if what == "code":
        monkeypatch.setattr(training, "TELLING", training.TELLING[1:])
    train_network(
        locators[what == "locator"],
        samples[:2] if what == "images" else samples[:1],
        [] if what == "other images" else samples[1:2],
        replace(SMALL, dropout=0.3) if what == "recipe" else SMALL,
        1 if what == "seed" else 0,
        checkpoint,
    )
    assert len(trainings) == 2

"""Single cells: how they are cut out, and how the network that classifies them is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handler.cells import ZOOM, Cutout, cut_out, to_amounts
from handler.locator import Located
from handler.preprocessing import HEIGHT, WIDTH, Box, Pixels, within_field
from training import cell_set, checkpoints
from training import cells as training
from training.cell_set import MARGIN, PATCH, CellSet, collect, middle, surest
from training.cells import augment, predict_cells, train_cells, train_network
from training.data import OTHER, Sample
from training.networks import CellNet, Locator, flip_averaged_logits
from training.protocol import CLASSES
from training.recipes import CellRecipe

SMALL = CellRecipe(channels=(8, 16), steps=4, batch_size=4, dropout=0.1)
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
    laboratories = np.full(len(labels), laboratory)
    cutouts = np.array(cutouts_of(fields), object)
    return CellSet(cutouts, np.stack(wide), np.array(labels), names, laboratories)


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (PATCH, PATCH)])
@pytest.mark.parametrize("field", [(160, 120), (1, 1), (320, 1), (2, 3)])
def test_any_cell_of_any_field_is_cut_out(field: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = paint()[: field[1], : field[0]]
    boxes: list[Box] = [(-10, 40, 20, 70), (0, 0, 160, 120), (80, 60, 80.2, 60.2)]
    for cutout in cut_out(pixels, [Located(box, 0.5) for box in boxes], size):
        assert cutout.pixels.shape == (size[1], size[0], 3)
        assert cutout.pixels.dtype == np.uint8
        assert cutout.stains.shape == (3, 3)
        assert np.isfinite(to_amounts([cutout])).all()


def test_the_cell_is_in_the_middle_and_fills_three_quarters_of_the_height() -> None:
    [cutout] = cutouts_of([paint(label=2)])
    nucleus = np.argwhere(to_amounts([cutout])[0, 0] > 0.5)
    low, high = nucleus.min(0).tolist(), (nucleus.max(0) + 1).tolist()
    # 60 / 1.35 pixels; the upper right is cut off, but neither whole side.
    assert (low[0] + high[0]) / 2 == pytest.approx(HEIGHT / 2, abs=1.5)
    assert (low[1] + high[1]) / 2 == pytest.approx(WIDTH / 2, abs=1.5)
    assert high[0] - low[0] == pytest.approx(HEIGHT / ZOOM, abs=3)


@pytest.mark.parametrize("size", [(320, 240), (120, 90)])
def test_the_zoom_of_the_microscope_does_not_matter(size: tuple[int, int]) -> None:
    one, other = to_amounts(cutouts_of([paint(1), paint(1, 0, *size)]))
    assert abs(one - other).mean() < 0.06


def test_the_middle_of_a_nucleus_is_one_azure_and_no_eosin() -> None:
    [dyes] = to_amounts(cutouts_of([paint(label=2)]))
    assert dyes[:, HEIGHT // 2, WIDTH // 2].tolist() == pytest.approx([1, 0, 0], abs=0.1)


@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 16, 16, 24, 32)])
def test_a_cell_alone_and_in_a_batch_has_the_same_logits(channels: tuple[int, ...]) -> None:
    """One for each class, and one for other cells."""
    torch.manual_seed(0)
    network = CellNet(len(CLASSES), channels, 0.5).eval()
    cutouts = cutouts_of([paint(label) for label in range(4)])
    together = predict_cells(network, cutouts)
    assert together.shape == (4, len(CLASSES) + 1)
    alone = torch.cat([predict_cells(network, [cutout]) for cutout in cutouts])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)


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
)
def test_the_labelled_cell_is_the_one_in_the_middle(
    cells: list[Located], expected: Located | None
) -> None:
    assert middle(cells, paint()) == expected


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
    """Find cells where they are painted, and a more likely one elsewhere."""

    def find(_locator: Locator, fields: Sequence[Pixels]) -> list[list[Located]]:
        return [
            [Located((0, 0, 20, 20), 0.9), Located(box_of(field), 0.5)] if field.any() else []
            for field in fields
        ]

    monkeypatch.setattr(cell_set, "locate", find)


@pytest.mark.usefixtures("known_places")
def test_labelled_cells_are_cut_out_where_they_are_found(samples: list[Sample]) -> None:
    """And another choice gives other cells."""
    cells = collect(samples, "here", Locator(), middle)
    assert cells.labels.tolist() == [0, 1]
    assert cells.groups.tolist() == ["group 0", "group 1"]
    assert cells.laboratories.tolist() == ["here"] * 2
    assert cells.patches.shape == (2, PATCH, PATCH, 3)
    fields = [cell_set.read_field(sample.path) for sample in samples[:2]]
    assert [field.shape[1::-1] for field in fields] == [(160, 120), within_field((360, 270))]
    for cutout, expected in zip(cells.cutouts, cutouts_of(fields), strict=True):
        assert (cutout.pixels == expected.pixels).all()
    both = CellSet.join([cells, painted([2], laboratory="elsewhere")])
    assert both.labels.tolist() == [0, 1, 2]
    assert both.laboratories.tolist() == ["here"] * 2 + ["elsewhere"]
    assert (collect(samples, "here", Locator(), surest).patches != cells.patches).any()


@pytest.mark.usefixtures("known_places")
def test_a_cell_with_a_box_is_the_one_in_it(samples: list[Sample]) -> None:
    """Several cells of an image may have labels; a box without a cell is skipped."""
    centre = replace(samples[0], box=(3 / 8, 1 / 3, 5 / 8, 2 / 3))
    corner = replace(centre, label=1, box=(0, 0, 1 / 8, 1 / 6))
    missed = replace(centre, label=2, box=(1 / 2, 1 / 2, 1, 1))
    cells = collect([centre, corner, missed], "here", Locator(), surest)
    assert cells.labels.tolist() == [0, 1]
    for one, choose in zip(cells.patches, (middle, surest), strict=True):
        assert (one == collect(samples[:1], "here", Locator(), choose).patches[0]).all()


def as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def unturned(strength: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.eye(2).repeat(len(strength), 1, 1), torch.zeros(len(strength), 2)

    monkeypatch.setattr(training, "turns", unturned)
    for name in ("cut_off", "misjudge", "restain", "refocus"):
        monkeypatch.setattr(training, name, lambda first, *_, **__: first)


def stains_of(cells: CellSet) -> torch.Tensor:
    return torch.from_numpy(np.stack([cutout.stains for cutout in cells.cutouts]))


def test_training_sees_what_the_service_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from the draws: the same window of the same cell, in the same units."""
    as_it_is(monkeypatch)
    cells = painted([0, 1, 2, 3])
    drawn, served = augment(cells.patches, stains_of(cells)).numpy(), to_amounts(cells.cutouts)
    assert drawn.shape == served.shape
    assert abs(drawn - served).mean() < 0.04
    turned = served[..., ::-1]
    assert abs(drawn - turned).mean() > 3 * abs(drawn - served).mean()


def test_logits_are_the_mean_over_a_cell_and_its_half_turn() -> None:
    torch.manual_seed(0)
    network = CellNet(len(CLASSES), (8, 16), 0.0).eval()
    dyes = torch.rand(5, 3, HEIGHT, WIDTH)
    once, mean = network(dyes), flip_averaged_logits(network, dyes)
    torch.testing.assert_close(mean, (once + network(dyes.flip(2, 3))) / 2)
    assert (mean - once).abs().max() > 1e-4


def same_weights(one: CellNet, other: CellNet) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_learns() -> None:
    labels = [1, 2, OTHER] * 4
    recipe = replace(SMALL, steps=30, batch_size=9, learning_rate=1e-2, decay=0.9)
    network, _history = train_cells(painted(labels), recipe, 0, "painted")
    fresh = painted(labels, seed=1000)
    right = predict_cells(network, fresh.cutouts).argmax(1).numpy() == fresh.labels
    assert right.mean() > 0.85
    assert not network.training


def test_training_starts_from_a_seed_or_a_copy_of_given_weights() -> None:
    cells = painted([0, 1, 2, 3])
    torch.manual_seed(9)
    start = CellNet(len(CLASSES), SMALL.channels, SMALL.dropout)
    before = {name: weight.clone() for name, weight in start.state_dict().items()}
    recipe = replace(SMALL, steps=2)
    still, _ = train_cells(cells, replace(recipe, learning_rate=0.0), 0, "", start)
    moved, fresh, again, other = (
        train_cells(cells, recipe, seed, "", base)[0]
        for seed, base in ((0, start), (0, None), (0, None), (4, None))
    )
    assert same_weights(still, start)
    assert not same_weights(moved, start)
    assert not same_weights(moved, fresh)
    assert same_weights(fresh, again)
    assert not same_weights(fresh, other)
    assert all(torch.equal(weight, before[name]) for name, weight in start.state_dict().items())


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the trainings, which do nothing."""
    run: list[str] = []

    def train(
        cells: CellSet, recipe: CellRecipe, seed: int, title: str
    ) -> tuple[CellNet, list[dict[str, float]]]:
        run.append(" ".join(np.unique(cells.laboratories)))
        torch.manual_seed(seed)
        return CellNet(len(CLASSES), recipe.channels, recipe.dropout), [{"train_loss": 1.0}]

    monkeypatch.setattr(training, "train_cells", train)
    return run


@pytest.mark.usefixtures("known_places")
def test_a_network_is_trained_once_for_the_same_run(
    samples: list[Sample], trainings: list[str], tmp_path: Path
) -> None:
    """Of the same data, recipe, seed, locator and code."""
    torch.manual_seed(0)
    locators, checkpoint = [Locator(), Locator()], tmp_path / "new" / "network.pt"

    def train(**changes: object) -> tuple[CellNet, list[dict[str, float]]]:
        run = {"locator": locators[0], "known": samples[:1], "others": samples[1:2], "seed": 0}
        return train_network(**{**run, "recipe": SMALL, "checkpoint": checkpoint, **changes})  # type: ignore[arg-type]

    one, other = train(), train()
    assert trainings == ["pbc photographs"]
    assert same_weights(one[0], other[0])
    assert one[1] == other[1] == [{"train_loss": 1.0}]
    changes = {
        "locator": locators[1],
        "known": samples[:2],
        "others": [],
        "seed": 1,
        "recipe": replace(SMALL, dropout=0.3),
    }
    for count, (name, value) in enumerate(changes.items(), 2):
        train(**{name: value})
        assert len(trainings) == count, name


def test_a_checkpoint_of_other_code_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    code = tmp_path / "code.py"
    code.write_text("old")
    path = tmp_path / "run.pt"
    checkpoints.Checkpoint(path, 1, ["code.py"]).save({"step": 3})
    assert checkpoints.Checkpoint(path, 1, ["code.py"]).load() == {"step": 3}
    code.write_text("new")
    assert checkpoints.Checkpoint(path, 1, ["code.py"]).load() is None

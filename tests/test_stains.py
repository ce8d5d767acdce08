"""The dyes measured in painted smears, whose dyes and lamp are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from handler.preprocessing import Box, Pixels
from handler.stains import (
    AMOUNTS,
    AZURE,
    EOSIN_BESIDE_AZURE,
    MAX_ALIKE,
    Floats,
    amounts,
    measure,
)

Array = npt.NDArray[Any]

SIDE = 128
NUCLEUS = (64, 48)
RADIUS = 13
BOX: Box = (46.0, 30.0, 82.0, 66.0)
RED_CELLS = [(x, y) for y in (12, 84) for x in range(12, 128, 24)] + [(16, 48), (112, 48)]
DYES = (0.8, 1.1, 0.5), (0.12, 0.4, 0.35)
LAMPS = {
    "white": (250, 250, 250),
    "yellow": (235, 220, 170),
    "blue": (190, 205, 240),
    "dim": (140, 135, 128),
}


@dataclass
class Smear:
    """A painted smear: its pixels, and where each of its parts is."""

    pixels: Pixels
    parts: dict[str, Array] = field(default_factory=dict)

    def mixed(self, stains: Floats) -> Array:
        """Return the amounts of dye in all of it: (3, H, W)."""
        crops = self.pixels[None].transpose(0, 3, 1, 2) / np.float32(255)
        return amounts(crops, stains[None])[0]

    def mean(self, stains: Floats, part: str) -> list[float]:
        mixed: list[float] = self.mixed(stains)[:, self.parts[part]].mean(1).tolist()
        return mixed


def disc(x: int, y: int, radius: float, side: int = SIDE) -> Array:
    down, across = np.mgrid[:side, :side]
    inside: Array = (across - x) ** 2 + (down - y) ** 2 < radius**2
    return inside


def paint(
    lamp: tuple[float, float, float] = LAMPS["white"],
    azure: tuple[float, float, float] = DYES[0],
    eosin: tuple[float, float, float] = DYES[1],
    azure_strength: float = 1.0,
    eosin_strength: float = 1.0,
    red_cells: Sequence[float] = (1,) * len(RED_CELLS),
    granules: tuple[float, float] = (0.0, 0.0),
) -> Smear:
    """Paint a nucleus and red cells by Beer and Lambert's law, with black below as in a canvas.

    The red cells have so much eosin each. A ring around the nucleus has `granules`: amounts of
    azure and of eosin.
    """
    nucleus, cell = disc(*NUCLEUS, RADIUS), disc(*NUCLEUS, RADIUS + 5)
    discs = [disc(*place, 9) for place in RED_CELLS[: len(red_cells)]]
    reds = sum((each * amount for each, amount in zip(discs, red_cells, strict=True)), 0 * cell)
    ring = cell & ~nucleus
    blue = nucleus + granules[0] * ring
    red = reds + granules[1] * ring
    density = blue[..., None] * np.array(azure) * azure_strength
    density = density + red[..., None] * np.array(eosin) * eosin_strength
    noise = np.random.default_rng(0).normal(0, 0.8, density.shape)
    pixels = np.rint(np.array(lamp) * np.exp(-density) + noise).clip(0, 255).astype(np.uint8)
    pixels[96:] = 0
    seen = np.arange(SIDE)[:, None] < 96
    parts = {
        "nucleus": nucleus,
        "red cells": (reds > 0) & seen,
        "granules": ring,
        "background": ~cell & (reds == 0) & seen,
    }
    return Smear(pixels, parts)


@pytest.mark.parametrize(
    ("lamp", "azure", "eosin"),
    [
        (LAMPS["white"], 0.5, 1.5),
        (LAMPS["yellow"], 1.6, 0.8),
        (LAMPS["blue"], 0.5, 1.5),
        (LAMPS["dim"], 1.6, 0.8),
    ],
)
def test_light_and_dyes_are_those_painted(
    lamp: tuple[float, float, float], azure: float, eosin: float
) -> None:
    """So the amount of a dye is 1 in what takes it up, and 0 elsewhere."""
    smear = paint(lamp, azure_strength=azure, eosin_strength=eosin)
    [stains] = measure(smear.pixels, [BOX])
    np.testing.assert_allclose(stains[0], lamp, rtol=0.02)
    np.testing.assert_allclose(stains[1], azure * np.array(DYES[0]), rtol=0.05, atol=0.02)
    np.testing.assert_allclose(stains[2], eosin * np.array(DYES[1]), rtol=0.05, atol=0.02)
    assert smear.mean(stains, "nucleus") == pytest.approx([1, 0, 0], abs=0.05)
    assert smear.mean(stains, "red cells") == pytest.approx([0, 1, 0], abs=0.05)
    assert smear.mean(stains, "background") == pytest.approx([0, 0, 0], abs=0.05)


@pytest.mark.parametrize("granules", [(0.4, 0.0), (0.3, 0.6)])
def test_a_mixture_of_dyes_is_taken_apart(granules: tuple[float, float]) -> None:
    smear = paint(granules=granules)
    [stains] = measure(smear.pixels, [BOX])
    assert smear.mean(stains, "granules") == pytest.approx([*granules, 0], abs=0.08)


def test_neither_dye_is_the_third_amount() -> None:
    """A green speck absorbs unlike azure and eosin."""
    smear = paint()
    smear.pixels[smear.parts["granules"]] = (60, 250, 60)
    [stains] = measure(smear.pixels, [BOX])
    assert abs(smear.mean(stains, "granules")[2]) > 0.5


def test_cells_share_light_and_eosin_but_not_azure() -> None:
    smear = paint()
    pale = disc(88, 48, 10)
    smear.pixels[pale] = np.rint(250 * np.exp(-0.6 * np.array(DYES[0])))
    one, other = measure(smear.pixels, [BOX, (78.0, 38.0, 98.0, 58.0)])
    assert (one[[0, 2]] == other[[0, 2]]).all()
    np.testing.assert_allclose(other[1], 0.6 * one[1], rtol=0.06)


def test_eosin_is_measured_outside_the_cells() -> None:
    """The granules of an eosinophil are not red cells, however large."""
    smear = paint()
    around = disc(*NUCLEUS, 19) & ~smear.parts["nucleus"]
    smear.pixels[around] = np.rint(250 * np.exp(-1.5 * np.array(DYES[1])))
    [with_granules], [without] = measure(smear.pixels, [BOX]), measure(paint().pixels, [BOX])
    np.testing.assert_allclose(with_granules[2], without[2], atol=0.02)


def test_thin_red_cells_and_pale_centres_are_ignored() -> None:
    [stains] = measure(paint(red_cells=[1.0] * 5 + [0.75] * 3 + [0.5] * 4).pixels, [BOX])
    np.testing.assert_allclose(stains[2], DYES[1], rtol=0.05, atol=0.02)


def test_the_light_between_crowded_red_cells_is_the_background() -> None:
    smear = paint(LAMPS["yellow"])
    crowd = smear.parts["background"] & (np.arange(SIDE) % 4 > 0)
    smear.pixels[crowd] = np.rint(LAMPS["yellow"] * np.exp(-np.array(DYES[1])))
    [stains] = measure(smear.pixels, [BOX])
    np.testing.assert_allclose(stains[0], LAMPS["yellow"], rtol=0.02)
    np.testing.assert_allclose(stains[2], DYES[1], rtol=0.05, atol=0.02)


def test_without_red_cells_eosin_is_derived_from_azure() -> None:
    smear = paint(red_cells=())
    [stains] = measure(smear.pixels, [BOX])
    np.testing.assert_allclose(stains[2], EOSIN_BESIDE_AZURE * np.linalg.norm(stains[1]), rtol=1e-5)
    assert smear.mean(stains, "nucleus") == pytest.approx([1, 0, 0], abs=0.05)


def test_without_a_nucleus_azure_is_assumed() -> None:
    smear = paint()
    [stains] = measure(smear.pixels, [(86.0, 40.0, 100.0, 56.0)])
    np.testing.assert_allclose(stains[1], AZURE)
    np.testing.assert_allclose(stains[2], DYES[1], rtol=0.05, atol=0.02)


def cosine(one: Floats, other: Floats) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("azure", [DYES[0], (0.9, 0.9, 0.3), (0.4, 1.2, 0.2)])
@pytest.mark.parametrize("red_cells", [(1,) * len(RED_CELLS), ()], ids=["red cells", "none"])
def test_the_dyes_of_a_smear_differ(
    azure: tuple[float, float, float], red_cells: Sequence[float]
) -> None:
    [stains] = measure(paint(azure=azure, red_cells=red_cells).pixels, [BOX])
    assert cosine(stains[1], stains[2]) <= MAX_ALIKE


def solid(*colour: int) -> Pixels:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


PICTURES = {
    "black": solid(0, 0, 0),
    "white": solid(255, 255, 255),
    "dark": solid(21, 21, 21),
    "blue": solid(0, 0, 255),
    "noise": np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8),
    "ramp": np.repeat(np.arange(SIDE, dtype=np.uint8)[:, None, None] * 2, SIDE, 1).repeat(3, 2),
    "one lit pixel": np.pad(np.full((1, 1, 3), 255, np.uint8), ((40, 87), (40, 87), (0, 0))),
    "one pixel": np.full((1, 1, 3), 200, np.uint8),
    "smear": paint().pixels,
}
BOXES: list[Box] = [
    (0, 0, 128, 128),
    (40.2, 40.2, 40.4, 40.4),
    (5, 5, 5, 5),
    (0, 50, 128, 50),
    (-30, -30, 20, 20),
    (110, 80, 300, 300),
    (-60, -60, -10, -10),
]


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_any_picture_gives_finite_stains_and_amounts(picture: Pixels) -> None:
    for box in BOXES:
        [stains] = measure(picture, [box])
        assert stains.shape == (3, 3)
        assert stains.dtype == np.float32
        assert np.isfinite(stains).all()
        assert 40 <= stains[0].min() <= stains[0].max() <= 255
        mixed = Smear(picture).mixed(stains)
        assert mixed.shape == (3, *picture.shape[:2])
        assert np.isfinite(mixed).all()
        assert AMOUNTS[0] <= mixed.min() <= mixed.max() <= AMOUNTS[1]

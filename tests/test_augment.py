"""The changes that training draws: bounds, and what stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from handler.preprocessing import Pixels
from training.augment import (
    recolour,
    recolour_slightly,
    refocus,
    restain,
    turns,
    warp,
    warp_within,
)


@pytest.mark.parametrize(("size", "stretch"), [(0.35, 0.1), (0.1, 0.0)])
def test_turns_keep_to_their_bounds(size: float, stretch: float) -> None:
    torch.manual_seed(0)
    maps = turns(2000, size, stretch)
    scales = torch.linalg.det(maps).abs().sqrt().log().abs().max()
    assert 0.9 * size < scales <= size + 1e-4
    assert 0.4 < (torch.linalg.det(maps) < 0).float().mean() < 0.6
    # Any angle: the first axis points everywhere.
    assert len(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).mul(2).round().unique()) >= 12


def test_turns_by_a_small_angle() -> None:
    torch.manual_seed(0)
    maps = turns(500, 0.0, 0.0, angle=0.25)
    angles = torch.atan2(maps[:, 0, 1].neg(), maps[:, 1, 1]).abs()
    assert 0.2 < angles.max() <= 0.25 + 1e-4


def images() -> torch.Tensor:
    return torch.rand(6, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1


def test_a_map_that_changes_nothing_gives_the_image() -> None:
    identity = torch.eye(2, 3).repeat(6, 1, 1)
    for same in (
        warp(images(), identity, (24, 32), torch.zeros(1)),
        warp_within(images(), identity, (24, 32)),
    ):
        torch.testing.assert_close(same, images(), atol=1e-4, rtol=0)


def test_beyond_the_image_is_what_it_is_filled_with_or_its_edge() -> None:
    away = torch.tensor([[1.0, 0, 5], [0, 1, 0]]).repeat(6, 1, 1)
    fill = torch.rand(6, 3, 1, 1)
    torch.testing.assert_close(
        warp(images(), away, (4, 5), fill), fill.expand(-1, -1, 4, 5), atol=1e-5, rtol=0
    )
    edge = warp_within(images(), away, (24, 5))
    torch.testing.assert_close(edge, images()[..., -1:].expand(-1, -1, -1, 5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("change", [recolour, recolour_slightly, refocus])
def test_changes_keep_the_shape_and_give_each_image_its_own(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    torch.manual_seed(1)
    one = images()[:1].expand(6, -1, -1, -1)
    changed = change(one)
    assert changed.shape == one.shape
    assert changed.isfinite().all()
    assert (changed[1:] - changed[:1]).abs().mean((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("change", [recolour, refocus])
def test_colours_stay_colours(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    hard = torch.cat([torch.zeros(50, 3, 8, 8), torch.ones(50, 3, 8, 8)])
    assert 0 <= change(hard).min() <= change(hard).max() <= 1


def stained(colour: tuple[float, float, float], seed: int) -> Pixels:
    """Make pixels of random amounts of one dye."""
    random = np.random.default_rng(seed)
    density = random.uniform(0.1, 1.2, (40, 40, 1)) * np.array(colour)
    density += random.normal(0, 0.05, density.shape)
    pixels: Pixels = (255 * np.exp(-density.clip(0, 4))).round().astype(np.uint8)
    return pixels


def densities(images: torch.Tensor) -> torch.Tensor:
    return -torch.log(images.clamp_min(1 / 255)).mean((2, 3))


def test_a_cell_is_restained_like_its_partner() -> None:
    """The share decides how far; dark pixels keep their colour."""
    cell, partner = stained((0.8, 1.0, 0.3), 0), stained((0.3, 0.6, 0.9), 1)
    cell[:4] = 0
    image, other = (torch.from_numpy(each).permute(2, 0, 1)[None] / 255 for each in (cell, partner))
    whole, half, none = (
        restain(image, [cell], [partner], torch.tensor([share])) for share in (1.0, 0.5, 0.0)
    )
    torch.testing.assert_close(none, image.clamp_min(1 / 255), atol=3e-3, rtol=0)
    assert (whole[:, :, :4] - image[:, :, :4]).abs().max() < 5e-3
    lit = whole[:, :, 4:]
    torch.testing.assert_close(densities(lit), densities(other), atol=0.05, rtol=0)
    middle = (densities(image[:, :, 4:]) + densities(lit)) / 2
    torch.testing.assert_close(densities(half[:, :, 4:]), middle, atol=0.02, rtol=0)


def test_blur_keeps_the_mean_and_takes_the_detail() -> None:
    torch.manual_seed(1)
    chequered = torch.full((200, 3, 24, 32), 0.3)
    chequered[..., ::2] = 0.7
    spreads = refocus(chequered).std((1, 2, 3))
    assert refocus(chequered).mean() == pytest.approx(0.5, abs=0.02)
    assert 0.2 < (spreads < 0.15).float().mean() < 0.5
    assert not math.isnan(float(spreads.sum()))

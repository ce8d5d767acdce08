"""The changes that training draws: bounds, and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from training.augment import cut_off, misjudge, recolour, refocus, restain, turns, warp

FULL = torch.ones(6)


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


@pytest.mark.parametrize(
    ("strength", "blurred", "noise"), [(1.0, 0.0, 0.0), (0.0, 1.0, 0.1)], ids=["no blur", "none"]
)
def test_without_blur_and_noise_a_fifth_is_sharpened(
    strength: float, blurred: float, noise: float
) -> None:
    torch.manual_seed(0)
    many = images().repeat(20, 1, 1, 1)
    changed = refocus(many, torch.full((120,), strength), blurred=blurred, reach=2.0, noise=noise)
    assert 0.1 < ((changed - many).abs().amax((1, 2, 3)) > 1e-4).double().mean() < 0.3


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


def test_at_no_strength_the_stain_is_as_it_was() -> None:
    torch.manual_seed(0)
    none, dyes = torch.zeros(6), images()
    torch.testing.assert_close(restain(dyes, none), dyes)
    stains = torch.rand(6, 3, 3) + 0.5
    torch.testing.assert_close(misjudge(stains, none), stains)

"""Random changes of images, like the differences between laboratories.

Geometry: rotated, mirrored, shifted, scaled. Stain and lamp: optical densities mixed, scaled and
bent (after Tellez et al. 2019), or moved towards those of a cell of another laboratory. Optics:
blur, sharpening, noise.

Batches are (N, 3, H, W) in [0, 1], with a draw for each image from torch's global generator.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from handler.preprocessing import Pixels

# Pixels of which red, green and blue add up to less lie outside the field.
DARK = 60


def turns(
    count: int, size: float = 0.35, stretch: float = 0.1, angle: float = math.pi
) -> torch.Tensor:
    """Draw affine maps (N, 2, 2): turned, mirrored, scaled by up to e^size, stretched."""
    turn = (torch.rand(count) * 2 - 1) * angle
    scale = torch.exp((torch.rand(count) * 2 - 1) * size)
    stretched = torch.exp((torch.rand(count) * 2 - 1) * stretch)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    cosine, sine = turn.cos(), turn.sin()
    across, down = scale * stretched * mirror, scale / stretched
    return torch.stack(
        [
            torch.stack([cosine * across, -sine * down], 1),
            torch.stack([sine * across, cosine * down], 1),
        ],
        1,
    )


def warp(
    images: torch.Tensor, maps: torch.Tensor, size: tuple[int, int], fill: torch.Tensor
) -> torch.Tensor:
    """Sample images at maps (N, 2, 3) from the result's coordinates, -1 to 1, to theirs.

    The result is (N, 3, *size), with `fill` outside the images.
    """
    grid = F.affine_grid(maps, [len(images), 3, *size], align_corners=False)
    return F.grid_sample(images - fill, grid, align_corners=False) + fill


def warp_within(images: torch.Tensor, maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Sample images like `warp`; outside them is what their edges show."""
    grid = F.affine_grid(maps, [len(images), 3, *size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def restain(
    images: torch.Tensor, cells: list[Pixels], partners: list[Pixels], share: torch.Tensor
) -> torch.Tensor:
    """Move the stain of images part of the way (N,) from that of their cells to their partners'.

    A stain is the mean and the covariance of the optical density.
    """
    means, spreads = _stains(cells)
    other_means, other_spreads = _stains(partners)
    density = _density(images).flatten(2)
    moved = other_spreads @ torch.linalg.inv(spreads) @ (density - means) + other_means
    lit = (images.sum(1, keepdim=True) >= DARK / 255).flatten(2)
    part = share[:, None, None] * lit
    return torch.exp(-(density + part * (moved - density)).clamp(0, 6)).view_as(images)


def recolour(images: torch.Tensor, grey: float = 0.15) -> torch.Tensor:
    """Draw another stain, lamp and exposure; a share of the images becomes grey."""
    count = len(images)
    mixture = torch.eye(3) + 0.15 * torch.randn(count, 3, 3)
    mixture = mixture * torch.exp(0.25 * torch.randn(count, 3, 1))
    mixture = mixture * torch.exp(0.25 * torch.randn(count, 1, 1))
    density = torch.bmm(mixture, _density(images).flatten(2)).view_as(images)
    density = density + 0.1 * torch.randn(count, 3, 1, 1) + 0.12 * torch.randn(count, 1, 1, 1)
    bright = torch.exp(-density.clamp(0, 6)).clamp_min(1e-4)
    bright = bright ** torch.exp(0.2 * torch.randn(count, 1, 1, 1))
    tone = bright.mean(1, keepdim=True)
    bright = torch.where(_some(count, grey), tone, bright)
    bright = torch.lerp(bright, tone, 0.6 * torch.rand(count, 1, 1, 1) * _some(count, 0.3))
    lamp = torch.exp(0.25 * torch.randn(count, 3, 1, 1))
    return torch.where(_some(count, 0.5), bright * lamp / lamp.amax(1, keepdim=True), bright)


def recolour_slightly(images: torch.Tensor) -> torch.Tensor:
    """Draw a little more of the same for images that are recoloured already."""
    count = len(images)
    density = _density(images) * torch.exp(0.1 * torch.randn(count, 3, 1, 1))
    return torch.exp(-(density + 0.05 * torch.randn(count, 3, 1, 1)).clamp(0, 6))


def refocus(images: torch.Tensor, reach: float = 2.2) -> torch.Tensor:
    """Blur and sharpen some of the images, and add noise.

    `reach` is the largest standard deviation of the blur, in pixels.
    """
    count, _, height, width = images.shape
    sigma = torch.where(torch.rand(count) < 0.4, torch.rand(count) * reach, 0.0)
    soft = _blur(height, sigma) @ images @ _blur(width, sigma).mT
    sharpen = 0.8 * torch.rand(count, 1, 1, 1) * _some(count, 0.2)
    soft = soft + sharpen * (soft - F.avg_pool2d(soft, 5, 1, 2))
    noise = 0.03 * torch.rand(count, 1, 1, 1) ** 2
    return (soft + noise * torch.randn_like(soft)).clamp(0, 1)


def _density(images: torch.Tensor) -> torch.Tensor:
    return -torch.log(images.clamp_min(1 / 255))


def _stains(cells: list[Pixels]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean (N, 3, 1) and the spread (N, 3, 3) of the densities of lit pixels."""
    means, spreads = zip(*map(_stain, cells), strict=True)
    mean, spread = (torch.as_tensor(np.stack(each)).float() for each in (means, spreads))
    return mean[..., None], spread


def _stain(pixels: Pixels) -> tuple[np.ndarray, np.ndarray]:
    tones = pixels[::4, ::4].reshape(-1, 3).astype(np.float32)
    lit = tones[tones.sum(1) > DARK]
    density = -np.log(np.maximum(lit if len(lit) >= 50 else tones, 1) / 255)
    return density.mean(0), np.linalg.cholesky(np.cov(density.T) + 1e-3 * np.eye(3))


def _some(count: int, share: float) -> torch.Tensor:
    return torch.rand(count, 1, 1, 1) < share


def _blur(side: int, sigma: torch.Tensor) -> torch.Tensor:
    """Return matrices (N, 1, side, side) that blur one axis."""
    place = torch.arange(side)
    distance = (place[:, None] - place) ** 2
    weights = torch.exp(-distance / (2 * sigma.clamp_min(0.01)[:, None, None] ** 2))
    return (weights / weights.sum(2, keepdim=True))[:, None]

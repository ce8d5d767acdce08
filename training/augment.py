"""Random changes of images, like the differences between laboratories.

Geometry: rotated, mirrored, shifted, scaled, cut off by the edge of the field. Stain and lamp:
optical densities mixed, scaled and bent (after Tellez et al. 2019). Optics: blur, noise.

Batches are (N, 3, H, W), with a draw for each image from torch's global generator. A strength (N,)
from 0 to 1 limits scale, shift, stain, blur and noise; the other changes do not depend on it.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def turns(strength: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw affine maps (N, 2, 2) and shifts (N, 2): any angle, mirrored, scaled, stretched.

    At full strength by up to e^0.35 and e^0.1, and shifted by up to 0.15.
    """
    count = len(strength)
    angle = torch.rand(count) * 2 * math.pi
    size = torch.exp((torch.rand(count) * 2 - 1) * (0.1 + 0.25 * strength))
    stretch = torch.exp((torch.rand(count) * 2 - 1) * (0.05 + 0.05 * strength))
    reach = 0.04 + 0.11 * strength
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    cosine, sine = angle.cos(), angle.sin()
    across, down = size * stretch * mirror, size / stretch
    turn = torch.stack(
        [
            torch.stack([cosine * across, -sine * down], 1),
            torch.stack([sine * across, cosine * down], 1),
        ],
        1,
    )
    return turn, (torch.rand(count, 2) * 2 - 1) * reach[:, None]


def warp(
    images: torch.Tensor, maps: torch.Tensor, size: tuple[int, int], fill: torch.Tensor
) -> torch.Tensor:
    """Sample images at maps (N, 2, 3) from the result's coordinates, -1 to 1, to theirs.

    The result is (N, 3, *size), with `fill` outside the images.
    """
    grid = F.affine_grid(maps, [len(images), 3, *size], align_corners=False)
    return F.grid_sample(images - fill, grid, align_corners=False) + fill


def cut_off(images: torch.Tensor, share: float = 0.25) -> torch.Tensor:
    """Blacken a share of the images beyond a random line, like the edge of a rotated field."""
    count, _, height, width = images.shape
    angle = torch.rand(count, 1, 1) * 2 * math.pi
    down = torch.linspace(-1, 1, height)[None, :, None]
    across = torch.linspace(-1, 1, width)[None, None, :] * width / height
    far = across * angle.cos() + down * angle.sin()
    distance = torch.where(torch.rand(count, 1, 1) < share, torch.rand(count, 1, 1), 9.0)
    return images * (far < distance + 0.2)[:, None]


def recolour(images: torch.Tensor) -> torch.Tensor:
    """Draw another stain, lamp and exposure for images in [0, 1]."""
    count = len(images)
    density = -torch.log(images.clamp_min(1 / 255))
    mixture = torch.eye(3) + 0.15 * torch.randn(count, 3, 3)
    mixture = mixture * torch.exp(0.25 * torch.randn(count, 3, 1))
    mixture = mixture * torch.exp(0.2 * torch.randn(count, 1, 1))
    density = torch.einsum("nij,njhw->nihw", mixture, density)
    lamp = 0.08 * torch.randn(count, 3, 1, 1) + 0.1 * torch.randn(count, 1, 1, 1)
    bright = torch.exp(-(density + lamp).clamp(0, 6)).clamp_min(1e-4)
    return bright ** torch.exp(0.15 * torch.randn(count, 1, 1, 1))


def misjudge(stains: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Draw errors of the measured stains (N, 3, 3): background, azure, eosin."""
    error = torch.tensor([0.03, 0.1, 0.15])[None, :, None] * strength[:, None, None]
    return stains * torch.exp(error * torch.randn(len(stains), 3, 3))


def restain(dyes: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Draw another uptake of the dyes, from amounts (N, 3, H, W)."""
    count, each = len(dyes), strength[:, None, None]
    curve = torch.exp(0.25 * each * torch.randn(count, 3, 1))[..., None]
    bent = dyes.clamp_min(1e-4) ** curve + dyes.clamp_max(0)
    uptake = torch.tensor([0.25, 0.5, 0.3])[:, None] * each
    mixture = torch.eye(3) + 0.1 * each * torch.randn(count, 3, 3)
    mixture = mixture * torch.exp(uptake * torch.randn(count, 3, 1))
    offset = 0.07 * each * torch.randn(count, 3, 1)
    return torch.einsum("nij,njhw->nihw", mixture, bent) + offset[..., None]


def refocus(
    images: torch.Tensor, strength: torch.Tensor, *, blurred: float, reach: float, noise: float
) -> torch.Tensor:
    """Blur a share of the images, sharpen some, and add noise.

    `reach` (pixels) and `noise` are the largest standard deviations.
    """
    count, _, height, width = images.shape
    sigma = torch.where(torch.rand(count) < blurred, torch.rand(count) * reach * strength, 0.0)
    soft = _blur(height, sigma) @ images @ _blur(width, sigma).mT
    sharpen = torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.2)
    one_pixel = torch.ones(1)
    around = _blur(height, one_pixel) @ soft @ _blur(width, one_pixel).mT
    soft = soft + sharpen * (soft - around)
    grain = noise * strength * torch.rand(count) ** 2
    return soft + torch.randn_like(soft) * grain[:, None, None, None]


def _blur(side: int, sigma: torch.Tensor) -> torch.Tensor:
    """Return matrices (N, 1, side, side) that blur one axis."""
    place = torch.arange(side)
    distance = (place[:, None] - place) ** 2
    weights = torch.exp(-distance / (2 * sigma.clamp_min(0.01)[:, None, None] ** 2))
    return (weights / weights.sum(2, keepdim=True))[:, None]

"""The gate: a cheap check, before any network, for a stained nucleus in the picture.

It reads optical densities: the red, green and blue light that each spot absorbs, relative to the
picture's own background. So neither the colour of the lamp nor its strength matters. A nucleus is
purple or blue: it absorbs green and red, but little blue. Red cells absorb green and blue, but
little red. Nothing in a smear absorbs red and blue but not green, in any laboratory.

It is written in torch and exported as a graph, like the networks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from handler.gate import SIZE
from handler.preprocessing import Size

# Darker than this share of the brightest is outside the field, as around an eyepiece.
BLACK = 0.15
# The assumed share of the field that is darker than the background: cells may be crowded.
CROWDED = 0.8
# The most that a lamp's channels differ by; a stronger tint is the picture's own colour.
TINT = 1.4
# Added to all tones, so that the density of black is finite.
DARK = 4
# The density of a nucleus in a pale smear. Darker ones do not score higher, or a purple speck would
# outweigh its surroundings.
DEEP = 0.25
# Half the sides of the squares that a nucleus may fill: from a small lymphocyte in a wide field to
# most of the picture.
RADII = (1, 2, 4)
# The share of the surroundings that lowers a spot's score. All of it would be best against purple
# clouds and gradients, but a nucleus that fills the picture is surrounded by itself.
SURROUNDINGS = 0.6
# A mean density of foreign colours of a sixteenth rules a picture out.
FOREIGN = 16


class Gate(nn.Module):
    """Map pictures (N, 3, H, W), tones from 0 to 255, to the stain score of their best spot (N,).

    Their size is SIZE, or a multiple of it. Scores are at most 1: above one half for nearly every
    nucleus, about 0 without one, and below 0 for colours that no smear has. Nothing is trained.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        # For the squares of RADII, then for those three times as wide.
        self.along_width, self.along_height = (_neighbours(side) for side in SIZE)
        areas = [(2 * radius + 1) ** 2 for radius in RADII]
        self.areas = torch.tensor(areas)[:, None, None].float()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        # Rounded like the tones of a picture.
        light = (F.adaptive_avg_pool2d(pictures, SIZE[::-1]) + 0.5).floor()
        brightest = light.amax(1, keepdim=True)
        field = (brightest >= BLACK * brightest.amax((2, 3), keepdim=True)).float()
        red, green, blue = self._densities(light, field).split(1, 1)
        # Minus the difference of red and green: neither red granules nor blue skies.
        nucleus = ((green - blue - (green - red).abs()) / DEEP).clamp(0, 1) * field
        foreign = ((red + blue) / 2 - green).clamp_min(0) * field
        inside, around = self._sums(torch.cat([nucleus, field], 1))
        held, area = (around - inside).unbind(1)
        # The highest mean of any square, minus a share of its surroundings.
        spots = inside[:, 0] / self.areas - SURROUNDINGS * held / area.clamp_min(1)
        colours: torch.Tensor = foreign.mean((1, 2, 3)) / field.mean((1, 2, 3))
        return spots.amax((1, 2, 3)) - FOREIGN * colours

    def _densities(self, light: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        """Return the optical density of each channel (N, 3, H, W) against the background."""
        # All stains absorb green. What is outside the field is made brighter than the field.
        green = light[:, 1:2] + 255 * (1 - field)
        place = (CROWDED * field.sum((1, 2, 3))).floor()
        crowded = _order_statistic(green.flatten(1), place)[:, None, None, None]
        clear = field * (light[:, 1:2] >= crowded).float()
        background = (light * clear).sum((2, 3)) / clear.sum((2, 3))
        background = torch.maximum(background, background.amax(1, keepdim=True) / TINT)
        return (background + DARK).log()[:, :, None, None] - (light + DARK).log()

    def _sums(self, planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum two planes (N, 2, H, W) over the squares around each place: (N, 2, squares, H, W).

        Over those of RADII, and those three times as wide.
        """
        rows = self.along_height.flatten(0, 1) @ planes
        sums = rows.reshape(-1, 2, *self.along_height.shape[:2], SIZE[0]) @ self.along_width
        inside, around = sums.chunk(2, 2)
        return inside, around


def _neighbours(side: int) -> torch.Tensor:
    """Return which places lie in the square around each place of a side: (squares, side, side)."""
    places = torch.arange(side)
    distance = (places[:, None] - places).abs()
    radii = [*RADII, *(3 * radius for radius in RADII)]
    return torch.stack([(distance <= radius).float() for radius in radii])


def _order_statistic(tones: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return the tone at a place (N,) of each sorted row (N, M); 255 at most.

    Two bits at a time, because ONNX graphs sort slowly.
    """
    found, quarters = torch.zeros_like(place), torch.arange(1.0, 4.0)
    for step in (64, 16, 4, 1):
        tried = found[:, None] + step * quarters
        # Tones are integers: 1 for each that is less.
        less = (tried[:, :, None] - tones[:, None]).clamp(0, 1).sum(2)
        found = found + step * (less <= place[:, None]).float().sum(1)
    return found

"""A cheap look, before any network: is there a stained nucleus in this picture?

Colours are read as optical densities: what each spot takes of the red, green and blue light that
the picture's own background lets through. So neither the lamp's colour nor its strength matters.
A nucleus is purple or blue: it takes green and red, hardly blue. Red cells take green and blue,
hardly red. Whatever the laboratory, nothing in a smear takes red and blue but leaves green.

It is written in torch, and serves as a graph, as the networks do.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from handler.gate import SIZE
from handler.preprocessing import Size

# Darker than this part of the brightest is not the field, but what a rotation or an eyepiece
# leaves round it.
BLACK = 0.15
# The share of the field that is taken to be darker than the background: the cells may crowd.
CROWDED = 0.8
# A lamp's strongest channel is no more than this times its weakest. Of what is more coloured, the
# rest is the picture's own colour.
TINT = 1.4
# A tone that is added to all, so that black takes a finite part of the light.
DARK = 4
# The density that tells a nucleus in a pale smear. A darker one does not count for more, or a
# purple speck would make up for its surroundings.
DEEP = 0.25
# Half the sides of the squares that a nucleus may fill: a small lymphocyte's in a wide field, and
# up to one that fills most of the picture.
RADII = (1, 2, 4)
# The part of the surroundings that is held against a spot. All of it would be best against purple
# clouds and gradients, but a nucleus that fills the picture is surrounded by itself.
SURROUNDINGS = 0.6
# A picture whose colours are foreign by a sixteenth, in density, can't make up for it.
FOREIGN = 16


class Gate(nn.Module):
    """Map pictures (N, 3, H, W), tones from 0 to 255, to how like a nucleus its best spot is.

    Their size is SIZE, or a multiple of it. The stains (N,) are 1 at most: more than one half
    for nearly every nucleus, about 0 where there is none, and below where colours are that no smear
    has. Nothing of it is learned.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        # Along a side, which places lie in the square round which; then those three times as wide.
        self.along_width, self.along_height = (_neighbours(side) for side in SIZE)
        areas = [(2 * radius + 1) ** 2 for radius in RADII]
        self.areas = torch.tensor(areas)[:, None, None].float()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        # Rounded as a picture's tones are.
        light = (F.adaptive_avg_pool2d(pictures, SIZE[::-1]) + 0.5).floor()
        brightest = light.amax(1, keepdim=True)
        field = (brightest >= BLACK * brightest.amax((2, 3), keepdim=True)).float()
        red, green, blue = self._densities(light, field).split(1, 1)
        # Less the difference of red and green: neither the red of granules nor the blue of skies.
        nucleus = ((green - blue - (green - red).abs()) / DEEP).clamp(0, 1) * field
        foreign = ((red + blue) / 2 - green).clamp_min(0) * field
        inside, around = self._sums(torch.cat([nucleus, field], 1))
        held, area = (around - inside).unbind(1)
        # The most that any square holds on average, less a part of what surrounds it.
        spots = inside[:, 0] / self.areas - SURROUNDINGS * held / area.clamp_min(1)
        colours: torch.Tensor = foreign.mean((1, 2, 3)) / field.mean((1, 2, 3))
        return spots.amax((1, 2, 3)) - FOREIGN * colours

    def _densities(self, light: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        """Return the optical density of each channel (N, 3, H, W) against the background."""
        # All that is stained takes green. What is no field is brighter than what is.
        green = light[:, 1:2] + 255 * (1 - field)
        place = (CROWDED * field.sum((1, 2, 3))).floor()
        crowded = _order_statistic(green.flatten(1), place)[:, None, None, None]
        clear = field * (light[:, 1:2] >= crowded).float()
        background = (light * clear).sum((2, 3)) / clear.sum((2, 3))
        background = torch.maximum(background, background.amax(1, keepdim=True) / TINT)
        return (background + DARK).log()[:, :, None, None] - (light + DARK).log()

    def _sums(self, planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum two planes (N, 2, H, W) over the squares round each place: (N, 2, squares, H, W).

        Over those of RADII, and over those three times as wide.
        """
        rows = self.along_height.flatten(0, 1) @ planes
        sums = rows.reshape(-1, 2, *self.along_height.shape[:2], SIZE[0]) @ self.along_width
        inside, around = sums.chunk(2, 2)
        return inside, around


def _neighbours(side: int) -> torch.Tensor:
    """Return, along a side, which places lie in the square round which: (squares, side, side)."""
    places = torch.arange(side)
    distance = (places[:, None] - places).abs()
    radii = [*RADII, *(3 * radius for radius in RADII)]
    return torch.stack([(distance <= radius).float() for radius in radii])


def _order_statistic(tones: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return the tone of each row (N, M) that so many (N,) come before, in order; 255 at most.

    By two bits at a time, as graphs that serve sort slowly.
    """
    found, quarters = torch.zeros_like(place), torch.arange(1.0, 4.0)
    for step in (64, 16, 4, 1):
        tried = found[:, None] + step * quarters
        # Tones are whole numbers, so this is 1 for each that is less.
        less = (tried[:, :, None] - tones[:, None]).clamp(0, 1).sum(2)
        found = found + step * (less <= place[:, None]).float().sum(1)
    return found

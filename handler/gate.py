"""A cheap look, before any network: is there a stained nucleus in this picture?

Colours are read as optical densities: what each spot takes of the red, green and blue light that
the picture's own background lets through. So neither the lamp's colour nor its strength matters.
A nucleus is purple or blue: it takes green and red, hardly blue. Red cells take green and blue,
hardly red. Whatever the laboratory, nothing in a smear takes red and blue but leaves green.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from handler.preprocessing import Pixels

# So small that the noise of single pixels cancels, and that it costs next to nothing; the smallest
# nuclei are still some pixels wide.
SIZE = (40, 30)
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

Plane = Any


def _neighbours(size: int) -> Plane:
    """Return, along a side, which places lie in the square round which: (squares, size, size)."""
    distance = abs(np.subtract.outer(np.arange(size), np.arange(size)))
    radii = [*RADII, *(3 * radius for radius in RADII)]
    return np.array([distance <= radius for radius in radii], np.float32)


_ALONG_WIDTH, _ALONG_HEIGHT = (_neighbours(side) for side in SIZE)
_AREAS = np.array([(2 * radius + 1) ** 2 for radius in RADII], np.float32)[:, None, None]
# Of a tone from 0 to 255, the logarithm that its density is a difference of.
_LOG = np.log(np.arange(256, dtype=np.float32) + DARK)


def _sums(planes: Plane) -> tuple[Plane, Plane]:
    """Sum planes (N, H, W) over the squares round each place: (N, squares, H, W).

    Over those of RADII, and over those three times as wide.
    """
    rows = _ALONG_HEIGHT.reshape(-1, SIZE[1]) @ planes
    sums = rows.reshape(len(planes), -1, *SIZE[::-1]) @ _ALONG_WIDTH
    return sums[:, : len(RADII)], sums[:, len(RADII) :]


def stain(pixels: Pixels) -> float:
    """Return how much the best spot of a picture (H, W, 3) looks like a stained nucleus.

    It is 1 at most: more than one half for nearly every nucleus, about 0 where there is none, and
    below where colours are that no smear has.
    """
    # The gap of 1 averages whole pixels first, which is quicker and no worse here.
    small = Image.fromarray(pixels).resize(SIZE, Image.Resampling.BOX, reducing_gap=1)
    # One plane for each channel; as a view it would be slower than the copy and all that follows.
    light = np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
    brightest = light.max(0)
    field = brightest >= BLACK * brightest.max()
    red, green, blue = _density(light, field)
    # Less the difference of red and green: neither the red of granules nor the blue of skies.
    nucleus = np.minimum(np.maximum((green - blue - abs(green - red)) / DEEP, 0), 1) * field
    foreign = np.maximum((red + blue) / 2 - green, 0) * field
    inside, around = _sums(np.stack([nucleus, field]))
    held, area = around - inside
    # The most that any square holds on average, less a part of what surrounds it.
    best = (inside[0] / _AREAS - SURROUNDINGS * held / np.maximum(area, 1)).max()
    return float(best - FOREIGN * foreign.sum() / np.count_nonzero(field))


def _density(light: Plane, field: Plane) -> Plane:
    """Return the optical density of each channel (3, H, W) against the background."""
    # All that is stained takes green.
    greens = light[1][field]
    place = int(CROWDED * len(greens))
    clear = field & (light[1] >= np.partition(greens, place)[place])
    background = light[:, clear].mean(1, dtype=np.float32)
    background = np.maximum(background, background.max() / TINT)
    return np.log(background + DARK)[:, None, None] - _LOG[light]

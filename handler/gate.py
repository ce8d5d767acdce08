"""A cheap look, before any network: is there a stained nucleus in this picture?

Colours are read as optical densities: what each spot takes of the red, green and blue light that
the picture's own background lets through. So neither the lamp's colour nor its strength matters.
A nucleus is purple or blue: it takes green and red, hardly blue. Red cells take green and blue,
hardly red. Whatever the laboratory, nothing in a smear takes red and blue but leaves green.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def stains(pictures: Sequence[Pixels]) -> list[float]:
    """Return how much the best spot of each picture (H, W, 3) looks like a stained nucleus.

    It is 1 at most: more than one half for nearly every nucleus, about 0 where there is none, and
    below where colours are that no smear has.
    """
    if not pictures:
        return []
    # One plane for each channel; as a view it would be slower than the copy and all that follows.
    small = np.stack([_shrink(pixels) for pixels in pictures])
    light = np.ascontiguousarray(small.transpose(0, 3, 1, 2))
    brightest = light.max(1)
    field = brightest >= BLACK * brightest.max((1, 2), keepdims=True)
    red, green, blue = _density(light, field).swapaxes(0, 1)
    # Less the difference of red and green: neither the red of granules nor the blue of skies.
    nucleus = np.minimum(np.maximum((green - blue - abs(green - red)) / DEEP, 0), 1) * field
    foreign = np.maximum((red + blue) / 2 - green, 0) * field
    inside, around = _sums(np.stack([nucleus, field]))
    held, area = around - inside
    # The most that any square holds on average, less a part of what surrounds it.
    spots = inside[0] / _AREAS - SURROUNDINGS * held / np.maximum(area, 1)
    best = spots.max((1, 2, 3)) - FOREIGN * foreign.mean((1, 2)) / field.mean((1, 2))
    scores: list[float] = best.tolist()
    return scores


def _shrink(pixels: Pixels) -> Pixels:
    # The gap of 1 averages whole pixels first, which is quicker and no worse here.
    small = Image.fromarray(pixels).resize(SIZE, Image.Resampling.BOX, reducing_gap=1)
    return np.asarray(small)


def _density(light: Plane, field: Plane) -> Plane:
    """Return the optical density of each channel (N, 3, H, W) against the background."""
    # All that is stained takes green. What is no field is sorted behind what is.
    greens = np.where(field, light[:, 1], np.uint8(255)).reshape(len(light), -1)
    place = (CROWDED * field.sum((1, 2))).astype(int)[:, None]
    crowded = np.take_along_axis(np.sort(greens), place, 1)[:, :, None]
    clear = field & (light[:, 1] >= crowded)
    # Sums of whole numbers, and exact.
    seen = light.reshape(*light.shape[:2], -1) @ clear.reshape(len(light), -1, 1).astype(np.float32)
    background = seen[:, :, 0] / clear.sum((1, 2), dtype=np.float32)[:, None]
    background = np.maximum(background, background.max(1, keepdims=True) / TINT)
    return np.log(background + DARK)[:, :, None, None] - _LOG[light]


def _sums(planes: Plane) -> tuple[Plane, Plane]:
    """Sum planes (..., H, W) over the squares round each place: (..., squares, H, W).

    Over those of RADII, and over those three times as wide.
    """
    rows = _ALONG_HEIGHT.reshape(-1, SIZE[1]) @ planes
    sums = rows.reshape(*planes.shape[:-2], -1, *SIZE[::-1]) @ _ALONG_WIDTH
    return sums[..., : len(RADII), :, :], sums[..., len(RADII) :, :, :]

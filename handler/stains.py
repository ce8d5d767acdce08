"""Colour deconvolution: amounts of dye, independent of a laboratory's stain, lamp and camera.

A smear is stained with azure, strongest in nuclei, and eosin, in red cells and the granules of
eosinophils. By the Beer-Lambert law the optical densities of dyes add up, so a pixel's density is
a linear mixture of the two dyes' colours (as in Macenko et al. 2009). Both colours are measured in
each image: azure in the nucleus of the cell, eosin in the red cells around it. The amounts are
relative to these: azure is 1 in the nucleus, eosin is 1 in red cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from handler.preprocessing import Box, Floats, Pixels

# Intensities (of 255) below this are noise.
DARKEST = 4.0
# Pixels of a lower sum (of 3 x 255) are the black border of a rotated or padded image.
BLACK = 60
# Defaults where a dye can't be measured: means over the training photographs. Eosin is relative to
# azure of norm 1.
EOSIN_BESIDE_AZURE = np.array([0.11, 0.22, 0.18], np.float32)
AZURE = np.array([0.8, 1.1, 0.5], np.float32)
# Least share of an image that red cells must cover for their colour to be used.
MIN_RED_CELLS = 0.01
# The cell may extend beyond its box by this share of the box's sides.
MARGIN = 0.15
MIN_PIXELS = 12
# Amounts are clipped to this range.
AMOUNTS = (-0.5, 2.0)
# Cosine of two dyes' colours above which they can't be separated.
MAX_ALIKE = 0.985


def measure(thumbnail: Pixels, boxes: Sequence[Box]) -> list[Floats]:
    """Measure the stains around each cell: (3, 3), rows background, azure, eosin; columns RGB.

    The background is an intensity, 0 to 255; the dyes are optical densities.
    """
    # Background and red cells are everywhere: a quarter of the pixels is enough.
    coarse = thumbnail[::2, ::2].reshape(-1, 3)
    lit = coarse.sum(1, dtype=np.int32) > BLACK
    background = _background(coarse[lit])
    outside = lit & ~_inside(thumbnail.shape, boxes)[::2, ::2].ravel()
    eosin = _eosin(_density(coarse[outside], background), coarse.shape[0])
    inner = (_part(thumbnail, box) for box in boxes)
    return [_stains(background, _azure(pixels, background), eosin) for pixels in inner]


def amounts(crops: Floats, stains: Floats) -> Floats:
    """Unmix crops (N, 3, H, W) in [0, 1] to amounts of azure, eosin and neither: (N, 3, H, W).

    `measure` returns the stains (N, 3, 3), always different enough to be separated.
    """
    background, azure, eosin = stains.swapaxes(0, 1)
    light = np.maximum(crops * np.float32(255), np.float32(DARKEST))
    density = -np.log(light / background[:, :, None, None])
    neither = np.cross(azure, eosin)
    neither /= _length(neither) + np.float32(1e-6)
    neither *= _length(azure) / 2
    unmix = np.linalg.inv(np.stack([azure, eosin, neither], 2))
    mixed = unmix @ density.clip(-0.2, 3.0).reshape(*density.shape[:2], -1)
    clipped: Floats = mixed.reshape(density.shape).clip(*AMOUNTS)
    return clipped


def _length(vectors: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(vectors, axis=1, keepdims=True)
    return lengths


def _background(lit: Pixels) -> Floats:
    """Return the colour (3,) of the empty background: bright, but not the brightest specks."""
    if not len(lit):
        return np.full(3, 255, np.float32)
    place = int(0.85 * (len(lit) - 1))
    bright: Floats = np.partition(lit, place, axis=0)[place].astype(np.float32)
    return np.maximum(bright, 40)


def _density(pixels: Pixels, background: Floats) -> Floats:
    density: Floats = -np.log(np.maximum(pixels, DARKEST) / background)
    return density


def _azure(inner: Pixels, background: Floats) -> Floats:
    """Return the nucleus's density (3,): the median of the pixels in the box that absorb red."""
    density = _density(inner[inner.sum(1, dtype=np.int32) > BLACK], background)
    if len(density) < MIN_PIXELS:
        return AZURE
    red = density[:, 0]
    azure: Floats = np.median(density[red > _otsu(red)], axis=0)
    # A nucleus absorbs red and green light.
    return azure if azure[0] > 0.05 and azure[1] > 0.05 else AZURE


def _eosin(outer: Floats, pixels: int) -> Floats | None:
    """Return the red cells' density (3,): the median of pixels that absorb blue more than red."""
    mean = outer.mean(1)
    red_cells = (mean > 0.12) & (outer[:, 2] > outer[:, 0])
    if red_cells.sum() < max(MIN_PIXELS, MIN_RED_CELLS * pixels):
        return None
    full = red_cells & (mean > 0.8 * np.median(mean[red_cells]))
    eosin: Floats = np.maximum(np.median(outer[full], axis=0), 0.02)
    return eosin


def _stains(background: Floats, azure: Floats, eosin: Floats | None) -> Floats:
    """Stack the stains, with defaults where eosin is missing or too similar to azure."""
    if eosin is None or _alike(azure, eosin):
        eosin = EOSIN_BESIDE_AZURE * np.linalg.norm(azure)
    if _alike(azure, eosin):
        azure, eosin = AZURE, EOSIN_BESIDE_AZURE * np.linalg.norm(AZURE)
    return np.stack([background, azure, eosin]).astype(np.float32)


def _alike(one: Floats, other: Floats) -> bool:
    return bool(one @ other > MAX_ALIKE * np.linalg.norm(one) * np.linalg.norm(other))


def _part(thumbnail: Pixels, box: Box) -> Pixels:
    left, top, right, bottom = (int(side) for side in box)
    part = thumbnail[max(top, 0) : bottom + 1, max(left, 0) : right + 1]
    return part.reshape(-1, 3)


def _inside(shape: tuple[int, ...], boxes: Sequence[Box]) -> npt.NDArray[np.bool_]:
    """Return a mask (H, W) of the pixels in any of the boxes, each widened by MARGIN."""
    marked = np.zeros(shape[:2], bool)
    for left, top, right, bottom in boxes:
        across, down = (right - left) * MARGIN, (bottom - top) * MARGIN
        rows = slice(max(0, int(top - down)), int(bottom + down) + 1)
        columns = slice(max(0, int(left - across)), int(right + across) + 1)
        marked[rows, columns] = True
    return marked


def _otsu(values: Floats) -> float:
    """Return the threshold that maximises the variance between two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, 64)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    parted = (below > 0) & (below < below[-1])
    share = np.where(parted, below * (below[-1] - below), 1)
    between = np.where(parted, (sums[-1] * below / below[-1] - sums) ** 2 / share, 0)
    return float(edges[1:][int(between.argmax())])

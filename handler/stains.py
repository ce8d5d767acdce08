"""From colours to dyes: the same input whatever the laboratory's stain, lamp and camera.

A smear is stained by two dyes: azure, which nuclei take up most, and eosin, which red cells and
the granules of eosinophils do. By Beer and Lambert's law the optical densities of dyes add up, so
that a pixel's density is a mixture of the two dyes' colours (as in Macenko et al. 2009). Both
colours are measured in each picture: azure's in the nucleus of the cell in question, eosin's in the
red cells around. What the network sees are amounts: azure is 1 in the nucleus, eosin 1 in the red
cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from handler.preprocessing import Box, Floats, Pixels

# Of a colour, what a lamp and camera can tell from black.
DARKEST = 4.0
# Pixels darker than this, of 3 x 255, are the black beside a turned or padded picture.
BLACK = 60
# What red cells are in a picture that shows none, beside a nucleus of density 1: the mean of the
# photographs that training has.
EOSIN_BESIDE_AZURE = np.array([0.11, 0.22, 0.18], np.float32)
AZURE = np.array([0.8, 1.1, 0.5], np.float32)
# The share of a picture that must be red cells if their colour is to be trusted.
MIN_RED_CELLS = 0.01
# How far around a cell's box there may still be some of it, in shares of its sides.
MARGIN = 0.15
MIN_PIXELS = 12
# Amounts beyond these say nothing more.
AMOUNTS = (-0.5, 2.0)
# The cosine of two dyes' colours above which they can't be told from each other.
MAX_ALIKE = 0.985


def measure(thumbnail: Pixels, boxes: Sequence[Box]) -> list[Floats]:
    """Measure the light and dyes around each cell: (3, 3), rows background, azure, eosin.

    The background is in units of the pixels, 0 to 255, the dyes in densities by channel.
    """
    # Background and red cells are all over the picture: every other pixel will do.
    coarse = thumbnail[::2, ::2].reshape(-1, 3)
    lit = coarse.sum(1, dtype=np.int32) > BLACK
    background = _background(coarse[lit])
    outside = lit & ~_inside(thumbnail.shape, boxes)[::2, ::2].ravel()
    eosin = _eosin(_density(coarse[outside], background), coarse.shape[0])
    inner = (_part(thumbnail, box) for box in boxes)
    return [_stains(background, _azure(pixels, background), eosin) for pixels in inner]


def amounts(crops: Floats, stains: Floats) -> Floats:
    """Map crops (N, 3, H, W) in [0, 1] to amounts of azure, eosin and neither: (N, 3, H, W).

    The stains (N, 3, 3) are as `measure` returns them: never so alike that they can't be told.
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
    """Return the colour of light that passed through nothing: bright, but no speck of dust."""
    if not len(lit):
        return np.full(3, 255, np.float32)
    place = int(0.85 * (len(lit) - 1))
    bright: Floats = np.partition(lit, place, axis=0)[place].astype(np.float32)
    return np.maximum(bright, 40)


def _density(pixels: Pixels, background: Floats) -> Floats:
    density: Floats = -np.log(np.maximum(pixels, DARKEST) / background)
    return density


def _azure(inner: Pixels, background: Floats) -> Floats:
    """Return the nucleus's density: the median of what absorbs red light in the cell's box."""
    density = _density(inner[inner.sum(1, dtype=np.int32) > BLACK], background)
    if len(density) < MIN_PIXELS:
        return AZURE
    red = density[:, 0]
    azure: Floats = np.median(density[red > _otsu(red)], axis=0)
    # A nucleus absorbs red and green light; what does not is none.
    return azure if azure[0] > 0.05 and azure[1] > 0.05 else AZURE


def _eosin(outer: Floats, pixels: int) -> Floats | None:
    """Return the red cells' density: the median of what absorbs blue more than red around cells."""
    mean = outer.mean(1)
    red_cells = (mean > 0.12) & (outer[:, 2] > outer[:, 0])
    if red_cells.sum() < max(MIN_PIXELS, MIN_RED_CELLS * pixels):
        return None
    full = red_cells & (mean > 0.8 * np.median(mean[red_cells]))
    eosin: Floats = np.maximum(np.median(outer[full], axis=0), 0.02)
    return eosin


def _stains(background: Floats, azure: Floats, eosin: Floats | None) -> Floats:
    """Stack what was measured, with guesses where there is no eosin or it looks like azure."""
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
    """Mark the pixels in any of the boxes, each widened by a share of its sides."""
    marked = np.zeros(shape[:2], bool)
    for left, top, right, bottom in boxes:
        across, down = (right - left) * MARGIN, (bottom - top) * MARGIN
        rows = slice(max(0, int(top - down)), int(bottom + down) + 1)
        columns = slice(max(0, int(left - across)), int(right + across) + 1)
        marked[rows, columns] = True
    return marked


def _otsu(values: Floats) -> float:
    """Return the threshold that parts values into the two most compact halves (Otsu 1979)."""
    counts, edges = np.histogram(values, 64)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    parted = (below > 0) & (below < below[-1])
    share = np.where(parted, below * (below[-1] - below), 1)
    between = np.where(parted, (sums[-1] * below / below[-1] - sums) ** 2 / share, 0)
    return float(edges[1:][int(between.argmax())])

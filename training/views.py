"""Augmented views of the cells, drawn once and shared by all runs.

A view shows a cell turned, scaled and recoloured, half of them after re-staining it like its
partner, a cell of another laboratory. Some look as if the image were cropped close to the cell.
A run uses the views whose cell and partner it may see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from handler.cells import ZOOM
from handler.preprocessing import HEIGHT, WIDTH, Pixels
from training.augment import recolour, recolour_slightly, refocus, restain, turns, warp_within
from training.checkpoints import columns
from training.crops import MARGIN, NEGATIVES, CellSet
from training.networks import scale, to_input, to_planes
from training.protocol import CLASSES
from training.workers import on_device

# The size of a view: that of a window, with more pixels.
VIEW = (84, 112)
# All classes are drawn equally often, but those that are rare in blood less. Within a class, each
# cell of a laboratory is drawn 1 / cells^BALANCE as often.
RARE = {CLASSES.index("BASOPHIL"): 0.3}
BALANCE = 0.6
# The share of the views that are re-stained, and the farthest that a cell is off the middle.
RESTAINED, SHIFT = 0.5, 0.12
# The share of the views that are cropped, and how far from the middle, in shares of half the view's
# height. The cell ends at three quarters, but for its shift and its scale.
CROPPED, CROP = 0.3, (0.6, 1.2)
NO_PARTNER = -1
CODE = ("training/views.py", "training/augment.py", "handler/cells.py")


@dataclass
class Views:
    """N views (N, 84, 112, 3), and the indices of their cells and partners (or NO_PARTNER)."""

    pixels: Pixels
    cells: np.ndarray
    partners: np.ndarray

    def seen(self, seen_cells: np.ndarray) -> np.ndarray:
        """Return the indices of the views that show only cells of this mask."""
        partners = seen_cells[self.partners] | (self.partners == NO_PARTNER)
        return np.flatnonzero(seen_cells[self.cells] & partners)


def views_of(cells: CellSet, count: int, folder: Path) -> Views:
    """Return views of a laboratory's cells that are drawn once, and kept in a folder."""
    chosen, partners = choose(cells, count, np.random.default_rng(0))
    patches = folder.parent / "cells" / "patches.npy"
    drawn = columns(
        folder,
        (cells.identity, count),
        CODE,
        count,
        {"pixels": ((*VIEW, 3), "u1")},
        partial(_draw_rows, patches, chosen, partners),
    )
    return Views(drawn["pixels"], chosen, partners)


def choose(
    cells: CellSet, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the cells of views, and their partners."""
    negative = np.isin(cells.kinds, NEGATIVES)
    strata = [f"{one} {other}" for one, other in zip(cells.laboratories, cells.labels, strict=True)]
    shares = _counts(strata) ** -BALANCE * np.where(negative, 0.5, 1.0)
    for label in np.unique(cells.labels):
        own = cells.labels == label
        shares[own] *= RARE.get(label, 1.0) / shares[own].sum()
    chosen = random.choice(len(strata), count, p=shares / shares.sum())
    partners = _partners(cells, chosen, ~negative, random)
    return chosen, np.where(random.random(count) < RESTAINED, partners, NO_PARTNER)


def draw(patches: Pixels, partners: Sequence[Pixels | None]) -> Pixels:
    """Draw a view of each patch, re-stained like its partner if it has one."""
    count = len(patches)
    across, down = ZOOM / MARGIN * WIDTH / HEIGHT, ZOOM / MARGIN
    shift = (torch.rand(count, 2, 1) * 2 - 1) * SHIFT * down
    maps = torch.cat([turns(count) * torch.tensor([across, down]), shift], 2)
    images = warp_within(to_input(patches), maps, VIEW)
    share = torch.rand(count) * torch.tensor([each is not None for each in partners])
    others = [own if each is None else each for own, each in zip(patches, partners, strict=True)]
    images = recolour(restain(images, list(patches), others, share))
    images = crop(refocus(images, 2.2 * VIEW[0] / HEIGHT))
    pixels: Pixels = images.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def crop(images: torch.Tensor) -> torch.Tensor:
    """Crop some images, and repeat their edges to fill their size, as `handler.preprocessing.cut`.

    Each of the four sides is cropped by itself, as far as it is within the image.
    """
    count, _, height, width = images.shape
    cropped = torch.rand(count, 1) < CROPPED
    for axis, side in ((2, height), (3, width)):
        ends = height / 2 * torch.empty(count, 2).uniform_(*CROP)
        first = torch.where(cropped, side / 2 - ends[:, :1], 0).long().clamp_min(0)
        last = torch.where(cropped, side / 2 + ends[:, 1:], side).long().clamp_max(side) - 1
        places = torch.arange(side).clamp(first, last)
        shape = [1, 1, 1, 1]
        shape[0], shape[axis] = count, side
        images = images.gather(axis, places.view(shape).expand(images.shape))
    return images


def nudge(views: Pixels) -> torch.Tensor:
    """Mirror, turn, move and recolour views a little more: windows (N, 3, 60, 80) in [0, 1]."""
    count = len(views)
    half_turn = torch.where(torch.rand(count, 1, 1) < 0.5, -1.0, 1.0)
    sides = torch.tensor([[1, HEIGHT / WIDTH], [WIDTH / HEIGHT, 1]])
    linear = turns(count, 0.1, 0.0, angle=0.25) * sides * half_turn
    maps = torch.cat([linear, (torch.rand(count, 2, 1) * 2 - 1) * 0.06], 2)
    return recolour_slightly(warp_within(scale(to_planes(views)), maps, (HEIGHT, WIDTH)))


@on_device()
def _draw_rows(
    path: Path, chosen: np.ndarray, partners: np.ndarray, start: int, stop: int
) -> dict[str, np.ndarray]:
    patches = np.load(path, mmap_mode="r")
    torch.manual_seed(start)
    parts = [slice(at, min(at + 64, stop)) for at in range(start, stop, 64)]
    drawn = [
        draw(
            patches[chosen[part]],
            [None if each == NO_PARTNER else patches[each] for each in partners[part]],
        )
        for part in parts
    ]
    return {"pixels": np.concatenate(drawn)}


def _partners(
    cells: CellSet, chosen: np.ndarray, usable: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Draw a partner for each: a usable cell of its class, of another laboratory.

    Classes differ in colour: with the stain of a neutrophil, an eosinophil would lose its mark.
    """
    partners = np.full(len(chosen), NO_PARTNER)
    labels, laboratories = cells.labels[chosen], cells.laboratories[chosen]
    for label in np.unique(labels):
        for name in np.unique(laboratories):
            rows = np.flatnonzero((labels == label) & (laboratories == name))
            others = np.flatnonzero(usable & (cells.labels == label) & (cells.laboratories != name))
            if len(others):
                shares = 1 / _counts(cells.laboratories[others])
                partners[rows] = random.choice(others, len(rows), p=shares / shares.sum())
    return partners


def _counts(strata: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return how many cells the stratum of each has."""
    _names, places, counts = np.unique(strata, return_inverse=True, return_counts=True)
    return counts[places].astype(float)

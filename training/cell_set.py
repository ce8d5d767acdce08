"""Labelled cells, cut out of their images by a locator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from handler.bounds import InputError
from handler.cells import ZOOM, Cutout, cut_out, window
from handler.locator import Located, locate, overlap
from handler.preprocessing import Box, Pixels, cut, decode, within_field
from training.data import DataError, Sample
from training.export import in_torch
from training.locate import RIGHT_OVERLAP
from training.networks import Locator
from training.table import Table

# Training keeps a square around each cell, so much larger than the window's height.
MARGIN, PATCH = 1.8, 160
BATCH = 16

Choose = Callable[[Sequence[Located], Pixels], Located | None]


@dataclass
class CellSet(Table):
    """N labelled cells: as the service cuts them out, and wider, to be turned in training."""

    cutouts: np.ndarray
    patches: Pixels
    labels: np.ndarray
    groups: np.ndarray
    laboratories: np.ndarray


def read_field(path: Path) -> Pixels:
    """Decode an image to a field, as the service does; raise DataError if it can't be read."""
    try:
        return decode(path.read_bytes(), within_field).pixels
    except (InputError, OSError) as error:
        raise DataError(f"{path} can't be read: {error}") from error


def collect(
    samples: Sequence[Sample], laboratory: str, locator: Locator, choose: Choose
) -> CellSet:
    """Find the labelled cell of each sample and cut it out; skip samples whose cell is not found.

    `choose` selects the labelled cell of a sample without a box from those that the locator finds.
    """
    rows: list[tuple[Cutout, Pixels, int, str, str]] = []
    finder = in_torch(locator)
    title = f"cutting out {laboratory}"
    for start in tqdm(range(0, len(samples), BATCH), desc=title, mininterval=1):
        part = samples[start : start + BATCH]
        fields = [read_field(sample.path) for sample in part]
        for sample, field, cells in zip(part, fields, locate(finder, fields), strict=True):
            cell = boxed(cells, field, sample.box) if sample.box else choose(cells, field)
            if cell:
                cutout = cut_out(field, cells)[cells.index(cell)]
                patch = cut(field, window(cell.box, ZOOM * MARGIN, 1), (PATCH, PATCH))
                rows.append((cutout, patch, sample.label, sample.group, laboratory))
    if not rows:
        raise DataError(f"No white cell was found in any of the {len(samples)} images.")
    cutouts, *columns = zip(*rows, strict=True)
    return CellSet(np.array(cutouts, object), *map(np.array, columns))


def surest(cells: Sequence[Located], _field: Pixels) -> Located | None:
    """Choose the cell with the highest score."""
    return cells[0] if cells else None


def middle(cells: Sequence[Located], field: Pixels) -> Located | None:
    """Choose the cell in the middle, where laboratories put the labelled one."""
    y, x = (side / 2 for side in field.shape[:2])
    covering = [
        cell
        for cell in cells
        if cell.box[0] <= x <= cell.box[2] and cell.box[1] <= y <= cell.box[3]
    ]
    return surest(covering or cells, field)


def boxed(cells: Sequence[Located], field: Pixels, box: Box) -> Located | None:
    """Choose the cell in a box, which is in shares of the field's sides."""
    height, width = field.shape[:2]
    drawn = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    matching = [cell for cell in cells if overlap(cell.box, drawn) >= RIGHT_OVERLAP]
    return surest(matching, field)


def halved(box: Box) -> Box:
    """Scale a box from a photograph (640 pixels wide) to its field (320)."""
    return box[0] / 2, box[1] / 2, box[2] / 2, box[3] / 2

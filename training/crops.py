"""Labelled cells, cut out of the images of all laboratories, and windows without a white cell.

Cells without a drawn box are found by a locator: their box is the one in the middle of the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from handler.bounds import InputError
from handler.cells import ZOOM, window
from handler.engine import Network
from handler.locator import Located, locate
from handler.preprocessing import (
    HEIGHT,
    WIDTH,
    Box,
    DecodedImage,
    Fit,
    Pixels,
    Size,
    cut,
    decode,
    within_field,
)
from training import data
from training.checkpoints import columns
from training.data import OTHER, DataError, Sample
from training.export import as_served, in_torch
from training.laboratories import PHOTOGRAPHS, SCENE, laboratories
from training.networks import Locator
from training.table import Table

# A patch is a square so much larger than the cell, so that the window can be turned within it.
MARGIN, PATCH = 2.43, 176
# The longest side of the images that patches are cut from.
LONGEST = 1600
# The kinds of windows without a white cell, and how many a field of background gives.
NEGATIVES = ("no_wbc", "rbc", "platelets", SCENE)
WINDOWS = 4
# The side of such a window's middle, in shares of the field's width.
WINDOW_SIZES = (0.06, 0.4)
# A box of which the longer side is below this share of its kind's median shows a part of a cell.
PART = 0.6
# Of these not even the laboratory knows the class.
NOT_LABELLED = "not_identifiable"
CODE = ("training/crops.py", "handler/cells.py", "handler/preprocessing.py")


@dataclass
class CellSet(Table):
    """N labelled cells: squares around them (N, 176, 176, 3), and boxes in shares of the image."""

    patches: Pixels
    labels: np.ndarray
    kinds: np.ndarray
    laboratories: np.ndarray
    groups: np.ndarray
    names: np.ndarray
    boxes: np.ndarray

    @property
    def identity(self) -> str:
        """Return a digest of which cells these are."""
        parts = [self.names.tolist(), self.labels.tolist(), self.boxes.round(4).tolist()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def collect(samples: Sequence[Sample], laboratory: str, locator: Locator) -> CellSet:
    """Cut out the labelled cell of each sample; skip samples whose cell is not found.

    Raises DataError if no cell is found.
    """
    find = in_torch(locator)
    boxes = [sample.box or middle_box(sample.path, find) for sample in samples]
    found = [replace(sample, box=box) for sample, box in zip(samples, boxes, strict=True) if box]
    if not found:
        raise DataError(f"No white cell was found in any of the {len(samples)} images.")
    return _cell_set(found, [laboratory] * len(found), np.stack(list(map(_patch, found))))


def collect_all(locator: Locator, scratch: Path) -> CellSet:
    """Cut out the cells of all laboratories, and windows without one."""
    listed = [(name, sample) for name, sample in labelled_cells() if sample.box]
    listed += find_boxes([each for each in labelled_cells() if not each[1].box], locator, scratch)
    listed += negatives()
    names, samples = zip(*listed, strict=True)
    found = columns(
        scratch / "cells",
        samples,
        CODE,
        len(samples),
        {"patches": ((PATCH, PATCH, 3), "u1")},
        partial(_patches, samples),
    )
    return _cell_set(samples, names, found["patches"])


def labelled_cells() -> list[tuple[str, Sample]]:
    """List the labelled cells of all laboratories.

    A photograph of several cells does not show which of them is meant.
    """
    return [
        (laboratory.name, sample)
        for laboratory in laboratories().values()
        if not laboratory.is_background
        for sample in laboratory.samples()
        if sample.kind != NOT_LABELLED and (sample.box or laboratory.name != PHOTOGRAPHS)
    ]


def find_boxes(
    cells: Sequence[tuple[str, Sample]], locator: Locator, scratch: Path
) -> list[tuple[str, Sample]]:
    """Return the cells that a locator finds in the middle of their images, with their boxes.

    Cells of which it finds only a part are left out.
    """
    paths = [sample.path for _, sample in cells]
    weights = [round(parameter.sum().item(), 3) for parameter in locator.parameters()]
    kinds = {"boxes": ((4,), "f4")}
    find = partial(_middle_boxes, paths, locator)
    boxes = columns(scratch / "boxes", (paths, weights), CODE, len(paths), kinds, find)["boxes"]
    sides = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    kinds_of = np.array([f"{name} {sample.kind}" for name, sample in cells])
    whole, seen = np.zeros(len(cells), bool), ~np.isnan(sides)
    for kind in np.unique(kinds_of[seen]):
        own = seen & (kinds_of == kind)
        whole[own] = sides[own] >= PART * np.median(sides[own])
    return [
        (name, replace(sample, box=(left, top, right, bottom)))
        for (name, sample), (left, top, right, bottom), is_whole in zip(
            cells, boxes.tolist(), whole, strict=True
        )
        if is_whole
    ]


def negatives() -> list[tuple[str, Sample]]:
    """List windows without a white cell.

    Random ones in the fields without any, and one red cell and one platelet of each photograph.
    """
    random = np.random.default_rng(3)
    listed = []
    for laboratory in laboratories().values():
        if not laboratory.is_background:
            continue
        for sample in laboratory.samples():
            height, width = read(sample.path).pixels.shape[:2]
            for _ in range(WINDOWS):
                across = random.uniform(*WINDOW_SIZES) / 2
                down = across * width / height
                x, y = random.uniform(0.1, 0.9, 2).tolist()
                box = x - across, y - down, x + across, y + down
                listed.append((laboratory.name, replace(sample, box=box)))
    root, (width, height) = data.data_root(), data.PHOTOGRAPH
    for name, _label, _split, group in data.listed_photographs():
        path, drawn = data.photograph_file(root, name), data.drawn_boxes(root, name)
        white = [box for kind, box in drawn if kind == "WBC"]
        for kind in ("RBC", "Platelets"):
            apart = [box for each, box in drawn if each == kind and not _touches(box, white)]
            if apart:
                left, top, right, bottom = apart[random.integers(len(apart))]
                box = left / width, top / height, right / width, bottom / height
                sample = Sample(path, OTHER, kind.lower(), group, box)
                listed.append((PHOTOGRAPHS, sample))
    return listed


def windows(patches: Pixels) -> Pixels:
    """Cut the windows that the service would see out of patches: (N, 60, 80, 3)."""
    side = PATCH * ZOOM / MARGIN / 2
    across, middle = side * WIDTH / HEIGHT, PATCH / 2
    box = middle - across, middle - side, middle + across, middle + side
    return np.stack([cut(np.asarray(patch), box, (WIDTH, HEIGHT)) for patch in patches])


def middle_box(path: Path, locator: Network) -> Box | None:
    """Return the box of the cell in the middle of an image, in shares of its sides."""
    field = read(path, within_field).pixels
    height, width = field.shape[:2]
    [cells] = locate(locator, [field])
    cell = middle(cells, (width, height))
    if not cell:
        return None
    left, top, right, bottom = cell.box
    return left / width, top / height, right / width, bottom / height


def middle(cells: Sequence[Located], size: Size) -> Located | None:
    """Choose the cell with the highest score of those that cover the middle."""
    x, y = size[0] / 2, size[1] / 2
    covering = (
        cell
        for cell in cells
        if cell.box[0] <= x <= cell.box[2] and cell.box[1] <= y <= cell.box[3]
    )
    return next(covering, None)


def large(size: Size) -> Size:
    """Return the size that an image is cut from."""
    shrink = min(1.0, LONGEST / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def read(path: Path, fit: Fit = large) -> DecodedImage:
    """Decode an image as the service does; raise DataError if it can't be read."""
    try:
        return decode(path.read_bytes(), fit)
    except (InputError, OSError) as error:
        raise DataError(f"{path} can't be read: {error}") from error


def in_pixels(box: Box, pixels: Pixels) -> Box:
    """Convert a box from shares of an image's sides to its pixels."""
    height, width = pixels.shape[:2]
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _cell_set(samples: Sequence[Sample], names: Sequence[str], patches: Pixels) -> CellSet:
    return CellSet(
        patches,
        np.array([sample.label for sample in samples]),
        np.array([sample.kind for sample in samples]),
        np.array(names),
        np.array([sample.group for sample in samples]),
        np.array([sample.path.name for sample in samples]),
        np.array([sample.box for sample in samples], np.float32),
    )


def _patch(sample: Sample) -> Pixels:
    pixels = read(sample.path).pixels
    assert sample.box
    return cut(pixels, window(in_pixels(sample.box, pixels), MARGIN, 1), (PATCH, PATCH))


def _patches(samples: Sequence[Sample], start: int, stop: int) -> dict[str, np.ndarray]:
    return {"patches": np.stack(list(map(_patch, samples[start:stop])))}


def _middle_boxes(
    paths: Sequence[Path], locator: Locator, start: int, stop: int
) -> dict[str, np.ndarray]:
    find = as_served(locator)
    boxes = [middle_box(path, find) or (np.nan,) * 4 for path in paths[start:stop]]
    return {"boxes": np.array(boxes, np.float32)}


def _touches(box: Box, others: Sequence[Box]) -> bool:
    return not all(
        box[2] < other[0] or box[0] > other[2] or box[3] < other[1] or box[1] > other[3]
        for other in others
    )

"""Images for those who have none at hand: drawn by the project, and TEST's where the data set is.

The drawings are written by scripts/draw_cells.py. Of the data set (BLOOD_CELLS_DATA) each class
gives a few images of TEST, every one made from a photograph of its own.
"""

import csv
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from flask import url_for

from serving.settings import ROOT

from .languages import CELLS

DRAWN = Path(__file__).parent / "static" / "samples"
IMAGES = ROOT / "training" / "augmented_images.csv"
EACH = 3


class Sample(NamedTuple):
    """An image to try: `label` is what it shows, None if that is not one cell of the four."""

    name: str
    path: Path
    label: str | None

    @property
    def address(self) -> str:
        """Return where a browser finds it."""
        if self.path.parent == DRAWN:
            return url_for("static", filename=f"samples/{self.name}")
        return url_for("page.sample", name=self.name)


@cache
def drawn() -> list[Sample]:
    """List the drawings: files named for the cell that they show, and a number."""
    return [
        Sample(path.name, path, label if (label := path.stem[:-2].upper()) in CELLS else None)
        for path in sorted(DRAWN.iterdir())
    ]


@cache
def photographs() -> list[Sample]:
    """List images of TEST; none without the data set."""
    folder = _test_folder()
    return list(_some_of_test(folder)) if folder else []


def find(name: str) -> Sample | None:
    """Return the sample of that name."""
    return {sample.name: sample for sample in drawn() + photographs()}.get(name)


def _test_folder() -> Path | None:
    # Kaggle's download has the outer folder twice.
    outer = Path(os.environ.get("BLOOD_CELLS_DATA") or os.devnull) / "dataset2-master"
    folders = [each / "images" / "TEST" for each in (outer / "dataset2-master", outer)]
    return next((folder for folder in folders if folder.is_dir()), None)


def _some_of_test(folder: Path) -> Iterator[Sample]:
    seen: dict[str, set[str]] = {label: set() for label in CELLS}
    with IMAGES.open(newline="") as file:
        for split, label, name, photograph in csv.reader(file):
            if split != "TEST" or photograph in seen[label] or len(seen[label]) == EACH:
                continue
            seen[label].add(photograph)
            if (path := folder / label / name).is_file():
                yield Sample(f"{label}-{name}", path, label)

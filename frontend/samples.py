"""Sample images: drawings and, if the data set is installed, images of TEST.

scripts/draw_cells.py writes the drawings. From the data set (BLOOD_CELLS_DATA) come a few TEST
images of each class, each made from a different photograph.
"""

import csv
import os
from collections import defaultdict
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
    """An image to try: `label` is its class, None if it does not show exactly one cell."""

    name: str
    path: Path
    label: str | None

    @property
    def address(self) -> str:
        """Return the URL of the image."""
        if self.path.parent == DRAWN:
            return url_for("static", filename=f"samples/{self.name}")
        return url_for("page.sample", name=self.name)


@cache
def drawn() -> list[Sample]:
    """Return the drawings; a file's name is its class and a number."""
    return [
        Sample(path.name, path, label if (label := path.stem[:-2].upper()) in CELLS else None)
        for path in sorted(DRAWN.iterdir())
    ]


@cache
def photographs() -> list[Sample]:
    """Return images of TEST; none without the data set."""
    folder = _test_folder()
    return list(_some_of_test(folder)) if folder else []


def find(name: str) -> Sample | None:
    """Return the sample of that name."""
    return {sample.name: sample for sample in drawn() + photographs()}.get(name)


def _test_folder() -> Path | None:
    # Kaggle's download nests the folder in one of the same name.
    outer = Path(os.environ.get("BLOOD_CELLS_DATA") or os.devnull) / "dataset2-master"
    folders = [each / "images" / "TEST" for each in (outer / "dataset2-master", outer)]
    return next((folder for folder in folders if folder.is_dir()), None)


def _some_of_test(folder: Path) -> Iterator[Sample]:
    seen: defaultdict[str, set[str]] = defaultdict(set)
    with IMAGES.open(newline="") as file:
        for split, label, name, photograph in csv.reader(file):
            if split != "TEST" or photograph in seen[label] or len(seen[label]) == EACH:
                continue
            seen[label].add(photograph)
            if (path := folder / label / name).is_file():
                yield Sample(f"{label}-{name}", path, label)

"""The laboratories that train and measure versions, and how a folder of labelled cells is read.

laboratories.yaml describes each. A laboratory is a folder:

    EOSINOPHIL/ ... BASOPHIL/    one white cell in the middle of each image
    OTHER/ or OTHER/<kind>/      other cells, or fields without a white cell
    boxes.csv                    optional: each cell of images with several
    groups.csv                   optional: file,group (a slide, a patient)

OTHER/basophil/ is the class BASOPHIL.

Splits never divide a group. Without groups.csv each image is a group of its own.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from handler.contract import SUFFIXES
from training import data
from training.data import HERE, OTHER, DataError, Sample
from training.protocol import CLASSES, FIELD_CLASSES, MIN_CELLS
from training.scenes import draw_scenes
from training.version_files import SCRATCH

# The laboratory of the original project's images.
PHOTOGRAPHS = "photographs"
# Pictures of something else, and their kind.
SCENES, SCENE = "scenes", "scene"
# The columns of boxes.csv: the centre and the size of a box are shares of the image's sides.
BOX_COLUMNS = ["image", "label", "x_center", "y_center", "width", "height"]
# Labels of boxes.csv for stages of a class.
STAGES = {"BAND": "NEUTROPHIL"}


@dataclass(frozen=True)
class Laboratory:
    """A source of cells: its stain, microscope and camera."""

    name: str
    title: str
    stain: str
    camera: str
    licence: str
    source: str
    use: str
    # The environment variable that names its folder; otherwise that is in LABORATORIES_DATA.
    variable: str = ""
    # Files whose names begin with the same match of this regular expression are a group.
    slide: str = ""

    @property
    def root(self) -> Path:
        """Return its folder; raise DataError if it is missing."""
        variable = self.variable or "LABORATORIES_DATA"
        root = Path(os.environ.get(variable) or "nowhere") / ("" if self.variable else self.name)
        if not root.is_dir():
            folder = "the folder" if self.variable else "a folder that holds the folder"
            raise DataError(f"Set {variable} to {folder} {self.name}: {self.source}")
        return root

    @property
    def is_measured(self) -> bool:
        """Return whether it is left out in turn, and measured."""
        return self.use == "training, measurement"

    @property
    def is_background(self) -> bool:
        """Return whether its fields show no white cell."""
        return self.use == "background"

    def samples(self) -> list[Sample]:
        """List its cells; raise DataError if they are missing."""
        if self.name == PHOTOGRAPHS:
            return data.photographs(data.data_root(), "TRAIN", "TEST")
        if self.name == SCENES:
            paths = draw_scenes(SCRATCH / SCENES)
            return [Sample(path, OTHER, SCENE, path.stem) for path in paths]
        return read_folder(self.root, self.slide)


@cache
def laboratories() -> dict[str, Laboratory]:
    """Return the laboratories of laboratories.yaml by their names."""
    listed = yaml.safe_load((HERE / "laboratories.yaml").read_text(encoding="utf-8"))
    return {name: Laboratory(name, **facts) for name, facts in listed.items()}


def as_table(cells: Mapping[str, Counter[str]]) -> str:
    """Return the laboratories as Markdown; `cells` has the number of each kind."""
    rows = [
        "| laboratory | stain | camera | cells | used | licence |",
        "|---|---|---|---|---|---|",
    ]
    for each in laboratories().values():
        title = f"[{each.title}]({each.source})"
        facts = (title, each.stain, each.camera, counts(cells[each.name]), each.use, each.licence)
        rows.append(f"| {' | '.join(facts)} |")
    return "\n".join(rows)


def counts(cells: Counter[str]) -> str:
    """Return the numbers of cells, those of the classes first."""
    named = [f"{cells[name]:,} {name.lower()}" for name in CLASSES if cells[name]]
    others = sorted(kind for kind in cells if kind not in CLASSES)
    return ", ".join(named + [f"{cells[kind]:,} {kind.replace('_', ' ')}" for kind in others])


def read_folder(root: Path, slide: str = "") -> list[Sample]:
    """List a laboratory's cells; raise DataError if the folder is not laid out as above."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and _shown(path))
    if unknown := [path.name for path in folders if path.name not in (*CLASSES, "OTHER")]:
        expected = ", ".join((*CLASSES, "OTHER"))
        raise DataError(f"{root} has folders of unknown classes: {unknown}. Known: {expected}.")
    paths = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and _shown(path) and path.is_file()
    ]
    groups, names = _groups(root / "groups.csv"), {path: _name(root, path) for path in paths}
    if unknown := sorted(set(groups) - set(names.values())):
        raise DataError(f"groups.csv lists missing files: {', '.join(unknown[:5])}")
    grouped = {
        path: groups.get(name) or _slide(path, slide) or name for path, name in names.items()
    }
    if (root / "boxes.csv").exists():
        return _boxed(root / "boxes.csv", grouped)
    return [Sample(path, *label_of(_kind(root, path)), grouped[path]) for path in paths]


def label_of(kind: str) -> tuple[int, str]:
    """Return the label of a kind of cell, and its name: that of its class, if it has one."""
    name = STAGES.get(kind.upper(), kind.upper())
    return (CLASSES.index(name), name) if name in CLASSES else (OTHER, kind)


def _slide(path: Path, pattern: str) -> str | None:
    found = re.match(pattern, path.name) if pattern else None
    return found and found.group()


def _boxed(table: Path, groups: Mapping[Path, str]) -> list[Sample]:
    """List the cells of boxes.csv, several of which may be in one image."""
    paths = {path.name: path for path in groups}
    if len(paths) < len(groups):
        raise DataError(f"With {table.name}, each image needs a name of its own.")
    samples = []
    for image, kind, *numbers in _rows(table, BOX_COLUMNS):
        if image not in paths:
            raise DataError(f"{table.name} lists a missing file: {image}")
        try:
            x, y, width, height = map(float, numbers)
        except ValueError as error:
            raise DataError(f"{table.name} has a box of {image} without numbers.") from error
        box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        samples.append(Sample(paths[image], *label_of(kind), groups[paths[image]], box))
    return samples


def require(labels: Sequence[int]) -> None:
    """Raise DataError unless there are enough cells of each class; basophils are rare."""
    for label, name in enumerate(FIELD_CLASSES):
        if (count := list(labels).count(label)) < MIN_CELLS:
            raise DataError(f"{name} has {count} cells; each class needs at least {MIN_CELLS}.")


def _kind(root: Path, path: Path) -> str:
    """Return the class of an image in a class folder, otherwise the name of its folder."""
    name = _name(root, path).split("/")[0]
    return path.parent.name if name == "OTHER" else name


def _shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _groups(path: Path) -> dict[str, str]:
    return dict(_rows(path, ["file", "group"])) if path.exists() else {}


def _rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Read a table, its columns in this order; raise DataError if it has others."""
    try:
        # Spreadsheets write a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file)
    except (UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path} is not a UTF-8 table of {', '.join(columns)}.") from error
    header = [name.split(" ")[0] for name in header]
    if sorted(header) != sorted(columns) or any(len(row) != len(header) for row in rows):
        raise DataError(f"{path} should have the columns {','.join(columns)}.")
    places = [header.index(name) for name in columns]
    return [[row[place] for place in places] for row in rows]

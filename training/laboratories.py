"""Labelled cells of a laboratory: a folder for each class, an image for each cell.

    EOSINOPHIL/ LYMPHOCYTE/ MONOCYTE/ NEUTROPHIL/    one white cell in the middle of each image
    OTHER/ or OTHER/<kind>/                          other cells
    groups.csv                                       optional: file,group (a slide, a patient)

Splits never divide a group. Without groups.csv each image is a group of its own.

PBC, the second laboratory, is such a folder (PBC_DATA): a random part of the set of Acevedo et al.
2020, doi 10.17632/snkd93bnjr.1. pbc.csv lists which of its images train and which only test.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from handler.contract import SUFFIXES
from training.data import HERE, OTHER, DataError, Sample
from training.protocol import CLASSES, MIN_CELLS


def read_folder(root: Path) -> list[Sample]:
    """List a laboratory's images; raise DataError if the folder is not laid out as above."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and _shown(path))
    if unknown := [path.name for path in folders if path.name not in (*CLASSES, "OTHER")]:
        expected = ", ".join((*CLASSES, "OTHER"))
        raise DataError(f"{root} has folders of unknown classes: {unknown}. Known: {expected}.")
    groups = _groups(root / "groups.csv")
    samples = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and _shown(path) and path.is_file():
                name = path.relative_to(root).as_posix()
                label = CLASSES.index(folder.name) if folder.name in CLASSES else OTHER
                kind = path.parent.name
                samples.append(Sample(path, label, kind, groups.get(name, name)))
    if groups and (unknown := sorted(set(groups) - {_name(root, each) for each in samples})):
        raise DataError(f"groups.csv lists missing files: {', '.join(unknown[:5])}")
    return samples


def require(labels: Sequence[int]) -> None:
    """Raise DataError unless there are enough cells of each class."""
    for label, name in enumerate(CLASSES):
        if (count := list(labels).count(label)) < MIN_CELLS:
            raise DataError(f"{name} has {count} cells; each class needs at least {MIN_CELLS}.")


def pbc(part: str | None = None) -> list[Sample]:
    """List PBC's images: those that train (`train`), those that only test (`test`), or all."""
    root = Path(os.environ.get("PBC_DATA") or "")
    if not os.environ.get("PBC_DATA") or not root.is_dir():
        raise DataError(
            "Set PBC_DATA to a folder of the PBC images: doi 10.17632/snkd93bnjr.1, a folder for "
            "each class, the rest in OTHER/<kind>/."
        )
    with (HERE / "pbc.csv").open(newline="") as file:
        parts = {row["file"]: row["part"] for row in csv.DictReader(file)}
    samples = [each for each in read_folder(root) if _name(root, each) in parts]
    if len(samples) != len(parts):
        raise DataError(f"{root} lacks {len(parts) - len(samples)} of the images in pbc.csv.")
    return [each for each in samples if part in (None, parts[_name(root, each)])]


def _shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _name(root: Path, sample: Sample) -> str:
    return sample.path.relative_to(root).as_posix()


def _groups(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        # Spreadsheets write a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file)
    except (UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path} is not a UTF-8 table with the columns file,group.") from error
    if sorted(header) != ["file", "group"] or any(len(row) != len(header) for row in rows):
        raise DataError(f"{path} should have the columns file,group.")
    file_column, group_column = header.index("file"), header.index("group")
    return {row[file_column]: row[group_column] for row in rows}

"""The images of the Kaggle set `paultimothymooney/blood-cells` and the photographs behind them.

An *image* is one of the augmented 320x240 files; a *photograph* is what it was made from, and a
*group* is a set of photographs whose fields overlap. Two CSV files beside this one tell them:
file names do not. Whatever is split, is split by group: images of one photograph are near copies.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from handler.preprocessing import Box, Pixels, decode
from handler.verdict import CLASSES

HERE = Path(__file__).resolve().parent
LINK = HERE.parent / "data"
# The label of a cell that is none of CLASSES.
OTHER = len(CLASSES)
KAGGLE_SET = "paultimothymooney/blood-cells"
IMAGES_PER_CLASS = {
    "TRAIN": {"EOSINOPHIL": 2497, "LYMPHOCYTE": 2483, "MONOCYTE": 2478, "NEUTROPHIL": 2499},
    "TEST": {"EOSINOPHIL": 623, "LYMPHOCYTE": 620, "MONOCYTE": 620, "NEUTROPHIL": 624},
}
# TEST photographs of a cell that a TRAIN photograph shows, too (found by matching the fields, and
# confirmed by eye): 202 images, 8 % of TEST.
CELLS_ALSO_IN_TRAIN = frozenset(
    f"BloodImage_{number}" for number in ("00204", "00257", "00264", "00365", "00377", "00409")
)
# Of a photograph's 640 pixels; what is drawn smaller as a white cell is a platelet.
SMALLEST_WHITE_CELL = 50
BY_HAND = (
    f"download https://www.kaggle.com/datasets/{KAGGLE_SET}, unpack it, and set "
    "BLOOD_CELLS_DATA to the folder that holds dataset2-master/ and dataset-master/."
)


class DataError(Exception):
    """The data set is missing or is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Image:
    """One augmented image, the photograph that it was made from, and that photograph's group."""

    path: Path
    label: int
    photograph: str
    group: str


@dataclass(frozen=True)
class Sample:
    """A labelled picture: an index of CLASSES, or OTHER, its name, and what is never split."""

    path: Path
    label: int
    kind: str
    group: str


def data_root() -> Path:
    """Return the folder of the data set; raise DataError if there is none.

    It is BLOOD_CELLS_DATA, or what `make data` has linked to data/.
    """
    root = Path(os.environ.get("BLOOD_CELLS_DATA") or LINK)
    if not image_folder(root, "TRAIN").is_dir():
        raise DataError(f"{root} does not hold the images: run `make data`. By hand: {BY_HAND}")
    return root


def image_folder(root: Path, split: str) -> Path:
    """Return the folder of a split; Kaggle's download has the outer folder twice."""
    for outer in (root / "dataset2-master" / "dataset2-master", root / "dataset2-master"):
        if outer.is_dir():
            break
    return outer / "images" / split


def photograph_groups() -> dict[str, str]:
    """Return each photograph's group."""
    with (HERE / "photographs.csv").open(newline="") as file:
        return {name: group for name, _label, _split, group in csv.reader(file)}


def photographs(root: Path, *splits: str) -> list[Sample]:
    """List the photographs with one labelled cell of these splits: TRAIN, TEST."""
    with (HERE / "photographs.csv").open(newline="") as file:
        return [
            Sample(photograph_file(root, name), CLASSES.index(label), label, group)
            for name, label, split, group in csv.reader(file)
            if split in splits
        ]


def photograph_file(root: Path, name: str) -> Path:
    """Return where a photograph lies; Kaggle's download has the outer folder twice."""
    for outer in (root / "dataset-master" / "dataset-master", root / "dataset-master"):
        if outer.is_dir():
            break
    return outer / "JPEGImages" / f"{name}.jpg"


def located_photographs(root: Path) -> list[tuple[Path, str, str, list[Box]]]:
    """List the photographs whose white cells have boxes: path, split, group, boxes.

    Some of them have no single label (`unused`), but can teach where cells are.
    """
    with (HERE / "photographs.csv").open(newline="") as file:
        rows = [(name, split, group) for name, _label, split, group in csv.reader(file)]
    return [
        (photograph_file(root, name), split, group, boxes)
        for name, split, group in rows
        if (boxes := white_cells(root, name))
    ]


def white_cells(root: Path, name: str) -> list[Box] | None:
    """Return the boxes of a photograph's white cells, in its pixels; None if nobody drew them.

    Boxes too small for a white cell are platelets, and left out.
    """
    path = photograph_file(root, name).parent.parent / "Annotations" / f"{name}.xml"
    if not path.exists():
        return None
    boxes = []
    for drawn in ElementTree.parse(path).iter("object"):
        if drawn.findtext("name") == "WBC":
            sides = [
                float(drawn.findtext(f"bndbox/{side}") or "nan")
                for side in ("xmin", "ymin", "xmax", "ymax")
            ]
            box = (sides[0], sides[1], sides[2], sides[3])
            if max(box[2] - box[0], box[3] - box[1]) > SMALLEST_WHITE_CELL:
                boxes.append(box)
    return boxes or None


def list_images(root: Path, split: str) -> list[Image]:
    """List the images of a split (TRAIN or TEST) in a fixed order."""
    groups = photograph_groups()
    folder = image_folder(root, split)
    with (HERE / "augmented_images.csv").open(newline="") as file:
        return [
            Image(
                folder / row["label"] / row["file"],
                CLASSES.index(row["label"]),
                row["photograph"],
                groups[row["photograph"]],
            )
            for row in csv.DictReader(file)
            if row["split"] == split
        ]


def fields_also_in_train(test: Sequence[Image], train: Sequence[Image]) -> set[str]:
    """Return the TEST photographs whose field overlaps one of TRAIN, whatever cell they show."""
    groups = {image.group for image in train}
    return {image.photograph for image in test if image.group in groups}


def check(root: Path) -> None:
    """Raise DataError unless every image that the CSV files name is there, and no other."""
    for split, expected in IMAGES_PER_CLASS.items():
        found = Counter(path.parent.name for path in image_folder(root, split).glob("*/*.jpeg"))
        if found != expected:
            raise DataError(
                f"{split} should hold {expected}, but holds {dict(found)}. By hand: {BY_HAND}"
            )
        missing = [image.path for image in list_images(root, split) if not image.path.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} images are missing, first {missing[0]}. By hand: {BY_HAND}"
            )


def grouped_folds(
    images: Sequence[Image] | Sequence[Sample], folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split into folds of about equal class shares, no group on two sides: (train, held out)."""
    labels = [image.label for image in images]
    groups = [image.group for image in images]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(images)), labels, groups))


def load(images: Sequence[Image], what: str) -> tuple[Pixels, np.ndarray]:
    """Decode images as the service does: pixels (N, 60, 80, 3) uint8 and labels (N,)."""
    bar = tqdm(images, desc=f"decoding {what}", unit="image", mininterval=1)
    pixels = np.stack([decode(image.path.read_bytes()).pixels for image in bar])
    return pixels, np.array([image.label for image in images])


def fetch() -> Path:
    """Download the set from Kaggle, link it to data/, and return that; raise DataError."""
    import kagglehub

    try:
        downloaded = Path(kagglehub.dataset_download(KAGGLE_SET))
    # Whatever it is (no network, no such version), the user can still do it by hand.
    except Exception as error:
        raise DataError(f"Kaggle can't be reached ({error}). By hand: {BY_HAND}") from error
    if LINK.exists() and not LINK.is_symlink():
        raise DataError(f"{LINK} is in the way: the images are in {downloaded}. Move it away.")
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(downloaded)
    return LINK


def main() -> int:
    """Fetch the images unless they are there, and check them; return the exit code."""
    try:
        try:
            root = data_root()
        except DataError:
            if os.environ.get("BLOOD_CELLS_DATA"):
                raise
            root = fetch()
        check(root)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for split, classes in IMAGES_PER_CLASS.items():
        counts = ", ".join(f"{count} {name.lower()}" for name, count in classes.items())
        photographs = len({image.photograph for image in list_images(root, split)})
        print(f"{split}: {counts}, from {photographs} photographs")
    print(f"the images in {root} are complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The images of the Kaggle set `paultimothymooney/blood-cells` and the photographs behind them.

An *image* is one of the augmented 320x240 files, a *photograph* is what it was made from, and a
*group* is a set of photographs whose fields overlap; both are listed in the CSV files beside this
one. Splits never divide a group: images of one photograph are near copies.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from handler.preprocessing import Box, Pixels, decode
from training.protocol import CLASSES

HERE = Path(__file__).resolve().parent
LINK = HERE.parent / "data"
# The label of other cells.
OTHER = len(CLASSES)
# The indices that train, and those held out.
Folds = list[tuple[np.ndarray, np.ndarray]]
KAGGLE_SET = "paultimothymooney/blood-cells"
IMAGES_PER_CLASS = {
    "TRAIN": {"EOSINOPHIL": 2497, "LYMPHOCYTE": 2483, "MONOCYTE": 2478, "NEUTROPHIL": 2499},
    "TEST": {"EOSINOPHIL": 623, "LYMPHOCYTE": 620, "MONOCYTE": 620, "NEUTROPHIL": 624},
}
# TEST photographs of a cell that is also in a TRAIN photograph (found by matching the fields,
# confirmed by eye): 202 images, 8 % of TEST.
CELLS_ALSO_IN_TRAIN = frozenset(
    f"BloodImage_{number}" for number in ("00204", "00257", "00264", "00365", "00377", "00409")
)
PHOTOGRAPH = (640, 480)
# In pixels of a photograph; smaller boxes are platelets.
SMALLEST_WHITE_CELL = 50
BY_HAND = (
    f"download https://www.kaggle.com/datasets/{KAGGLE_SET}, unpack it, and set "
    "BLOOD_CELLS_DATA to the folder that holds dataset2-master/ and dataset-master/."
)


class DataError(Exception):
    """Data or a version is missing or invalid; the message gives the fix."""


@dataclass(frozen=True)
class Image:
    """One augmented image, its photograph, and that photograph's group."""

    path: Path
    label: int
    photograph: str
    group: str

    @property
    def sample(self) -> Sample:
        """Return it as one of its photograph's images."""
        return Sample(self.path, self.label, CLASSES[self.label], self.photograph)


@dataclass(frozen=True)
class Sample:
    """A labelled cell: an index of CLASSES, or OTHER, its kind, and the group of its image.

    The box is in shares of the image's sides; without one, the cell is in the middle.
    """

    path: Path
    label: int
    kind: str
    group: str
    box: Box | None = None


def data_root() -> Path:
    """Return BLOOD_CELLS_DATA, or data/; raise DataError if it does not hold the images."""
    root = Path(os.environ.get("BLOOD_CELLS_DATA") or LINK)
    if not image_folder(root, "TRAIN").is_dir():
        raise DataError(f"{root} does not hold the images: run `make data`. By hand: {BY_HAND}")
    return root


def image_folder(root: Path, split: str) -> Path:
    return _inner(root, "dataset2-master") / "images" / split


def photograph_file(root: Path, name: str) -> Path:
    return _inner(root, "dataset-master") / "JPEGImages" / f"{name}.jpg"


def _inner(root: Path, name: str) -> Path:
    """Return a folder of the set; Kaggle's download nests it in one of the same name."""
    nested = root / name / name
    return nested if nested.is_dir() else root / name


def photographs(root: Path, *splits: str) -> list[Sample]:
    """List the photographs with one labelled cell of these splits: TRAIN, TEST."""
    return [
        Sample(
            photograph_file(root, name), CLASSES.index(label), label, group, only_box(root, name)
        )
        for name, label, split, group in listed_photographs()
        if split in splits
    ]


def only_box(root: Path, name: str) -> Box | None:
    """Return the box of a photograph's white cell in shares of its sides, if it shows just one."""
    boxes = white_cells(root, name) or []
    if len(boxes) != 1:
        return None
    width, height = PHOTOGRAPH
    left, top, right, bottom = boxes[0]
    return left / width, top / height, right / width, bottom / height


def located_photographs(root: Path) -> list[tuple[Path, str, str, list[Box]]]:
    """List the photographs whose white cells have boxes: path, split, group, boxes.

    Those without a single label (`unused`) are among them: they show where cells are.
    """
    return [
        (photograph_file(root, name), split, group, boxes)
        for name, _label, split, group in listed_photographs()
        if (boxes := white_cells(root, name))
    ]


def listed_photographs() -> list[list[str]]:
    """Return the rows of photographs.csv: name, label, split, group."""
    with (HERE / "photographs.csv").open(newline="") as file:
        return list(csv.reader(file))


def white_cells(root: Path, name: str) -> list[Box] | None:
    """Return the boxes of a photograph's white cells, in its pixels; None if it has none."""
    boxes = [
        box
        for kind, box in drawn_boxes(root, name)
        if kind == "WBC" and max(box[2] - box[0], box[3] - box[1]) > SMALLEST_WHITE_CELL
    ]
    return boxes or None


def drawn_boxes(root: Path, name: str) -> list[tuple[str, Box]]:
    """Return the kinds (WBC, RBC, Platelets) and the boxes of a photograph's cells."""
    path = photograph_file(root, name).parent.parent / "Annotations" / f"{name}.xml"
    if not path.exists():
        return []
    boxes = []
    for drawn in ElementTree.parse(path).iter("object"):
        left, top, right, bottom = (
            float(drawn.findtext(f"bndbox/{side}") or "nan")
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
        boxes.append((drawn.findtext("name") or "", (left, top, right, bottom)))
    return boxes


def list_images(root: Path, split: str) -> list[Image]:
    """List the images of a split (TRAIN or TEST) in a fixed order."""
    groups = {name: group for name, _label, _split, group in listed_photographs()}
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
    """Return the TEST photographs whose field overlaps one of TRAIN."""
    groups = {image.group for image in train}
    return {image.photograph for image in test if image.group in groups}


def check(root: Path) -> None:
    """Raise DataError unless the images are exactly those of the CSV files."""
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


def grouped_folds(images: Sequence[Image] | Sequence[Sample], folds: int, seed: int) -> Folds:
    """Split into folds of similar class shares that divide no group."""
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
    # After any error, the user can still download the images by hand.
    except Exception as error:
        raise DataError(f"The download from Kaggle failed ({error}). By hand: {BY_HAND}") from error
    if LINK.exists() and not LINK.is_symlink():
        raise DataError(f"{LINK} is not a link to the images in {downloaded}: move it.")
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(downloaded)
    return LINK


def fetch_and_check() -> None:
    """Download the images if they are missing, and check them."""
    try:
        root = data_root()
    except DataError:
        if os.environ.get("BLOOD_CELLS_DATA"):
            raise
        root = fetch()
    check(root)
    for split, classes in IMAGES_PER_CLASS.items():
        counts = ", ".join(f"{count} {name.lower()}" for name, count in classes.items())
        count = len({image.photograph for image in list_images(root, split)})
        print(f"{split}: {counts}, from {count} photographs")
    print(f"the images in {root} are complete")

"""Painted smears, and laboratories made of them: data that tests train on."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from handler.preprocessing import Box, Pixels
from training.crops import MARGIN, PATCH, CellSet
from training.data import OTHER
from training.protocol import CLASSES

AZURE, EOSIN = np.array((0.8, 1.1, 0.5)), np.array((0.12, 0.4, 0.35))
# The cell's radius, and the smear around it, in units.
RADIUS, WIDTH, HEIGHT = 20, 160, 120


def paint(label: int = 0, seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Paint a cell in the middle of a smear.

    Its nucleus is small or large and has eosin around it or not; OTHER has no nucleus.
    """
    random = np.random.default_rng(seed)
    unit = height / HEIGHT
    down, across = (np.mgrid[:height, :width] + 0.5) / unit
    middle = width / unit / 2, HEIGHT / 2
    blue, red = np.zeros((2, height, width))
    for x, y in [*random.uniform(0, 30, (2, 2)), *random.uniform((110, 85), (140, 115), (2, 2))]:
        red = np.maximum(red, np.hypot(across - x, down - y) < 10)
    distance = np.hypot(across - middle[0], down - middle[1])
    if label == OTHER:
        red[distance < RADIUS] = 0.3
    else:
        blue[distance < (RADIUS if label >= 2 else 11)] = 1
        red[(distance < RADIUS) & (blue == 0)] = 1.2 if label % 2 else 0.0
        if label == 4:
            blue[distance < RADIUS] = 1.8
    # Not the same when it is turned.
    blue[(distance < RADIUS) & (across > middle[0] + 8) & (down < middle[1] - 8)] = 0
    density = blue[..., None] * AZURE + red[..., None] * EOSIN
    exact = 245 * np.exp(-density) + random.normal(0, 1.5, density.shape)
    pixels: Pixels = np.rint(exact).clip(0, 255).astype(np.uint8)
    return pixels


def box_of(field: Pixels) -> Box:
    """Return the box of the cell that `paint` paints."""
    height, width = field.shape[:2]
    radius = RADIUS * height / HEIGHT
    return width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius


def cells(labels: Sequence[int], seed: int = 0, laboratory: str = "here") -> CellSet:
    """Paint labelled cells, cut out as `training.crops` does."""
    side = round(MARGIN * 2 * RADIUS)
    large = [paint(label, seed + at, 2 * side, 2 * side) for at, label in enumerate(labels)]
    scale = 2 * side / HEIGHT
    cut = round(side * scale / 2)
    patches = [
        np.asarray(
            Image.fromarray(each[side - cut : side + cut, side - cut : side + cut]).resize(
                (PATCH, PATCH)
            )
        )
        for each in large
    ]
    names = np.array([f"{laboratory} {at}" for at in range(len(labels))])
    kinds = np.array([[*CLASSES, "other"][label] for label in labels])
    boxes = np.zeros((len(labels), 4), np.float32)
    laboratories = np.full(len(labels), laboratory)
    return CellSet(np.stack(patches), np.array(labels), kinds, laboratories, names, names, boxes)


def write_laboratories(root: Path, photographs: int, images: int) -> None:
    """Write laboratories: photographs, one with boxes, one without, and one without cells.

    `photographs` and `images` are the numbers of each class.
    """
    facts = dict.fromkeys(("title", "stain", "camera", "licence", "source"), "made up")
    both = {"use": "training, measurement", **facts}
    (root / "laboratories.yaml").write_text(
        yaml.safe_dump(
            {
                "photographs": {"variable": "BLOOD_CELLS_DATA", **both},
                "boxed": both,
                "middle": {**both, "use": "training, measurement"},
                "empty": {**both, "use": "background"},
            },
            sort_keys=False,
        )
    )
    _write_photographs(root, photographs)
    for name in ("boxed", "middle"):
        for label, kind in enumerate((*CLASSES, "OTHER/blast")):
            for number in range(images):
                _write(root / name / kind / f"{name}-{label}-{number}.png", paint(label, number))
    names = sorted(path.name for path in (root / "boxed").rglob("*.png"))
    with (root / "boxed" / "boxes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "x_center", "y_center", "width", "height"])
        for name in names:
            kind = [*CLASSES, "blast"][int(name.split("-")[1])]
            rows.writerow([name, kind.lower(), 0.5, 0.5, 0.25, 1 / 3])
    for number in range(2):
        _write(root / "empty" / "OTHER" / "no_wbc" / f"{number}.png", paint(0, number)[:, :60])


def _write_photographs(root: Path, count: int) -> None:
    """Write photographs, one augmented image of each, and their lists."""
    listed, augmented = [], []
    for label, kind in enumerate(CLASSES[:4]):
        for number in range(count):
            name = f"P{label}{number}"
            split = "TEST" if number == 0 else "TRAIN"
            field = paint(label, 10 * number + label, 640, 480)
            _write(root / "dataset-master" / "JPEGImages" / f"{name}.jpg", field)
            drawn = "".join(
                f"<object><name>{each}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
                f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
                for each, box in (("WBC", box_of(field)), ("RBC", (0, 0, 60, 60)))
            )
            path = root / "dataset-master" / "Annotations" / f"{name}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"<annotation>{drawn}</annotation>")
            file = f"_{label}_{number}.jpeg"
            small = np.asarray(Image.fromarray(field).resize((320, 240)))
            _write(root / "dataset2-master" / "images" / split / kind / file, small)
            listed.append([name, kind, split, f"group {name}"])
            augmented.append([split, kind, file, name])
    with (root / "photographs.csv").open("w", newline="") as file_:
        csv.writer(file_).writerows(listed)
    with (root / "augmented_images.csv").open("w", newline="") as file_:
        csv.writer(file_).writerows([["split", "label", "file", "photograph"], *augmented])


def _write(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)

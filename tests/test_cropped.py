"""Tests of the measurement of cells in images that are cropped close to them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handler.preprocessing import DecodedImage, Floats, Pixels
from handler.verdict import Cell, Prediction
from training.cropped import SHARES, crops, measure_cropped
from training.data import OTHER, Sample
from training.protocol import CLASSES

GREY = 128


class Reader:
    """Finds a dark square unless it fills more of the image than `most`; says class `label`."""

    fit = staticmethod(lambda size: size)

    def __init__(self, label: int, most: float = 1.0) -> None:
        self.label, self.most = label, most

    def predict(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        logits = np.eye(len(CLASSES) + 1)[self.label].tolist()
        return [
            Prediction([Cell(logits)] if filled(image.pixels) <= self.most else [])
            for image in images
        ]

    def explain(self, image: DecodedImage) -> tuple[Prediction, Floats]:
        raise NotImplementedError

    def warm_up(self) -> None:
        raise NotImplementedError


def filled(pixels: Pixels) -> float:
    """Return the share of an image's width that is dark."""
    return float((pixels[..., 0] < GREY).any(0).mean())


def sample(folder: Path, label: int, name: str) -> Sample:
    pixels = np.full((200, 200, 3), 255, np.uint8)
    pixels[60:120, 80:140] = 0
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path)
    kind = CLASSES[label] if label < len(CLASSES) else "blast"
    return Sample(path, label, kind, name, (0.4, 0.3, 0.7, 0.6))


def no_locator(canvases: Pixels) -> Floats:
    raise AssertionError


def test_the_cell_takes_the_share_of_the_image(tmp_path: Path) -> None:
    cell = sample(tmp_path, 0, "a")
    assert cell.box
    pixels = np.asarray(Image.open(cell.path))
    shares = [filled(image.pixels) for image in crops(pixels, cell.box)]
    assert shares == pytest.approx(SHARES, abs=0.02)


def test_crops_end_with_the_image() -> None:
    [wide, *_] = crops(np.zeros((100, 100, 3), np.uint8), (0.0, 0.4, 0.2, 0.6))
    assert (wide.width, wide.height) == (round((0.1 + 0.1 / SHARES[0]) * 100), 34)


def test_recall_is_that_of_the_four_classes(tmp_path: Path) -> None:
    cells = [sample(tmp_path, label, f"{at}") for at, label in enumerate((0, 0, 1, OTHER, 4))]
    rows = measure_cropped(Reader(0), no_locator, cells)
    assert [row["share"] for row in rows] == list(SHARES)
    for row in rows:
        assert row["cells"] == 3
        assert row["found"] == 1
        assert row["macro_recall"]["value"] == 0.5


def test_a_cell_that_is_not_found_is_wrong(tmp_path: Path) -> None:
    rows = measure_cropped(Reader(0, most=0.8), no_locator, [sample(tmp_path, 0, "a")])
    assert [row["found"] for row in rows] == [1, 1, 0]
    assert [row["macro_recall"]["value"] for row in rows] == [1, 1, 0]


def test_without_cells_nothing_is_measured(tmp_path: Path) -> None:
    assert measure_cropped(Reader(0), no_locator, [sample(tmp_path, OTHER, "a")]) == []

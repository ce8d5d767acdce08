"""Behaviour of the networks: a changed image of a cell keeps its class.

Each share has a floor some points below the one measured on TEST, so that a network that loses the
property fails, and a retrained one does not fail by chance.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import VERSIONS
from PIL import Image, ImageEnhance

from handler import pipelines
from handler.pipelines import Pipeline
from handler.preprocessing import decode
from handler.verdict import CLASSES, Cell, probabilities
from serving.settings import ROOT
from training import data

Change = Callable[[Image.Image], Image.Image]
# The floor is this far below the measured share.
SLACK = 0.03


@pytest.fixture(scope="module", params=VERSIONS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def version(name: str) -> Pipeline:
    folder = ROOT / "models" / name
    card = json.loads((folder / "card.json").read_text())
    return pipelines.load(folder, card, 8)


@pytest.fixture(scope="module")
def files(blood_cells: Path) -> list[bytes]:
    """Return one image of each TEST photograph."""
    images = {image.photograph: image for image in data.list_images(blood_cells, "TEST")}
    return [image.path.read_bytes() for image in images.values()]


@pytest.fixture(scope="module")
def before(version: Pipeline, files: list[bytes]) -> np.ndarray:
    return answers(version, files)


def answers(version: Pipeline, files: list[bytes]) -> np.ndarray:
    """Return the likeliest class of each image, -1 where no cell is found."""
    predictions = version.predict([decode(file, version.fit) for file in files])
    cells = [max(each.cells, key=certainty, default=None) for each in predictions]
    return np.array([np.argmax(cell.logits[: len(CLASSES)]) if cell else -1 for cell in cells])


def changed(file: bytes, change: Change, kind: str = "PNG", **options: int) -> bytes:
    out = io.BytesIO()
    change(Image.open(io.BytesIO(file)).convert("RGB")).save(out, kind, **options)
    return out.getvalue()


def certainty(cell: Cell) -> float:
    return max(probabilities(cell.logits[: len(CLASSES)], 1.0))


def same(image: Image.Image) -> Image.Image:
    return image


def transpose(how: Image.Transpose) -> Change:
    return lambda image: image.transpose(how)


def brightness(factor: float) -> Change:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        pytest.param(transpose(Image.Transpose.FLIP_LEFT_RIGHT), (0.94, 0.968), id="mirrored"),
        pytest.param(transpose(Image.Transpose.FLIP_TOP_BOTTOM), (0.91, 0.951), id="upside down"),
        pytest.param(transpose(Image.Transpose.ROTATE_180), (0.93, 0.982), id="half turn"),
        # 1.0 squashes the field to 80x60 whatever its shape, so this distorts it, too.
        pytest.param(transpose(Image.Transpose.ROTATE_90), (0.90, 0.944), id="quarter turn"),
        pytest.param(brightness(0.9), (0.99, 1.0), id="darker"),
        pytest.param(brightness(1.1), (1.0, 1.0), id="brighter"),
        pytest.param(same, (1.0, 1.0), id="another kind of file"),
    ],
)
def test_a_changed_cell_stays_the_same_cell(
    name: str,
    version: Pipeline,
    files: list[bytes],
    before: np.ndarray,
    change: Change,
    seen: tuple[float, float],
) -> None:
    after = answers(version, [changed(file, change) for file in files])
    share = float((before == after).mean())
    print(f"{share:.3f} of {len(files)} images keep their class")
    assert share >= seen[name == "2.0"] - SLACK


def test_jpeg_quality_50_keeps_the_class(
    version: Pipeline, files: list[bytes], before: np.ndarray
) -> None:
    after = answers(version, [changed(file, same, "JPEG", quality=50) for file in files])
    share = float((before == after).mean())
    print(f"{share:.3f} of {len(files)} images keep their class")
    assert share >= 0.93


def test_every_class_is_recognised(version: Pipeline, blood_cells: Path) -> None:
    """Recall per class on a tenth of TEST: no class is given up for the others."""
    images = data.list_images(blood_cells, "TEST")[::10]
    predicted = answers(version, [image.path.read_bytes() for image in images])
    labels = np.array([image.label for image in images])
    recall = [float((predicted[labels == label] == label).mean()) for label in range(4)]
    # One of TEST's four photographs of monocytes is missed by both versions.
    assert min(recall) >= 0.5

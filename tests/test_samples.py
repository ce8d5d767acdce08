"""The sample drawings: reproducible, small, and recognised by the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from frontend import samples
from handler.pipelines import load
from handler.preprocessing import decode
from handler.verdict import answer
from scripts.draw_cells import FIELD, SIZE, draw_gallery
from serving.settings import ROOT

DRAWN = {sample.path.stem: sample for sample in samples.drawn()}
ONE_CELL = [name for name, each in DRAWN.items() if each.label]

Ask = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Ask:
    """Return a function that returns version 3.0's answer for a drawing."""
    folder = ROOT / "models" / "3.0"
    card = json.loads((folder / "card.json").read_text())
    version = load(folder, card, 1)

    def answered(name: str) -> dict[str, Any]:
        picture = decode(DRAWN[name].path.read_bytes(), version.fit)
        return answer("bloodcells", card, version.predict([picture])[0])

    return answered


def pixels(path: Path) -> npt.NDArray[np.int_]:
    with Image.open(path) as image:
        assert (image.format, image.size) == ("JPEG", SIZE)
        return np.asarray(image.convert("RGB"), int)


@pytest.mark.long
def test_the_gallery_is_drawn_the_same_again(tmp_path: Path) -> None:
    draw_gallery(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {each.name for each in DRAWN.values()}
    for path in tmp_path.iterdir():
        difference = np.abs(pixels(path) - pixels(DRAWN[path.stem].path))
        # Builds of libjpeg and processors round a few pixels differently.
        assert (difference <= 2).mean() > 0.99, path.name


@pytest.mark.parametrize("name", ONE_CELL)
def test_one_cell_is_recognised(ask: Ask, name: str) -> None:
    found = ask(name)
    assert found["label"] == DRAWN[name].label
    assert len(found["cells"]) == 1


def test_all_cells_of_a_field_are_recognised(ask: Ask) -> None:
    cells = sorted(ask("field-1")["cells"], key=lambda cell: cell["box"][0])
    placed = sorted(FIELD, key=lambda cell: cell[1])
    assert [cell["label"] for cell in cells] == [label for label, _x, _y in placed]
    for cell, (_label, x, y) in zip(cells, placed, strict=True):
        left, top, right, bottom = cell["box"]
        assert left < x * SIZE[0] < right
        assert top < y * SIZE[1] < bottom


def test_red_cells_alone_are_rejected(ask: Ask) -> None:
    found = ask("red-cells-1")
    assert (found["label"], found["verdict"], found["cells"]) == (None, "rejected", [])

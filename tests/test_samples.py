"""The drawings that the page offers to try: painted anew, and asked about."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from frontend import samples
from handler.preprocessing import decode
from handler.verdict import answer
from handler.versions import load
from scripts.draw_cells import FIELD, draw_gallery
from serving.settings import ROOT

DRAWN = {sample.path.stem: sample for sample in samples.drawn()}


def ask(path: Path) -> dict:
    """Return what version 2.0 says of an image."""
    folder = ROOT / "models" / "2.0"
    card = json.loads((folder / "card.json").read_text())
    version = load(folder, card, torch.device("cpu"), 1)
    picture = decode(path.read_bytes(), version.fit)
    return answer("bloodcells", card, version.examine([picture])[0])


def test_they_are_what_the_program_draws() -> None:
    drawn = dict(draw_gallery())
    assert set(drawn) == set(DRAWN)
    for name, picture in drawn.items():
        with Image.open(DRAWN[name].path) as committed:
            assert committed.size == (640, 480)
            difference = np.asarray(picture, float) - np.asarray(committed.convert("RGB"), float)
        # As much as JPEG takes from a picture.
        assert np.abs(difference).mean() < 4, name


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_they_are_small(name: str) -> None:
    assert DRAWN[name].path.stat().st_size < 60_000


@pytest.mark.parametrize("name", [name for name, each in sorted(DRAWN.items()) if each.label])
def test_a_drawn_cell_is_told(name: str) -> None:
    said = ask(DRAWN[name].path)
    assert (said["label"], said["verdict"]) == (DRAWN[name].label, "confident")


def test_the_cells_of_a_field_are_told() -> None:
    cells = sorted(ask(DRAWN["field-1"].path)["cells"], key=lambda cell: cell["box"][0])
    placed = sorted(FIELD, key=lambda cell: cell[1])
    assert [cell["label"] for cell in cells] == [label for label, _x, _y in placed]
    for cell, (_label, x, y) in zip(cells, placed, strict=True):
        left, top, right, bottom = cell["box"]
        assert left < x * 640 < right
        assert top < y * 480 < bottom


def test_red_cells_alone_are_rejected() -> None:
    said = ask(DRAWN["red-cells-1"].path)
    assert (said["label"], said["verdict"], said["cells"]) == (None, "rejected", [])

"""Both pipelines, that of whole fields and that of cells, with made-up weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CARDS

from handler import gate, pipelines
from handler.locator import Located
from handler.pipelines import CellByCell, Pipeline, WholeField
from handler.preprocessing import HEIGHT, WIDTH, DecodedImage
from scripts.draw_cells import draw_cell
from serving.settings import ROOT
from training.export import in_torch
from training.gate import Gate
from training.networks import BloodCellNet, CellNet, Locator
from training.version_files import write_onnx

CLASSES = 5
FIELD = {"channels": [4, 8], "pools": [4, 4], "hidden": 8, "dropout": [0, 0]}
CELL = {"channels": [8, 8, 8], "dropout": 0}
DRAWN = draw_cell("MONOCYTE", 3, (320, 240))
BOXES = [(20.0, 30.0, 80.0, 90.0), (100.0, 40.0, 150.0, 100.0)]


def picture(version: Pipeline, scale: int = 2) -> DecodedImage:
    width, height = version.fit((320 * scale, 240 * scale))
    pixels = np.asarray(DRAWN.resize((width, height)))
    return DecodedImage(pixels, 320 * scale, 240 * scale)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[Located]:
    """Return the cells that are found in each field, which a test may change."""
    found = [Located(box, 0.9) for box in BOXES]
    monkeypatch.setattr(pipelines, "locate", lambda _locator, fields: [found for _ in fields])
    return found


@pytest.fixture
def cells(places: list[Located]) -> CellByCell:
    torch.manual_seed(0)
    network = CellNet(CLASSES, **CELL)
    look = in_torch(Gate(gate.SIZE))
    return CellByCell(look, in_torch(Locator()), in_torch(network), 2, CLASSES)


@pytest.fixture(params=["field", "cells"])
def version(request: pytest.FixtureRequest, cells: CellByCell) -> Pipeline:
    if request.param == "cells":
        return cells
    network = BloodCellNet(CLASSES, **FIELD)
    look = in_torch(Gate((WIDTH, HEIGHT)))
    return WholeField(look, in_torch(network), 2, CLASSES)


def test_pictures_are_examined_in_their_order(version: Pipeline) -> None:
    """More of them than fit a batch, and none, as when all of a batch are to be explained."""
    assert version.predict([]) == []
    pictures = [picture(version) for _ in range(3)]
    for index, each in enumerate(pictures):
        each.pixels = np.roll(each.pixels, 5 * index, axis=1)
    together = version.predict(pictures)
    for each, prediction in zip(pictures, together, strict=True):
        [alone] = version.predict([each])
        assert alone.stain == prediction.stain
        for one, other in zip(alone.cells, prediction.cells, strict=True):
            assert one.logits == pytest.approx(other.logits, abs=1e-4)


def test_an_explanation_has_the_answer_and_the_uploads_proportions(version: Pipeline) -> None:
    asked = picture(version)
    prediction, heat = version.explain(asked)
    [expected] = version.predict([asked])
    assert [cell.logits for cell in prediction.cells] == [
        pytest.approx(cell.logits, abs=1e-4) for cell in expected.cells
    ]
    assert heat.shape == (480, 640)
    assert 0 <= heat.min() <= heat.max() <= 1


def test_warming_up_leaves_no_trace(version: Pipeline) -> None:
    before = version.predict([picture(version)])
    version.warm_up()
    after = version.predict([picture(version)])
    assert before == after


def test_boxes_are_in_pixels_of_the_upload(cells: CellByCell) -> None:
    [prediction] = cells.predict([picture(cells, scale=3)])
    assert [cell.box for cell in prediction.cells] == [
        pytest.approx([side * 3 for side in box]) for box in BOXES
    ]


def test_a_picture_without_cells_has_none_and_is_not_explained(
    cells: CellByCell, places: list[Located]
) -> None:
    places.clear()
    prediction, heat = cells.explain(picture(cells))
    assert list(prediction.cells) == []
    assert heat.max() == 0


@pytest.mark.parametrize("finds_cells", [False, True])
def test_a_version_is_loaded_as_its_card_says(tmp_path: Path, finds_cells: bool) -> None:
    parts: dict[str, Any] = {"network": BloodCellNet(CLASSES, **FIELD)}
    if finds_cells:
        parts = {"locator": Locator(), "network": CellNet(CLASSES, **CELL)}
    card = {
        "classes": ["A", "B", "C", "D", "E"],
        "finds_cells": finds_cells,
        "network": CELL if finds_cells else FIELD,
        **write_onnx(tmp_path, parts),
    }
    assert [*card["sha256"]] == sorted(["gate.onnx", *(f"{name}.onnx" for name in parts)])
    version = pipelines.load(tmp_path, card, 2)
    assert isinstance(version, CellByCell if finds_cells else WholeField)
    version.warm_up()
    for name in card["sha256"]:
        with pytest.raises(RuntimeError, match=f"{name} does not match its SHA-256"):
            pipelines.load(tmp_path, card | {"sha256": card["sha256"] | {name: "0"}}, 2)


@pytest.mark.parametrize("name", ["1.0", "2.0"])
def test_a_gpu_is_warm_for_the_batches_that_it_gets(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each network of a version is asked for its batch size, and for nothing else later."""
    engines: list[Any] = []

    class Recorded:
        def __init__(self, _model: bytes, threads: int, gpu: int | None, batch_size: int) -> None:
            self.built, self.sizes = (threads, gpu, batch_size), list[int]()
            engines.append(self)

        def __call__(self, inputs: Any) -> Any:
            self.sizes.append(len(inputs))
            return np.zeros(len(inputs))

    monkeypatch.setattr(pipelines, "Engine", Recorded)
    folder = ROOT / "models" / name
    pipelines.load(folder, CARDS[name], 8, 2, gpu=3).warm_up()
    assert len(engines) == {"1.0": 2, "2.0": 3}[name]
    for each in engines:
        assert each.built == (2, 3, 8)
        assert each.sizes == list(range(1, 9))

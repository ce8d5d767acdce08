"""Both pipelines, that of whole fields and that of cells, with made-up weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
import torch
from conftest import CARDS

from handler import pipelines
from handler.cells import cut_out
from handler.locator import MAX_TILES, Located
from handler.pipelines import CellByCell, Pipeline, WholeField
from handler.preprocessing import HEIGHT, WIDTH, DecodedImage, Floats, Pixels
from scripts.draw_cells import draw_cell
from serving.settings import ROOT

CLASSES, EMBEDDING = 5, 16
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


class Weighing:
    """A network whose outputs are weighted sums of the pixels (N, 60, 80, 3)."""

    def __init__(self, outputs: int) -> None:
        random = np.random.default_rng(0)
        self.weights = random.normal(0, 0.01, (HEIGHT * WIDTH * 3, outputs)).astype(np.float32)
        self.sizes: list[int] = []

    def __call__(self, pixels: Pixels | Floats) -> Floats:
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (HEIGHT, WIDTH, 3)
        self.sizes.append(len(pixels))
        outputs: Floats = pixels.reshape(len(pixels), -1).astype(np.float32) @ self.weights
        return outputs


def no_locator(_canvases: object) -> Floats:
    return pytest.fail("The places of the cells are given.")


@pytest.fixture
def cells(places: list[Located]) -> CellByCell:
    return CellByCell(no_locator, Weighing(CLASSES + 1 + EMBEDDING), 2, CLASSES)


@pytest.fixture(params=["field", "cells"])
def version(request: pytest.FixtureRequest, cells: CellByCell) -> Pipeline:
    if request.param == "cells":
        return cells
    return WholeField(Weighing(CLASSES), 2, CLASSES)


def test_pictures_are_examined_in_their_order(version: Pipeline) -> None:
    """More of them than fit a batch, and none, as when all of a batch are to be explained."""
    assert version.predict([]) == []
    pictures = [picture(version) for _ in range(3)]
    for index, each in enumerate(pictures):
        each.pixels = np.roll(each.pixels, 5 * index, axis=1)
    together = version.predict(pictures)
    for each, prediction in zip(pictures, together, strict=True):
        [alone] = version.predict([each])
        for one, other in zip(alone.cells, prediction.cells, strict=True):
            assert one.logits == pytest.approx(other.logits, abs=1e-3)
    assert isinstance(version, WholeField | CellByCell)
    assert isinstance(version.network, Weighing)
    assert max(version.network.sizes) == version.batch_size


def test_a_field_has_the_logits_of_the_network() -> None:
    network = Weighing(CLASSES)
    version = WholeField(network, 2, CLASSES)
    asked = picture(version)
    [prediction] = version.predict([asked])
    [cell] = prediction.cells
    assert cell.logits == network(asked.pixels[None])[0].tolist()
    assert (cell.box, cell.embedding) == (None, None)


def test_each_cell_has_logits_a_box_and_an_embedding(cells: CellByCell) -> None:
    asked = picture(cells)
    [prediction] = cells.predict([asked])
    located = [Located(box, 0.9) for box in BOXES]
    outputs = Weighing(CLASSES + 1 + EMBEDDING)(np.stack(cut_out(asked.pixels, located)))
    for cell, output in zip(prediction.cells, outputs, strict=True):
        assert len(cell.logits) == CLASSES + 1
        assert cell.embedding is not None
        together = [*cell.logits, *cell.embedding.tolist()]
        assert together == pytest.approx(output.tolist(), abs=1e-3)


def test_an_explanation_has_the_answer_and_the_uploads_proportions(version: Pipeline) -> None:
    asked = picture(version)
    prediction, heat = version.explain(asked)
    [expected] = version.predict([asked])
    assert [cell.logits for cell in prediction.cells] == [
        pytest.approx(cell.logits, abs=1e-3) for cell in expected.cells
    ]
    assert heat.shape == (480, 640)
    assert 0 <= heat.min() <= heat.max() <= 1


def test_boxes_are_in_pixels_of_the_upload(cells: CellByCell) -> None:
    [prediction] = cells.predict([picture(cells, scale=3)])
    assert [cell.box for cell in prediction.cells] == [
        pytest.approx([side * 1.5 for side in box]) for box in BOXES
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
    torch.manual_seed(0)
    parts: dict[str, Any] = {"network": made_up.Network(CLASSES)}
    if finds_cells:
        network = made_up.Network(CLASSES + 1, EMBEDDING)
        parts = {"locator": made_up.Locator(), "network": network}
    digests = made_up.write(tmp_path, **parts)
    card = {"classes": [*"ABCDE"], "finds_cells": finds_cells, "sha256": digests}
    version = pipelines.load(tmp_path, card, 2)
    assert isinstance(version, CellByCell if finds_cells else WholeField)
    version.warm_up()
    [prediction] = version.predict([picture(version)])
    for cell in prediction.cells:
        assert len(cell.logits) == CLASSES + finds_cells
        assert (cell.embedding is None) == (not finds_cells)
    for name in digests:
        with pytest.raises(RuntimeError, match=f"{name} does not match its SHA-256"):
            pipelines.load(tmp_path, card | {"sha256": {**digests, name: "0"}}, 2)


@pytest.mark.parametrize("name", ["1.0", "3.0"])
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
    most = {"1.0": [8], "3.0": [MAX_TILES, 8]}[name]
    assert [each.sizes for each in engines] == [list(range(1, size + 1)) for size in most]
    assert all(each.built == (2, 3, 8) for each in engines)

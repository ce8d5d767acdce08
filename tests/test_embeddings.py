"""The embeddings of cells, on request, from handlers with made-up versions."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import orjson
import pytest
import yaml
from made_up import Context, write_version
from PIL import Image

from handler import locator, pipelines
from handler.batch import MAX_CELLS, PART
from handler.bloodcells_handler import BloodCellHandler
from handler.locator import Located
from handler.preprocessing import Pixels
from handler.verdict import Cell, Prediction, answer
from serving.settings import ROOT

CLASSES = ["MONOCYTE", "NEUTROPHIL"]
EMBEDDING = 256
WANTED = {"embedding": True}

Ask = Callable[..., tuple[int, Any]]


def slope(width: int) -> bytes:
    """Return an image that is darker on one side, so that no two windows are the same."""
    file = BytesIO()
    Image.linear_gradient("L").rotate(90).resize((width, 240)).convert("RGB").save(file, "PNG")
    return file.getvalue()


IMAGES = [slope(320 + 8 * at) for at in range(3)]


def locate(_locator: object, fields: Sequence[Pixels]) -> list[list[Located]]:
    """Find as many cells as a field is wider than 320 pixels, by 8."""
    return [
        [Located((20.0 + at, 30.0, 80.0, 90.0), 0.9) for at in range((field.shape[1] - 320) // 8)]
        for field in fields
    ]


@pytest.fixture
def ask(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Ask:
    """Return a function that asks a version for the answer to images in JSON."""
    # The handler changes this level; caplog restores it.
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(pipelines, "locate", locate)
    finds_cells, embedding = getattr(request, "param", (True, EMBEDDING))
    write_version(tmp_path, CLASSES, finds_cells, embedding)
    context = Context(tmp_path, batch_size=4)
    handler = BloodCellHandler()
    handler.initialize(context)

    def ask(*images: bytes, explain: bool = False, **document: Any) -> tuple[int, Any]:
        instances = [{"b64": base64.b64encode(image).decode()} for image in images]
        context.header = {"explain": "True"} if explain else {}
        [body] = handler.handle([{"body": {"instances": instances, **document}}], context)
        return context.statuses[0], json.loads(body)

    return ask


def test_each_cell_has_its_own_embedding(ask: Ask) -> None:
    """The rest of the answer is as without."""
    status, plain = ask(*IMAGES)
    assert status == 200
    status, said = ask(*IMAGES, parameters=WANTED)
    assert status == 200
    assert [len(each["cells"]) for each in said["predictions"]] == [0, 1, 2]
    cells = [cell for each in said["predictions"] for cell in each["cells"]]
    embeddings = [cell.pop("embedding") for cell in cells]
    assert said == plain
    assert np.array(embeddings).shape == (3, EMBEDDING)
    assert embeddings[1] != embeddings[2]
    for number in np.ravel(embeddings):
        assert number == float(f"{number:.4g}")


@pytest.mark.parametrize("document", [{}, {"parameters": {}}, {"parameters": {"embedding": False}}])
def test_without_a_request_there_is_none(ask: Ask, document: dict[str, Any]) -> None:
    status, said = ask(*IMAGES, **document)
    assert status == 200
    assert "embedding" not in json.dumps(said)


def test_an_explanation_can_have_embeddings(ask: Ask) -> None:
    _, said = ask(IMAGES[1], parameters=WANTED)
    status, explained = ask(IMAGES[1], explain=True, parameters=WANTED)
    assert status == 200
    assert explained["predictions"][0].pop("heat_map")
    assert explained == said


def test_an_invalid_image_is_an_error_in_its_place(ask: Ask) -> None:
    status, said = ask(IMAGES[2], b"no image", IMAGES[1], parameters=WANTED)
    assert status == 200
    first, error, last = said["predictions"]
    assert [len(each["cells"]) for each in (first, last)] == [2, 1]
    assert all("embedding" in cell for each in (first, last) for cell in each["cells"])
    assert error["type"] == "UnsupportedImage"


@pytest.mark.parametrize("ask", [(False, 0), (True, 0)], indirect=True, ids=["field", "cells"])
def test_a_version_without_embeddings_refuses_a_request_for_them(ask: Ask) -> None:
    assert ask(IMAGES[1], parameters=WANTED) == (
        400,
        {"code": 400, "type": "BadRequest", "message": "This version has no embeddings."},
    )
    status, said = ask(IMAGES[1], parameters={"embedding": False})
    assert status == 200
    assert "embedding" not in json.dumps(said)


def test_another_value_is_refused(ask: Ask) -> None:
    status, said = ask(IMAGES[1], parameters={"embedding": "yes"})
    assert (status, said["type"]) == (400, "BadRequest")


def test_the_largest_answer_fits_the_limit() -> None:
    """TorchServe kills a worker that exceeds it."""
    settings = (ROOT / "config.properties").read_text()
    [limit] = re.findall(r"^max_response_size=(\d+)$", settings, re.MULTILINE)
    box = (1234.5, 1234.5, 1234.5, 1234.5)
    cell = Cell([0.1] * 5, box, np.full(EMBEDDING, -1.2345e-10, np.float32))
    card: dict[str, Any] = {"version": "9.0", "classes": [*"ABCDE"], "finds_cells": True}
    card |= {"temperature": 1.0, "thresholds": {"foreign": 1.0, "confident": 1.0}}
    # All but one of the cells that a request may have can be found before its last images.
    cells = [cell] * (MAX_CELLS - 1 + PART * locator.MAX_CELLS)
    assert len(orjson.dumps(answer("bloodcells", card, Prediction(cells), True))) < int(limit)


def test_an_answer_is_documented(ask: Ask) -> None:
    _, said = ask(*IMAGES, parameters=WANTED)
    components = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text())["components"]
    schema = {"$ref": "#/components/schemas/Answers", "components": components}
    jsonschema_rs.Draft202012Validator(schema).validate(said)

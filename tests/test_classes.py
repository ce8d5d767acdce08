"""A version with classes that no other part knows: served, counted, documented and shown."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from flask.testing import FlaskClient
from made_up import Context, write_version
from page_stand_in import StandIn, encoded, picture, token
from prometheus_client import values
from series import key, read
from werkzeug.datastructures import FileStorage

from handler import metrics, pipelines
from handler.bloodcells_handler import BloodCellHandler
from handler.locator import Located
from serving.settings import ROOT

CLASSES = ["HAIRY_CELL", "BASOPHIL", "NEUTROPHIL", "MONOCYTE", "LYMPHOCYTE", "EOSINOPHIL"]


@pytest.fixture(params=[False, True], ids=["field", "cells"])
def finds_cells(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder in which the handler counts."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv(metrics.FOLDER, str(folder))
    monkeypatch.setattr(values, "ValueClass", values.MultiProcessValue())
    yield folder
    values.close_all_multiprocess_files()


@pytest.fixture
def answer(
    tmp_path: Path,
    finds_cells: bool,
    counted: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Any:
    """Return the version's answer, with its heat map."""
    # The handler changes this level; caplog restores it.
    caplog.set_level(logging.ERROR)
    folder = tmp_path / "model"
    folder.mkdir()
    write_version(folder, CLASSES, finds_cells)
    found = [Located((20.0, 30.0, 80.0, 90.0), 0.9)]
    monkeypatch.setattr(pipelines, "locate", lambda _locator, fields: [found for _ in fields])
    context = Context(folder, explain="True")
    handler = BloodCellHandler()
    handler.initialize(context)
    [body] = handler.handle([{"body": picture("PNG", (320, 240))}], context)
    return json.loads(body)


def test_it_is_served_counted_and_documented(answer: Any, counted: Path, finds_cells: bool) -> None:
    assert (answer["label"], answer["verdict"]) == ("EOSINOPHIL", "confident")
    assert len(answer.get("cells", ())) == finds_cells
    for part in (answer, *answer.get("cells", ())):
        shares = part["probabilities"]
        assert list(shares) == CLASSES
        assert list(shares.values()) == sorted(shares.values())
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    name, seen = "bloodcells_predictions_total", read(counted)
    assert seen[key(name, version="9.0", label="EOSINOPHIL", verdict="confident")] == 1
    assert seen[key(name, version="9.0", label="HAIRY_CELL", verdict="uncertain")] == 0
    components = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text())["components"]
    schema = {"$ref": "#/components/schemas/Explanation", "components": components}
    jsonschema_rs.Draft202012Validator(schema).validate(answer)


@pytest.fixture
def stand_in() -> StandIn:
    service = StandIn()
    shares = dict.fromkeys(CLASSES, 0.1) | {"HAIRY_CELL": 0.5}
    service.answer |= {"label": "HAIRY_CELL", "probabilities": shares}
    return service


@pytest.mark.parametrize(
    ("language", "names"),
    [("en", ["Eosinophil", "Basophil"]), ("pt-BR", ["Eosinófilo", "Basófilo"])],
)
def test_it_is_shown(client: FlaskClient, language: str, names: list[str]) -> None:
    """A class that the page has no name for is shown by its own."""
    headers = {"Accept-Language": language}
    data = {
        "csrf_token": token(client.get("/", headers=headers).text),
        "image": FileStorage(BytesIO(picture()), "cell.png"),
    }
    page = client.post("/", headers=headers, **encoded(data)).text
    assert '<h1 id="verdict" tabindex="-1" autofocus>HAIRY_CELL</h1>' in page
    for name in (*names, "HAIRY_CELL"):
        assert f'<th scope="row">{name}</th>' in page


def test_the_script_gets_the_classes_in_their_order(client: FlaskClient) -> None:
    headers = {"X-CSRFToken": token(client.get("/").text)}
    data = {"image": FileStorage(BytesIO(picture()), "cell.png")}
    answer = client.post("/api/predictions", headers=headers, **encoded(data)).json
    assert answer
    assert list(answer["cells"][0]["probabilities"]) == CLASSES

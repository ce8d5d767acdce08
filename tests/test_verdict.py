"""The answer to a picture: verdicts, thresholds and the leading cell, for any network output."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler.preprocessing import Box
from handler.verdict import Answer, Cell, Prediction, answer, other_probability
from training.protocol import FIELD_CLASSES

CARD: dict[str, Any] = {
    "version": "9.0",
    "classes": FIELD_CLASSES,
    "finds_cells": True,
    "temperature": 1.0,
    "thresholds": {"foreign": 0.5, "confident": 0.8},
}
BOX: Box = (10.04, 20.05, 30.0, 41.96)


def logits(*shares: float) -> list[float]:
    """Return logits of which the softmax is these shares."""
    return [math.log(share) for share in shares]


SURE = logits(0.01, 0.02, 0.07, 0.9)
UNSURE = logits(0.3, 0.4, 0.2, 0.1)
# Like the first two, but seven to three, or three to seven, that it is none of the classes.
FOREIGN = [*SURE, math.log(7 / 3)]
OWN = [*SURE, math.log(3 / 7)]


def say(cells: Sequence[Sequence[float]], **card: Any) -> tuple[Answer, list[Answer]]:
    """Return the answer to a picture with cells of these logits, and its part for each cell."""
    said = answer("bloodcells", CARD | card, Prediction([Cell(each, BOX) for each in cells]))
    return said, said.get("cells", [])


def is_rejected(said: Answer) -> bool:
    return (said["label"], said["verdict"]) == (None, "rejected")


@pytest.mark.parametrize("cells", [[], [SURE], [FOREIGN], [UNSURE, SURE, FOREIGN]])
@pytest.mark.parametrize("finds_cells", [True, False])
def test_an_answer_has_the_same_keys_in_the_same_order(
    cells: list[list[float]], finds_cells: bool
) -> None:
    said, each = say(cells, finds_cells=finds_cells)
    keys = ["model", "version", "label", "verdict", "probabilities"]
    assert list(said) == keys + ["cells"] * finds_cells
    assert (said["model"], said["version"]) == ("bloodcells", "9.0")
    assert all(list(cell) == ["box", "label", "verdict", "probabilities"] for cell in each)
    assert len(each) == len(cells) * finds_cells
    for part in (said, *each):
        assert tuple(part["probabilities"]) == FIELD_CLASSES
        assert sum(part["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert part["verdict"] in {"confident", "uncertain", "rejected"}
        assert (part["label"] is None) == (part["verdict"] == "rejected")


def test_boxes_are_rounded_to_a_tenth() -> None:
    _, [cell] = say([SURE])
    assert cell["box"] == [10.0, 20.1, 30.0, 42.0]


@pytest.mark.parametrize("label", FIELD_CLASSES)
def test_the_label_is_the_likeliest_class(label: str) -> None:
    said, _ = say([[2.0 * (name == label) for name in FIELD_CLASSES]])
    assert said["label"] == label
    assert max(said["probabilities"], key=said["probabilities"].get) == label


@pytest.mark.parametrize(
    ("cell", "verdict"),
    [(SURE, "confident"), (UNSURE, "uncertain"), (OWN, "confident"), (FOREIGN, "rejected")],
)
def test_a_cell_alone_is_the_answer(cell: list[float], verdict: str) -> None:
    """The probabilities are those of the classes, whatever share OTHER has."""
    said, [each] = say([cell])
    assert said["verdict"] == verdict
    for name in ("label", "verdict", "probabilities"):
        assert said[name] == each[name]
    shares = (0.3, 0.4, 0.2, 0.1) if cell is UNSURE else (0.01, 0.02, 0.07, 0.9)
    assert [*said["probabilities"].values()] == pytest.approx(shares, abs=1e-6)


def test_where_there_is_no_cell_nothing_is_known() -> None:
    said, each = say([])
    assert is_rejected(said)
    assert each == []
    assert set(said["probabilities"].values()) == {0.25}


@pytest.mark.parametrize("above", [-1e-4, 0, 1e-4])
def test_other_and_label_may_be_as_probable_as_their_thresholds(above: float) -> None:
    foreign = other_probability(CARD, FOREIGN)
    assert foreign == pytest.approx(0.7)
    limits = CARD["thresholds"] | {"foreign": foreign + above, "confident": 0.5 + above}
    assert is_rejected(say([FOREIGN], thresholds=limits)[0]) == (above < 0)
    said, _ = say([[0.0, 0.0, -1e3, -1e3]], thresholds=limits)
    assert said["probabilities"]["EOSINOPHIL"] == 0.5
    assert said["verdict"] == ("confident" if above <= 0 else "uncertain")


def test_a_version_without_other_outputs_rejects_no_cell() -> None:
    assert other_probability(CARD, SURE) == 0
    assert not is_rejected(say([SURE], thresholds=CARD["thresholds"] | {"foreign": 0.0})[0])


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_the_most_certain_cell_leads_a_rejected_one_only_where_all_are(order: list[int]) -> None:
    cells = [FOREIGN, UNSURE, [*logits(0.97, 0.01, 0.01, 0.01), 5.0]]
    said, _ = say([cells[at] for at in order])
    assert (said["label"], said["verdict"]) == ("LYMPHOCYTE", "uncertain")
    sure, _ = say([*(cells[at] for at in order), SURE])
    assert (sure["label"], sure["verdict"]) == ("NEUTROPHIL", "confident")
    alone, _ = say([cells[at] for at in order if at != 1])
    assert is_rejected(alone)
    assert alone["probabilities"]["EOSINOPHIL"] == pytest.approx(0.97)


def test_cells_keep_their_order_and_boxes() -> None:
    boxes = [(float(at), 0.0, at + 5.0, 9.0) for at in range(3)]
    cells = [Cell(each, box) for each, box in zip((UNSURE, FOREIGN, SURE), boxes, strict=True)]
    said = answer("bloodcells", CARD, Prediction(cells))
    assert [cell["box"] for cell in said["cells"]] == [list(box) for box in boxes]
    assert [cell["verdict"] for cell in said["cells"]] == ["uncertain", "rejected", "confident"]


EMBEDDINGS = np.array([[0.123449, -20.0, 0.0], [1234567.0, 0.0000987654, -1.0]], np.float32)


@pytest.mark.parametrize("wanted", [False, True])
def test_cells_have_embeddings_on_request(wanted: bool) -> None:
    """Of four digits; nothing else changes."""
    cells = [Cell(SURE, BOX, EMBEDDINGS[0]), Cell(FOREIGN, BOX, EMBEDDINGS[1])]
    said = answer("bloodcells", CARD, Prediction(cells), wanted)
    embeddings = [cell.pop("embedding", None) for cell in said["cells"]]
    short = [[0.1234, -20.0, 0.0], [1235000.0, 9.877e-05, -1.0]]
    assert embeddings == (short if wanted else [None, None])
    assert said == answer("bloodcells", CARD, Prediction(cells))


def test_the_temperature_of_the_card_decides() -> None:
    """Of the label and of OTHER."""
    verdicts = [say([SURE], temperature=each)[0]["verdict"] for each in (1.0, 4.0)]
    assert verdicts == ["confident", "uncertain"]
    assert other_probability(CARD | {"temperature": 100.0}, FOREIGN) == pytest.approx(0.2, abs=0.01)
    assert not is_rejected(say([FOREIGN], temperature=100.0)[0])


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(NUMBERS, min_size=5, max_size=5), max_size=4), st.floats(0.05, 20))
@example([[1e308, -1e308, 1e308, 0.0, 0.0], [800.0, 0.0, 0.0, 0.0, 900.0]], 0.1)
def test_any_prediction_is_answered(cells: list[list[float]], temperature: float) -> None:
    """In JSON, also for logits that overflow."""
    said, each = say(cells, temperature=temperature)
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    tops = [max(cell["probabilities"].values()) for cell in each if cell["label"]]
    assert (said["label"] is None) == (not tops)
    assert not tops or max(said["probabilities"].values()) == max(tops)

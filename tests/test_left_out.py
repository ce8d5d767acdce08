"""Laboratories left out: what is measured of the predictions of networks that never saw them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_up_laboratories import LABORATORIES, laboratories, predictions

from handler.verdict import Cell, Prediction, answer
from training import left_out
from training.calibrate import choose, for_choosing
from training.data import OTHER
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES, KEPT, RIGHT

BASOPHIL = CLASSES.index("BASOPHIL")


def card_for(rows: OutOfFold) -> dict[str, object]:
    return {"version": "9.0", "classes": CLASSES, "finds_cells": True} | choose(for_choosing(rows))


def test_macro_recall_is_of_four_classes_and_counts_cells_that_were_not_found() -> None:
    """Basophils, and a basophil's probability, do not count in it; the mean is of laboratories."""
    rows = laboratories(60, ("pbc", "raabin"))
    card = card_for(rows)
    rows.logits = np.eye(OTHER + 1, dtype=np.float32)[rows.labels] * 5
    rows.logits[:, BASOPHIL] += 9
    whole = left_out.measure(rows, card)
    assert list(whole["laboratories"]) == ["pbc", "raabin"]
    assert whole["macro_recall"]["value"] == 1
    lost = (rows.laboratories == "raabin") & (rows.labels == 2)
    rows.found[lost] = False
    rows.logits[lost] = 0
    whole = left_out.measure(rows, card)
    raabin = whole["laboratories"]["raabin"]
    assert raabin["macro_recall"]["value"] == 0.75
    assert {name: each["value"] for name, each in raabin["recall"].items()} == {
        "EOSINOPHIL": 1,
        "LYMPHOCYTE": 1,
        "MONOCYTE": 0,
        "NEUTROPHIL": 1,
    }
    assert whole["macro_recall"]["value"] == pytest.approx((1 + 0.75) / 2)
    low, high = whole["macro_recall"]["interval"]
    assert low <= high
    assert raabin["found"] == pytest.approx(1 - lost.sum() / raabin["images"], abs=1e-3)
    # All cells are called basophils.
    assert raabin["basophil"]["recall"]["value"] == 1
    assert raabin["basophil"]["precision"]["value"] < 0.5


def test_thresholds_hold_on_the_laboratories_that_chose_them() -> None:
    rows = laboratories(600)
    whole = left_out.measure(rows, card_for(rows))
    parts = whole["laboratories"]
    assert list(parts) == list(LABORATORIES)
    assert min(part["kept"] for part in parts.values()) == pytest.approx(KEPT, abs=2e-3)
    assert whole["confident_right"] == pytest.approx(RIGHT, abs=3e-3)
    for part in parts.values():
        assert sum(part["verdicts"].values()) == pytest.approx(1, abs=1e-3)
        assert part["kept"] == pytest.approx(1 - part["verdicts"]["rejected"], abs=1e-4)
        # The hardest needs a laxer threshold than the others choose.
        assert part["thresholds_of_the_others"]["kept"] <= part["kept"] + 0.05
        assert 0.7 < part["near"]["auroc"] <= 1
        assert list(part["near"]["kinds"]) == ["blast"]
    assert whole["near"]["auroc"] == pytest.approx(
        np.mean([part["near"]["auroc"] for part in parts.values()]), abs=1e-4
    )


def test_the_measured_cell_is_the_one_that_the_service_answers_about() -> None:
    rows = predictions(400, fold=-1)
    rows.first[1:] = np.random.default_rng(0).random(399) < 0.4
    card = card_for(rows) | {"thresholds": {"foreign": 0.05, "confident": 0.9}}
    leading = rows.leading(card)
    images = np.split(rows.logits, np.flatnonzero(rows.first)[1:])
    assert len(leading.labels) == len(images)
    for cells, logits in zip(images, leading.logits, strict=True):
        several, alone = (
            answer("bloodcells", card, Prediction([Cell(each) for each in part.tolist()]))
            for part in (cells, logits[None])
        )
        for name in ("label", "verdict", "probabilities"):
            assert several[name] == alone[name]


def test_a_rejected_cell_is_measured_only_where_all_are_rejected() -> None:
    """The most probable cell chooses the thresholds: without them none is rejected."""
    rows = predictions(3, fold=-1)
    rows.logits[:] = [[9, 0, 0, 0, 0, 12], [1, 0, 0, 0, 0, -9], [0, 5, 0, 0, 0, 9]]
    rows.first[:] = [True, False, True]
    card = card_for(rows) | {"temperature": 1.0, "thresholds": {"foreign": 0.5, "confident": 0.9}}
    assert rows.leaders(card).tolist() == [1, 2]
    assert left_out.verdicts_of(rows.leading(card), card).tolist() == ["uncertain", "rejected"]
    assert for_choosing(rows).logits.tolist() == rows.logits[[0, 2]].tolist()


def test_folds_are_not_laboratories_left_out() -> None:
    rows = laboratories(100)
    more = OutOfFold.join([rows, predictions(100, 9, "photographs", fold=0)])
    card = card_for(rows)
    assert left_out.measure(more, card) == left_out.measure(rows, card)


def test_a_version_of_four_classes_without_others() -> None:
    """Basophils and other cells are none of its own; its doubt stands for theirs."""
    rows = laboratories(200, ("pbc", "raabin"))
    four = replace(rows, logits=rows.logits[:, :4])
    card = {
        "version": "1.0",
        "classes": CLASSES[:4],
        "finds_cells": False,
        "temperature": 1.0,
        "thresholds": {"foreign": 1.0, "confident": 0.9},
    }
    whole = left_out.measure(four, card)
    part = whole["laboratories"]["pbc"]
    assert part["images"] == ((rows.labels < 4) & (rows.laboratories == "pbc")).sum()
    assert (part["kept"], part["found"]) == (1, 1)
    assert "basophil" not in part
    assert "thresholds_of_the_others" not in part
    assert part["near"]["images"] == ((rows.labels == OTHER) & (rows.laboratories == "pbc")).sum()
    without = left_out.measure(four.take(four.labels < OTHER), card)
    assert without["near"] is None

"""Measure networks on the laboratories that they never saw: `left_out` in metrics.json.

This is what another laboratory may expect of a version, so it stands first on every page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from handler.verdict import Cell, Prediction, answer, other_probability, probabilities
from serving.settings import MODEL
from training.calibrate import calibration, choose, for_choosing
from training.data import OTHER
from training.laboratories import laboratories
from training.metrics import (
    NOT_FOUND,
    Array,
    balanced,
    confusion_by_photograph,
    mean_macro_recall,
    separation,
    summarize,
)
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES, FIELD_CLASSES

Json = dict[str, Any]
Card = Mapping[str, Any]
BASOPHIL = CLASSES.index("BASOPHIL")


def measure(rows: OutOfFold, card: Card) -> Json:
    """Measure the predictions of laboratories left out, each and together."""
    rows = rows.take(rows.folds < 0)
    leading = rows.leading(card)
    parts = {
        name: part
        for name in laboratories()
        if len((part := leading.take(leading.laboratories == name)).labels)
    }
    known = leading.take(leading.labels < len(card["classes"]))
    each = {name: _laboratory(part, card) for name, part in parts.items()}
    # The thresholds of 1.0 are chosen elsewhere anyway.
    if card["finds_cells"] and len(parts) > 1:
        for name in parts:
            own = rows.laboratories == name
            others = {**card, **choose(for_choosing(rows.take(~own)))}
            cells = rows.take(own & (rows.labels < len(card["classes"])))
            each[name]["thresholds_of_the_others"] = _trust(cells.leading(others), others)
    aurocs = [part["near"]["auroc"] for part in each.values() if "near" in part]
    return {
        "laboratories": each,
        "macro_recall": mean_macro_recall([four_way(part) for part in parts.values()]),
        **_trust(known, card),
        "ece": ece(known, card),
        "near": {"auroc": round(float(np.mean(aurocs)), 4)} if aurocs else None,
    }


def _laboratory(part: OutOfFold, card: Card) -> Json:
    """Measure one laboratory; basophils and other cells only where it has any."""
    known = part.take(part.labels < len(card["classes"]))
    others = part.take(part.labels == OTHER)
    summary = summarize(four_way(part))
    measured = {
        "images": len(known.labels),
        "groups": len(np.unique(known.groups)),
        "macro_recall": summary["macro_recall"],
        "recall": {name: figures["recall"] for name, figures in summary["classes"].items()},
        "found": round(float(known.found.mean()), 4),
        **_trust(known, card),
        "ece": ece(known, card),
    }
    if (known.labels == BASOPHIL).any():
        counts = confusion_by_photograph(
            known.labels, most_probable(known, len(card["classes"])), known.groups.tolist()
        )
        measured["basophil"] = summarize(counts)["classes"]["BASOPHIL"]
    if len(others.labels):
        cells, scores = other_scores(known, card), other_scores(others, card)
        verdicts = verdicts_of(others, card)
        measured["near"] = {
            **separation(cells, scores),
            "verdicts": shares(verdicts),
            "kinds": {
                str(kind): {
                    **separation(cells, scores[others.kinds == kind]),
                    "verdicts": shares(verdicts[others.kinds == kind]),
                }
                for kind in np.unique(others.kinds)
            },
        }
    return measured


def most_probable(rows: OutOfFold, count: int) -> np.ndarray:
    """Return the most probable of the first `count` classes, NOT_FOUND where no cell was found."""
    return np.where(rows.found, rows.logits[:, :count].argmax(1), NOT_FOUND)


def four_way(rows: OutOfFold) -> Array:
    """Count the answers about the four classes that all versions know, by group."""
    count = len(FIELD_CLASSES)
    cells = rows.take(rows.labels < count)
    return confusion_by_photograph(cells.labels, most_probable(cells, count), cells.groups.tolist())


def _trust(known: OutOfFold, card: Card) -> Json:
    """Return how the verdicts of the classes' cells are distributed, and how many are right.

    Laboratories have the same weight; among the confident answers, the classes in each, too.
    """
    verdicts = verdicts_of(known, card)
    together = shares(verdicts, balanced(known.laboratories, np.zeros(len(known.labels))))
    right = most_probable(known, len(card["classes"])) == known.labels
    weights = balanced(known.laboratories, known.labels) * (verdicts == "confident")
    return {
        "kept": round(1 - together["rejected"], 4),
        "verdicts": together,
        "confident_right": round(float(np.average(right, weights=weights)), 4)
        if weights.any()
        else None,
    }


def ece(known: OutOfFold, card: Card) -> float:
    """Return the expected calibration error of the cells that were found."""
    seen = known.take(known.found)
    logits = torch.from_numpy(seen.logits[:, : len(card["classes"])]).double()
    shares = (logits / card["temperature"]).softmax(1)
    error: float = calibration(shares, torch.from_numpy(seen.labels))["ece"]
    return error


def verdicts_of(rows: OutOfFold, card: Card) -> np.ndarray:
    """Return the verdicts, as the service decides them."""
    cells = (
        [Cell(logits)] if found else []
        for logits, found in zip(rows.logits.tolist(), rows.found, strict=True)
    )
    return np.array([answer(MODEL, card, Prediction(each))["verdict"] for each in cells])


def other_scores(rows: OutOfFold, card: Card) -> np.ndarray:
    """Return the out-of-distribution score of each image: 1 where no cell was found."""
    pairs = zip(rows.logits.tolist(), rows.found, strict=True)
    return np.array([other_score(card, logits) if found else 1 for logits, found in pairs])


def other_score(card: Card, logits: Sequence[float]) -> float:
    """Return the probability of another cell; of a wrong answer, without an output for others."""
    if len(logits) > len(card["classes"]):
        return other_probability(card, logits)
    return 1 - max(probabilities(logits, card["temperature"]))


def shares(verdicts: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return the share of each verdict."""
    names = ("confident", "uncertain", "rejected")
    return {name: round(float(np.average(verdicts == name, weights=weights)), 4) for name in names}

"""The answer for an image: calibrated probabilities, a label and a verdict.

A version's card holds the temperature that divides the logits before the softmax (Guo et al. 2017)
and three thresholds, chosen on held-out photographs (training/calibrate.py). An image is `rejected`
if nothing in it is stained like a nucleus or no white cell is found, a cell if it looks like none
of CLASSES. Otherwise the probability of the label decides between `confident` and `uncertain`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handler.contract import CLASSES
from handler.preprocessing import Box

Answer = dict[str, Any]


@dataclass
class Cell:
    """A network's output for one cell, or for the whole field if the version finds no cells.

    The logits are of CLASSES, then of other cells if the version has that output. The box is
    (left, top, right, bottom) in pixels of the upright upload; None for the whole field.
    """

    logits: Sequence[float]
    box: Box | None = None


@dataclass
class Prediction:
    """A pipeline's output for one image: how nucleus-like its stain is, and its cells."""

    stain: float
    cells: Sequence[Cell]


def answer(model: str, card: Mapping[str, Any], prediction: Prediction) -> Answer:
    """Return the answer of the most certain cell, with all cells if the version finds cells."""
    stained = prediction.stain >= card["thresholds"]["stain"]
    cells = [_judge(card, cell, stained) for cell in prediction.cells]
    # Without a cell nothing is known of the classes.
    unknown = _document(None, "rejected", [1 / len(CLASSES)] * len(CLASSES))
    best = max(cells, key=_certainty, default=unknown)
    document = {"model": model, "version": card["version"], **best}
    if card["finds_cells"]:
        boxes = ([round(side, 1) for side in cell.box or ()] for cell in prediction.cells)
        document["cells"] = [{"box": box, **cell} for box, cell in zip(boxes, cells, strict=True)]
    return document


def probabilities(logits: Sequence[float], temperature: float) -> list[float]:
    """Return the softmax of logits divided by the temperature."""
    top = max(logits)
    powers = [math.exp((logit - top) / temperature) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def other_probability(logits: Sequence[float], temperature: float) -> float:
    """Return the probability of a cell of another kind; 0 if the version has no output for it."""
    if len(logits) == len(CLASSES):
        return 0.0
    return sum(probabilities(logits, temperature)[len(CLASSES) :])


def _judge(card: Mapping[str, Any], cell: Cell, stained: bool) -> Answer:
    temperature, thresholds = card["temperature"], card["thresholds"]
    shares = probabilities(cell.logits[: len(CLASSES)], temperature)
    top = max(shares)
    if not stained or other_probability(cell.logits, temperature) > thresholds["foreign"]:
        label, verdict = None, "rejected"
    else:
        label = CLASSES[shares.index(top)]
        verdict = "confident" if top >= thresholds["confident"] else "uncertain"
    return _document(label, verdict, shares)


def _document(label: str | None, verdict: str, shares: Sequence[float]) -> Answer:
    named = zip(CLASSES, shares, strict=True)
    rounded = {name: round(share, 6) for name, share in named}
    return {"label": label, "verdict": verdict, "probabilities": rounded}


def _certainty(cell: Answer) -> tuple[bool, float]:
    return cell["label"] is not None, max(cell["probabilities"].values())

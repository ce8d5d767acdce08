"""What is said of a picture: calibrated probabilities, a label, and how far to trust them.

The numbers behind the words stand in a version's card, chosen on held-out photographs
(training/calibrate.py): `temperature`, by which logits are divided before the softmax (Guo et al.
2017), and three thresholds. A picture is `rejected` if nothing in it is stained like a nucleus or
if no white cell is found in it, a cell if it looks like none of the four. What is left is
`confident` or `uncertain` by the probability of its label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handler.contract import CLASSES as CLASSES
from handler.preprocessing import Box

Answer = dict[str, Any]


@dataclass
class Cell:
    """What a network sees in one cell, or in the one field of a version that looks for no cells.

    The logits are those of CLASSES, and a fifth for what is none of them if the version has one.
    The box is (left, top, right, bottom) in pixels of the upright upload; None is all of it.
    """

    logits: Sequence[float]
    box: Box | None = None


@dataclass
class Examination:
    """What a version sees in a picture: how nucleus-like its stain is, and the cells found."""

    stain: float
    cells: Sequence[Cell]


def answer(model: str, card: Mapping[str, Any], examination: Examination) -> Answer:
    """Say of a picture what is said of its most certain cell, and of each cell if it has boxes."""
    stained = examination.stain >= card["thresholds"]["stain"]
    cells = [_judge(card, cell, stained) for cell in examination.cells]
    best = max(cells, key=_certainty, default=_nothing())
    said = {"model": model, "version": card["version"], **best}
    if card["finds_cells"]:
        boxes = ([round(side, 1) for side in cell.box or ()] for cell in examination.cells)
        said["cells"] = [{"box": box, **cell} for box, cell in zip(boxes, cells, strict=True)]
    return said


def probabilities(logits: Sequence[float], temperature: float) -> list[float]:
    """Return the softmax of logits divided by the temperature."""
    top = max(logits)
    powers = [math.exp((logit - top) / temperature) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def other_probability(logits: Sequence[float], temperature: float) -> float:
    """Return the probability that a cell is none of the four; 0 if the version has no say in it."""
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
    return _say(label, verdict, shares)


def _nothing() -> Answer:
    """Say that there is no cell; the probabilities, which must be some, know nothing."""
    return _say(None, "rejected", [1 / len(CLASSES)] * len(CLASSES))


def _say(label: str | None, verdict: str, shares: Sequence[float]) -> Answer:
    named = zip(CLASSES, shares, strict=True)
    rounded = {name: round(share, 6) for name, share in named}
    return {"label": label, "verdict": verdict, "probabilities": rounded}


def _certainty(said: Answer) -> tuple[bool, float]:
    return said["label"] is not None, max(said["probabilities"].values())

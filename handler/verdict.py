"""The answer for an image: calibrated probabilities, a label and a verdict.

A version's card holds its classes, the temperature that divides the logits before the softmax (Guo
et al. 2017) and two thresholds, chosen on images that the predicting networks never saw
(training/calibrate.py). An image is `rejected` if no white cell is found, a cell if it looks like
none of the classes. Otherwise the probability of the label decides between `confident` and
`uncertain`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handler.preprocessing import Box, Floats

Answer = dict[str, Any]

# Significant digits of an embedding's numbers.
DIGITS = 4


@dataclass
class Cell:
    """A network's output for one cell, or for the whole field if the version finds no cells.

    The logits are of the version's classes, then of other cells if it has outputs for them. The
    box is (left, top, right, bottom) in pixels of the upright upload; None for the whole field. The
    embedding is what the network's last layer gets, if the version returns it.
    """

    logits: Sequence[float]
    box: Box | None = None
    embedding: Floats | None = field(default=None, compare=False)


@dataclass
class Prediction:
    """A pipeline's output for one image."""

    cells: Sequence[Cell]


def answer(
    model: str, card: Mapping[str, Any], prediction: Prediction, embeddings: bool = False
) -> Answer:
    """Return the answer of the leading cell, with all cells if the version finds cells."""
    cells = [judge(card, cell) for cell in prediction.cells]
    # Without a cell nothing is known of the classes.
    count = len(card["classes"])
    unknown = _document(card, None, "rejected", [1 / count] * count)
    best = max(cells, key=certainty, default=unknown)
    document = {"model": model, "version": card["version"], **best}
    if card["finds_cells"]:
        document["cells"] = [
            _described(cell, judged, embeddings)
            for cell, judged in zip(prediction.cells, cells, strict=True)
        ]
    return document


def probabilities(logits: Sequence[float], temperature: float) -> list[float]:
    """Return the softmax of logits divided by the temperature."""
    top = max(logits)
    powers = [math.exp((logit - top) / temperature) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def other_probability(card: Mapping[str, Any], logits: Sequence[float]) -> float:
    """Return the probability of a cell of another kind; 0 if the version has no output for it."""
    return sum(probabilities(logits, card["temperature"])[len(card["classes"]) :])


def judge(card: Mapping[str, Any], cell: Cell) -> Answer:
    """Return the label, the verdict and the probabilities of a cell."""
    classes, thresholds = card["classes"], card["thresholds"]
    shares = probabilities(cell.logits[: len(classes)], card["temperature"])
    top = max(shares)
    if other_probability(card, cell.logits) > thresholds["foreign"]:
        label, verdict = None, "rejected"
    else:
        label = classes[shares.index(top)]
        verdict = "confident" if top >= thresholds["confident"] else "uncertain"
    return _document(card, label, verdict, shares)


def certainty(cell: Answer) -> tuple[bool, float]:
    """Return a key by which the leading cell of an image is the highest.

    It is the most probable one that is not rejected, a rejected one only where all are.
    """
    return cell["label"] is not None, max(cell["probabilities"].values())


def _described(cell: Cell, judged: Answer, embeddings: bool) -> Answer:
    """Return the part of an answer that describes a cell."""
    described = {"box": [round(side, 1) for side in cell.box or ()], **judged}
    if embeddings and cell.embedding is not None:
        described["embedding"] = [
            float(f"{number:.{DIGITS}g}") for number in cell.embedding.tolist()
        ]
    return described


def _document(
    card: Mapping[str, Any], label: str | None, verdict: str, shares: Sequence[float]
) -> Answer:
    named = zip(card["classes"], shares, strict=True)
    rounded = {name: round(share, 6) for name, share in named}
    return {"label": label, "verdict": verdict, "probabilities": rounded}

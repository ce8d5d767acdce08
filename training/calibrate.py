"""Calibrate a version: the temperature of its softmax and the thresholds of its verdicts.

They are chosen on laboratories that the predicting networks never saw, so that they hold in another
one (version 1.0 knows one laboratory: on photographs that its networks never saw), without TEST's
photographs, and written to card.json. Every laboratory has the same weight, and every class in it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from training import data, version_files
from training.metrics import balanced
from training.out_of_fold import OutOfFold
from training.protocol import BINS, CLASSES, KEPT, RIGHT


def calibrate(version: str) -> None:
    """Choose the temperature and the thresholds of the verdicts: card.json."""
    card = version_files.read_card(version, calibrated=False)
    card |= choose(for_choosing(OutOfFold.of(version)))
    version_files.write_json(version_files.folder(version) / "card.json", card)
    print(json.dumps({name: card[name] for name in ("temperature", "thresholds")}, indent=2))


def for_choosing(rows: OutOfFold) -> OutOfFold:
    """Return the images that may be used: of laboratories left out if there are any, not TEST's.

    Of several cells the most probable leads: without thresholds, none is rejected.
    """
    left_out = rows.folds < 0
    rows = rows.take(
        (left_out if left_out.any() else ~left_out) & ~of_test(rows.names, rows.groups)
    )
    classes = CLASSES[: rows.logits.shape[1]]
    thresholds = {"foreign": 1.0, "confident": 1.0}
    return rows.leading({"classes": classes, "temperature": 1.0, "thresholds": thresholds})


def of_test(names: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return which images are TEST's photographs, or made from them."""
    test = [sample.path.stem for sample in data.photographs(Path(), "TEST")]
    return np.isin(photographs_of(names, groups), test)


def photographs_of(names: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the photograph of each image: the image itself, or what it was made from."""
    stems = np.array([Path(name).stem for name in names])
    return np.where(np.char.startswith(stems, "BloodImage"), stems, groups)


def choose(rows: OutOfFold, kept: float = KEPT) -> dict[str, Any]:
    """Return the temperature and the thresholds for these predictions.

    `foreign` is the strictest that keeps this share of the classes' cells in each laboratory.
    """
    count = min(rows.logits.shape[1], len(CLASSES))
    known = rows.take(rows.labels < count)
    logits = torch.from_numpy(known.logits).double()
    labels = torch.from_numpy(known.labels)
    found = known.found
    weights = balanced(known.laboratories, known.labels)
    chosen = temperature(logits[found, :count], labels[found], torch.from_numpy(weights[found]))
    top, predicted = (logits[:, :count] / chosen).softmax(1).max(1)
    foreign, answered = 1.0, found
    if logits.shape[1] > count:
        # No threshold keeps a cell that was not found.
        others = np.where(found, (logits / chosen).softmax(1)[:, count:].sum(1), 1)
        foreign = foreign_from(others, known.laboratories, kept)
        # What is rejected is not confident.
        answered = found & (others <= foreign)
    confident = confident_from(
        top[answered].numpy(),
        (predicted == labels)[answered].numpy(),
        weights[answered],
    )
    return {"temperature": chosen, "thresholds": {"foreign": foreign, "confident": confident}}


def temperature(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
    """Return the temperature that minimises the weighted NLL (Guo et al. 2017).

    Logits (N, classes), labels (N,), weights (N,).
    """

    def loss(log_temperature: float) -> float:
        losses = F.cross_entropy(logits / np.exp(log_temperature), labels, reduction="none")
        return float((losses * weights).sum() / weights.sum())

    return round(float(np.exp(minimize_scalar(loss, bounds=(-2.5, 2.5)).x)), 4)


def calibration(probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Return the ECE, NLL and Brier score of probabilities (N, classes), and the bins of a plot."""
    top, predicted = probabilities.max(1)
    right = (predicted == labels).double()
    place = (top * BINS).long().clamp_max(BINS - 1)
    hot = F.one_hot(labels, probabilities.shape[1])
    bins = [
        {
            "count": int(here.sum()),
            "confidence": round(top[here].mean().item(), 4),
            "accuracy": round(right[here].mean().item(), 4),
        }
        for here in (place == index for index in range(BINS))
        if here.any()
    ]
    gaps = sum(each["count"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
    return {
        "ece": round(gaps / len(labels), 4),
        "nll": round(F.nll_loss(probabilities.clamp_min(1e-12).log(), labels).item(), 4),
        "brier": round((probabilities - hot).square().sum(1).mean().item(), 4),
        "bins": bins,
    }


def foreign_from(others: np.ndarray, laboratories: np.ndarray, kept: float) -> float:
    """Return the strictest threshold that this share of each laboratory's cells does not exceed."""
    needed = []
    for name in np.unique(laboratories):
        scores = np.sort(others[laboratories == name])
        # The product may be a rounding error above a whole number.
        needed.append(float(scores[math.ceil(kept * len(scores) - 1e-9) - 1]))
    # Rounding keeps the scores at a threshold on their side of it.
    return math.ceil(max(needed) * 1e4) / 1e4


def confident_from(
    top: np.ndarray, right: np.ndarray, weights: np.ndarray, share: float = RIGHT
) -> float:
    """Return the lowest probability from which this weighted share of the answers is right."""
    order = np.argsort(-top)
    shares = np.cumsum((right * weights)[order]) / np.cumsum(weights[order])
    # Equal probabilities are kept or dropped together.
    last = np.append(np.diff(top[order]) != 0, True)
    good = np.flatnonzero((shares >= share) & last)
    return math.floor(float(top[order][good.max()]) * 1e4) / 1e4 if len(good) else 1.0

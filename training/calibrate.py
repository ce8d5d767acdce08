"""Calibrate a version: the temperature of its softmax and the thresholds of its verdicts.

Both are chosen on out-of-fold predictions, without TEST's photographs, and written to card.json.
Every laboratory has the same weight, and every class within it.
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
from tqdm import tqdm

from handler import gate
from handler.preprocessing import decode, squashed, within_field
from training import data, version_files
from training.export import in_torch
from training.gate import Gate
from training.metrics import balanced
from training.out_of_fold import OutOfFold
from training.protocol import BINS, CLASSES, KEPT, RIGHT


def calibrate(version: str) -> None:
    """Choose the temperature and the thresholds of the verdicts: card.json."""
    root, folder = data.data_root(), version_files.folder(version)
    card = version_files.read_card(version, calibrated=False)
    card |= choose(for_choosing(OutOfFold.of(version), root))
    card["thresholds"]["stain"] = stain_from(root, card["finds_cells"])
    version_files.write_json(folder / "card.json", card)
    print(json.dumps({name: card[name] for name in ("temperature", "thresholds")}, indent=2))


def for_choosing(rows: OutOfFold, root: Path) -> OutOfFold:
    """Return the images that may be used: predicted by a fold, with a cell found, not of TEST."""
    test = sorted(sample.path.stem for sample in data.photographs(root, "TEST"))
    return rows.take((rows.folds >= 0) & rows.found & ~np.isin(rows.groups, test))


def choose(rows: OutOfFold) -> dict[str, Any]:
    """Return the temperature and the thresholds for these predictions."""
    logits, labels = torch.from_numpy(rows.logits).double(), torch.from_numpy(rows.labels)
    known = rows.labels < len(CLASSES)
    weights = balanced(rows.laboratories[known], rows.labels[known])
    chosen = temperature(logits[known, : len(CLASSES)], labels[known], torch.from_numpy(weights))
    top, predicted = (logits[:, : len(CLASSES)] / chosen).softmax(1).max(1)
    right = (predicted == labels)[known].numpy()
    thresholds = {"foreign": 1.0, "confident": confident_from(top[known].numpy(), right, weights)}
    if logits.shape[1] > len(CLASSES):
        others = (logits[known] / chosen).softmax(1)[:, len(CLASSES) :].sum(1).numpy()
        thresholds["foreign"] = _up(-lowest(-others, weights, KEPT["foreign"]))
    return {"temperature": chosen, "thresholds": thresholds}


def stain_from(root: Path, finds_cells: bool) -> float:
    """Return the stain score that nearly all of TRAIN's images reach; classes weigh the same."""
    fit = within_field if finds_cells else squashed
    images = data.list_images(root, "TRAIN")
    look = in_torch(Gate(gate.SIZE))
    bar = tqdm(images, desc="measuring stain", unit="image", mininterval=1)
    pictures = [gate.shrink(decode(image.path.read_bytes(), fit).pixels) for image in bar]
    parts = range(0, len(pictures), 128)
    scores = np.concatenate([look(np.stack(pictures[at : at + 128])) for at in parts])
    labels = np.array([image.label for image in images])
    weights = balanced(np.zeros(len(labels)), labels)
    return _down(lowest(scores, weights, KEPT["stain"]))


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
    hot = F.one_hot(labels, len(CLASSES))
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


def lowest(scores: np.ndarray, weights: np.ndarray, kept: float) -> float:
    """Return the threshold that this weighted share of the scores reaches."""
    order = np.argsort(scores)
    below = np.cumsum(weights[order]) / weights.sum()
    return float(scores[order][np.searchsorted(below, 1 - kept)])


def confident_from(
    top: np.ndarray, right: np.ndarray, weights: np.ndarray, share: float = RIGHT
) -> float:
    """Return the lowest probability from which this weighted share of the answers is right."""
    order = np.argsort(-top)
    shares = np.cumsum((right * weights)[order]) / np.cumsum(weights[order])
    # Equal probabilities are kept or dropped together.
    last = np.append(np.diff(top[order]) != 0, True)
    good = np.flatnonzero((shares >= share) & last)
    return _down(float(top[order][good.max()])) if len(good) else 1.0


# Rounding keeps scores at a threshold on their side of it.
def _down(threshold: float) -> float:
    return math.floor(threshold * 1e4) / 1e4


def _up(threshold: float) -> float:
    return math.ceil(threshold * 1e4) / 1e4

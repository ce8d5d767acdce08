"""Calibrate a version: `python -m training.calibrate --version 2.0`.

Chooses the temperature of the softmax and the thresholds of the verdicts, on out-of-fold logits
(training/crossvalidate.py): what networks said of images whose photographs they had not seen.
TEST's photographs are left out. Every laboratory counts as much, and every class in it.

Writes them to the version's card.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F
from tqdm import tqdm

from handler import gate
from handler.preprocessing import decode, squashed, within_field
from handler.verdict import CLASSES
from training import data, version_files
from training.crossvalidate import Judged
from training.export import in_torch
from training.gate import Gate
from training.metrics import balanced

# The share of true cells that is kept: no more than the rest is rejected for its stain or as none
# of the four.
KEPT = {"stain": 0.997, "foreign": 0.98}
# The share of right answers among those that are called confident.
RIGHT = 0.95
BINS = 15


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrate one version; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.calibrate")
    parser.add_argument("--version", required=True)
    version = parser.parse_args(arguments).version
    folder = version_files.folder(version)
    try:
        root = data.data_root()
        card = json.loads((folder / "card.json").read_text())
        judged = Judged.load(folder / "out_of_fold.npz")
    except (OSError, data.DataError) as error:
        print(f"error: {error}\nRun `make train VERSION={version}` first.", file=sys.stderr)
        return 1
    card |= choose(for_choosing(judged, root))
    card["thresholds"]["stain"] = stain_from(root, card["finds_cells"])
    version_files.write_json(folder / "card.json", card)
    print(json.dumps({name: card[name] for name in ("temperature", "thresholds")}, indent=2))
    return 0


def for_choosing(judged: Judged, root: Path) -> Judged:
    """Return what may decide: images judged by folds, with a cell found, not of TEST."""
    test = {sample.path.stem for sample in data.photographs(root, "TEST")}
    return judged.take((judged.folds >= 0) & judged.found & ~np.isin(judged.groups, sorted(test)))


def choose(judged: Judged) -> dict[str, Any]:
    """Return temperature and thresholds, from logits of cells that are one of the four or none."""
    logits = torch.from_numpy(judged.logits).double()
    four = judged.labels < len(CLASSES)
    labels = torch.from_numpy(judged.labels)
    weights = balanced(judged.laboratories[four], judged.labels[four])
    chosen = temperature(logits[four, : len(CLASSES)], labels[four], torch.from_numpy(weights))
    foreign = (logits / chosen).softmax(1)[:, len(CLASSES) :].sum(1).numpy()
    top, predicted = (logits[:, : len(CLASSES)] / chosen).softmax(1).max(1)
    thresholds = {
        "foreign": 1.0,
        "confident": confident_from(
            top[four].numpy(), (predicted == labels)[four].numpy(), weights
        ),
    }
    if logits.shape[1] > len(CLASSES):
        thresholds["foreign"] = _up(-lowest(-foreign[four], weights, KEPT["foreign"]))
    return {"temperature": chosen, "thresholds": thresholds}


def stain_from(root: Path, finds_cells: bool) -> float:
    """Return the stain that nearly all of TRAIN's images have, each class counted alike."""
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
    """Return the temperature of the least weighted negative log-likelihood (Guo et al. 2017).

    Logits (N, 4), labels (N,), weights (N,).
    """

    def loss(log_temperature: float) -> float:
        losses = F.cross_entropy(logits / np.exp(log_temperature), labels, reduction="none")
        return float((losses * weights).sum() / weights.sum())

    return round(float(np.exp(minimize_scalar(loss, bounds=(-2.5, 2.5)).x)), 4)


def calibration(probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Return ECE (15 bins), NLL and Brier score of probabilities (N, 4), and the bins of a plot."""
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
    """Return the threshold at or above which this weighted share of the scores lies."""
    order = np.argsort(scores)
    below = np.cumsum(weights[order]) / weights.sum()
    return float(scores[order][np.searchsorted(below, 1 - kept)])


def confident_from(
    top: np.ndarray, right: np.ndarray, weights: np.ndarray, share: float = RIGHT
) -> float:
    """Return the lowest probability from which on that weighted share of the answers is right."""
    order = np.argsort(-top)
    shares = np.cumsum((right * weights)[order]) / np.cumsum(weights[order])
    # Equal probabilities stand or fall together.
    last = np.append(np.diff(top[order]) != 0, True)
    good = np.flatnonzero((shares >= share) & last)
    return _down(float(top[order][good.max()])) if len(good) else 1.0


# Rounded so that what lies at a threshold stays on its side.


def _down(threshold: float) -> float:
    return math.floor(threshold * 1e4) / 1e4


def _up(threshold: float) -> float:
    return math.ceil(threshold * 1e4) / 1e4


if __name__ == "__main__":
    sys.exit(main())

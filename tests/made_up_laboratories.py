"""Made-up predictions of laboratories, and a made-up version measured on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from serving.settings import ROOT
from training import left_out
from training.calibrate import choose, for_choosing
from training.data import OTHER
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES

LABORATORIES = ("photographs", "pbc", "raabin", "rvpbs")


def drawn(count: int, seed: int, sharp: float = 1.0, width: int = 4) -> tuple[np.ndarray, ...]:
    """Draw logits, and labels with just those probabilities; return `sharp` times the logits."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 4, (count, width))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(1)
    return sharp * logits, labels


def predictions(
    count: int, seed: int = 0, laboratory: str = "here", sharp: float = 2.0, fold: int = 0
) -> OutOfFold:
    """Make predictions for the classes, and for a tenth of other cells."""
    logits, labels = drawn(count, seed, sharp, len(CLASSES))
    random = np.random.default_rng(seed + 100)
    labels[random.random(count) < 0.1] = OTHER
    others = random.normal(-3, 2, count) + 8 * (labels == OTHER)
    names = np.array([f"{laboratory}-{at}" for at in range(count)])
    return OutOfFold(
        names,
        np.full(count, laboratory),
        np.array([*CLASSES, "blast"])[labels],
        labels,
        names,
        np.full(count, fold),
        np.ones(count, bool),
        np.column_stack([logits, others]).astype(np.float32),
        np.ones(count, bool),
    )


def laboratories(count: int = 400, names: Sequence[str] = LABORATORIES) -> OutOfFold:
    """Make predictions of laboratories left out: the later, the harder."""
    parts = [
        predictions(count, seed, name, sharp=1 + seed / 4, fold=-1)
        for seed, name in enumerate(names)
    ]
    return OutOfFold.join(parts)


def version_one() -> dict[str, Any]:
    """Return the documents of version 1.0, by their file names."""
    folder = ROOT / "models" / "1.0"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@cache
def version_three() -> dict[str, Any]:
    """Make up the documents of a version that finds cells, by their file names."""
    rows = laboratories()
    own = {path.stem: json.loads(path.read_text()) for path in (ROOT / "models/1.0").glob("*.json")}
    card = own["card"] | {
        "version": "3.0",
        "classes": list(CLASSES),
        "finds_cells": True,
        "network": {"channels": [32, 64], "dropout": 0.2},
        "sha256": {"network.onnx": "0" * 64, "locator.onnx": "1" * 64},
        **choose(for_choosing(rows)),
    }
    found = {"boxes": 30, "found": 29, "recall": 0.9512, "false_boxes": 1, "false_share": 0.0123}
    located = found | {
        "by_share": [
            {"from": 0, "to": 0.04, **dict.fromkeys(found, 0)},
            {"from": 0.04, "to": 0.08, **found},
            {"from": 0.08, "to": 1, **found},
        ]
    }
    points = [{"cells_a_class": count, "macro_recall": 0.8123} for count in (0, 5, 10, 25)]
    curves = {each: {"classes": CLASSES[:4], "points": points} for each in LABORATORIES}
    return {
        "card": card,
        "golden": own["golden"],
        "served": own["served"],
        "history": {
            "recipe": {
                "fit": {"steps": 100, "batch_size": 8},
                "locator": {"fit": {"steps": 200, "batch_size": 4}},
            },
            "steps_a_row": 10,
            "rows": [{"train_loss": 1.5}, {"train_loss": 0.5}],
        },
        "metrics": own["metrics"]
        | {
            "temperature": card["temperature"],
            "thresholds": card["thresholds"],
            "left_out": left_out.measure(rows, card),
            "locator": {"laboratories": {"photographs": located, "rvpbs": located}},
        },
        "few_cells": {
            "draws": 10,
            "recipe": {"C": 0.02, "weight": 0.5},
            "laboratories": curves,
        },
        "adaptation": {"steps": 400, "laboratories": curves},
        "ablation": {
            "rows": [
                {"name": "without re-staining", **dict.fromkeys(LABORATORIES, 0.7), "mean": 0.7}
            ]
        },
    }

"""What a version is on disk: the files of models/<version>/, written and read in one place."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from handler.network import CLASSES

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".train"


@dataclass
class Trained:
    """What training leaves: weights, what the card says of them, and how it went."""

    weights: dict[str, Any]
    card: dict[str, Any]
    history: dict[str, Any]


def folder(version: str) -> Path:
    """Return where a version's files lie."""
    return ROOT / "models" / version


def write(version: str, trained: Trained) -> None:
    """Write a trained version; what was measured of other weights no longer holds and goes."""
    here = folder(version)
    here.mkdir(parents=True, exist_ok=True)
    torch.save(trained.weights, here / "weights.pt")
    card = {
        "version": version,
        "labels": list(CLASSES),
        **trained.card,
        "weights_sha256": hashlib.sha256((here / "weights.pt").read_bytes()).hexdigest(),
        "training_date": date.today().isoformat(),
    }
    write_json(here / "card.json", card)
    write_json(here / "history.json", trained.history)
    shutil.rmtree(here / "plots", ignore_errors=True)
    measured = ("metrics", "golden", "served", "adaptation", "locator")
    for name in (*(f"{each}.json" for each in measured), "out_of_fold.npz", "CARD.md"):
        (here / name).unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write a document that people read and compare, too."""
    path.write_text(json.dumps(document, indent=2) + "\n")

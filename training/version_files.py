"""The files of models/<version>/: written by training, read by the evaluation."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from handler import pipelines
from handler.preprocessing import Pixels
from serving.settings import ROOT
from training.data import DataError
from training.export import Served, to_onnx

SCRATCH = ROOT / ".train"
# Measurements of the previous weights.
MEASURED = (
    "golden.json",
    "metrics.json",
    "served.json",
    "adaptation.json",
    "few_cells.json",
    "locator.json",
    "cropped.json",
    "out_of_fold.npz",
    "CARD.md",
)

Card = dict[str, Any]


@dataclass
class Trained:
    """The result of training: networks by name, their part of the card, and the history.

    Networks compute in 8 bits if there are inputs to calibrate them with. Those that did not change
    have a file already, which is copied.
    """

    networks: Mapping[str, Served]
    card: Card
    history: dict[str, Any]
    calibration: Mapping[str, Pixels] = field(default_factory=dict)
    exported: Mapping[str, Path] = field(default_factory=dict)


def folder(version: str) -> Path:
    return ROOT / "models" / version


def scratch(version: str) -> Path:
    """Return the folder of a version's checkpoints."""
    return SCRATCH / version


def write(version: str, trained: Trained) -> None:
    """Write a trained version; remove the measurements of the previous weights."""
    here = folder(version)
    here.mkdir(parents=True, exist_ok=True)
    # First, so that an incomplete version does not look finished.
    for path in (*(here / name for name in MEASURED), *here.glob("*.onnx")):
        path.unlink(missing_ok=True)
    shutil.rmtree(here / "plots", ignore_errors=True)
    parts = trained.networks.items()
    torch.save({name: network.state_dict() for name, network in parts}, here / "weights.pt")
    card = {
        "version": version,
        **trained.card,
        "parameters": sum(each.numel() for _, network in parts for each in network.parameters()),
        **write_onnx(here, trained),
        "training_date": date.today().isoformat(),
    }
    write_json(here / "card.json", card)
    write_json(here / "history.json", trained.history)
    print(f"wrote {here}")


def write_onnx(here: Path, trained: Trained) -> Card:
    """Write the networks in ONNX; return their digests."""
    files = []
    for name, network in trained.networks.items():
        files.append(here / f"{name}.onnx")
        if name in trained.exported:
            shutil.copy(trained.exported[name], files[-1])
        else:
            to_onnx(network, files[-1], trained.calibration.get(name))
    return {
        "sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)
        }
    }


def read_card(version: str, calibrated: bool = True) -> Card:
    """Return the card of a trained version; raise DataError if there is none."""
    try:
        card: Card = json.loads((folder(version) / "card.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"Version {version} is not trained: {error}\n{_train(version)}") from error
    if calibrated and "thresholds" not in card:
        raise DataError(f"Version {version} is not calibrated.\n{_train(version)}")
    return card


def load(version: str, batch_size: int) -> tuple[Card, pipelines.Pipeline]:
    """Load a calibrated version as it is served; raise DataError."""
    card = read_card(version)
    try:
        return card, pipelines.load(folder(version), card, batch_size)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{error}\n{_train(version)}") from error


def write_json(path: Path, document: Any) -> None:
    """Write a document so that people can read and compare it."""
    path.write_text(json.dumps(document, indent=2) + "\n")


def _train(version: str) -> str:
    return f"Run `make train VERSION={version}` first."

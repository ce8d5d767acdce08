"""What a version is on disk: the files of models/<version>/, written and read in one place.

`python -m training.version_files --version X` writes what serves of a version anew from its
weights: for one that was trained before there was such a thing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from handler import gate
from handler.networks import load_networks
from handler.preprocessing import HEIGHT, WIDTH
from handler.verdict import CLASSES
from training.export import Served, to_onnx
from training.gate import Gate

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".train"


@dataclass
class Trained:
    """What training leaves: networks by name, what the card says of them, and how it went."""

    networks: Mapping[str, Served]
    card: dict[str, Any]
    history: dict[str, Any]


def folder(version: str) -> Path:
    """Return where a version's files lie."""
    return ROOT / "models" / version


def write(version: str, trained: Trained) -> None:
    """Write a trained version; what was measured of other weights no longer holds and goes."""
    here = folder(version)
    here.mkdir(parents=True, exist_ok=True)
    # First, so that a version half written is none that is finished.
    measured = ("golden", "metrics", "served", "adaptation", "locator")
    for name in (*(f"{each}.json" for each in measured), "out_of_fold.npz", "CARD.md"):
        (here / name).unlink(missing_ok=True)
    shutil.rmtree(here / "plots", ignore_errors=True)
    for old in here.glob("*.onnx"):
        old.unlink()
    parts = trained.networks.items()
    torch.save({name: network.state_dict() for name, network in parts}, here / "weights.pt")
    card = {
        "version": version,
        "labels": list(CLASSES),
        **trained.card,
        "parameters": sum(each.numel() for _, network in parts for each in network.parameters()),
        **write_onnx(here, trained.networks),
        "training_date": date.today().isoformat(),
    }
    write_json(here / "card.json", card)
    write_json(here / "history.json", trained.history)


def write_onnx(here: Path, networks: Mapping[str, Served]) -> dict[str, Any]:
    """Write networks as they serve, and the gate; return what the card says of these files.

    And of weights.pt, which must lie there.
    """
    # The gate looks at what is decoded; of a field that cells are cut from, at a smaller picture.
    size = gate.SIZE if "locator" in networks else (WIDTH, HEIGHT)
    files = [here / "weights.pt"]
    for name, network in (*networks.items(), ("gate", Gate(size))):
        files.append(here / f"{name}.onnx")
        to_onnx(network, files[-1])
    return {
        "sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)
        }
    }


def renew(version: str) -> None:
    """Write what serves of a version anew from its weights; raise OSError, RuntimeError."""
    here = folder(version)
    card = json.loads((here / "card.json").read_text())
    weights = torch.load(here / "weights.pt", map_location="cpu", weights_only=True)
    if "network" not in weights:
        # Once a version of one network had its weights alone in the file.
        torch.save({"network": weights}, here / "weights.pt")
    card.pop("weights_sha256", None)
    write_json(here / "card.json", card | write_onnx(here, load_networks(here, card)))


def write_json(path: Path, document: Any) -> None:
    """Write a document that people read and compare, too."""
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m training.version_files")
    parser.add_argument("--version", required=True)
    renew(parser.parse_args().version)

"""Teach a version a laboratory's own cells: `make train FROM=2.0 CELLS=folder VERSION=3.0`.

The folder is as training/laboratories.py says. A quarter of its groups only judges; on the rest
the network is trained on, from the weights of an older version, beside the cells that one was
trained on if they are at hand, so that they are not forgotten. The locator stays as it is.

Writes a version, ready for `make mar`: weights, card (calibrated on cells judged by networks that
had not seen them), and metrics.json (of its own cells that only judge, and of the old ones).

`--curve` instead shows on PBC how many cells a laboratory needs: it starts from a network that
never saw that laboratory, trains it on beside the photographs, and writes adaptation.json to
models/<from>/.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handler.networks import CellNet, Locator, load_networks
from handler.verdict import CLASSES
from training import data, evaluate, version_files
from training.calibrate import choose
from training.cells import (
    CellRecipe,
    CellSet,
    collect,
    join,
    middle,
    predict_cells,
    surest,
    train_cells,
    train_network,
)
from training.crossvalidate import Judged
from training.data import OTHER, DataError, Sample
from training.laboratories import pbc, read_folder, require
from training.metrics import confusion_by_photograph, summarize
from training.train import RECIPES, keep_memory

FOLDS = 3
JUDGING = 4  # one in so many groups
STEPS = 400
LEARNING_RATE = 1e-3
CURVE = (0, 10, 30, 100, 300)


def main(arguments: Sequence[str] | None = None) -> int:
    """Adapt a version to a laboratory, or draw the curve; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.adapt")
    parser.add_argument("--from", dest="base", required=True, metavar="VERSION")
    parser.add_argument("--cells", type=Path, metavar="FOLDER")
    parser.add_argument("--version")
    parser.add_argument("--curve", action="store_true")
    options = parser.parse_args(arguments)
    if not options.curve and not (options.cells and options.version):
        parser.error("both --cells and --version are needed")
    keep_memory()
    try:
        if options.curve:
            draw_curve(options.base)
        else:
            adapt(options.base, options.cells, options.version)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def adapt(base: str, folder: Path, version: str) -> None:
    """Write `version`: `base`, trained on with the cells of a folder."""
    if not re.fullmatch(r"\d+\.\d+", version):
        raise DataError(f"VERSION={version} is no version: it should look like 3.0.")
    here = version_files.folder(version)
    if version == base or version in RECIPES:
        raise DataError(f"{version} is taken: choose another VERSION.")
    card, locator, network = load_base(base)
    samples = read_folder(folder)
    require(samples)
    cells = collect(samples, "own", locator, middle)
    require(_rows(cells))
    if not_found := int((~cells.found).sum()):
        print(f"{not_found} of {len(samples)} images show no white cell, and are left out")
    rest, judging = split(cells)
    old = old_cells(locator)
    logits = torch.zeros(len(rest.labels), len(CLASSES) + 1)
    for fold, (train, held_out) in enumerate(data.grouped_folds(_rows(rest), FOLDS, 0)):
        judge, _ = train_on(network, rest.take(train), old, card, fold, f"fold {fold}")
        logits[held_out] = predict_cells(judge, rest.take(held_out).cutouts)
    trained, rows = train_on(network, rest, old, card, FOLDS, "all")
    chosen = choose(_judged(rest, logits))
    chosen["thresholds"]["stain"] = card["thresholds"]["stain"]
    version_files.write(
        version,
        version_files.Trained(
            networks={"locator": locator, "network": trained},
            card={
                **{name: card[name] for name in ("input", "finds_cells", "network")},
                **chosen,
                "adapted_from": base,
            },
            history={"adapted_from": base, "rows": rows},
        ),
    )
    metrics: dict[str, Any] = {"version": version, "adapted_from": base}
    for name, part in (("own_cells", judging), ("old_cells", old)):
        if part is not None:
            metrics[name] = {
                "before": measure(network, part),
                "after": measure(trained, part),
            }
    version_files.write_json(here / "metrics.json", metrics)
    shutil.copy(version_files.folder(base) / "model-config.yaml", here)
    evaluate.write_golden(version)
    print(json.dumps(_short(metrics), indent=2))
    print(f"wrote {here}: `make deploy VERSION={version}` has it serve beside the others")


def draw_curve(base: str) -> None:
    """Write what 0 to 300 cells of a class teach a network that never saw PBC."""
    card, locator, _network = load_base(base)
    recipe = RECIPES.get(base)
    if not isinstance(recipe, CellRecipe):
        raise DataError(f"FROM={base} was adapted: the curve needs a version with a recipe.")
    root = data.data_root()
    photographs = data.photographs(root, "TRAIN", "TEST")
    checkpoint = version_files.SCRATCH / base / "pbc-from-photographs.pt"
    network, _ = train_network(locator, photographs, [], recipe, 0, checkpoint)
    old = collect(photographs, "photographs", locator, surest)
    known, unseen = (collect(pbc(part), "pbc", locator, middle) for part in ("train", "test"))
    points = []
    for count in CURVE:
        trained = network
        if count:
            trained, _ = train_on(network, some(known, count), old, card, 0, f"{count} a class")
        points.append(
            {
                "cells_a_class": count,
                "own": measure(trained, unseen)["macro_recall"],
                "old": measure(trained, old)["macro_recall"],
            }
        )
    path = version_files.folder(base) / "adaptation.json"
    version_files.write_json(path, {"steps": STEPS, "points": points})
    print(f"wrote {path}")


def load_base(version: str) -> tuple[dict[str, Any], Locator, CellNet]:
    """Load a version to start from; raise DataError if it finds no cells or is not there."""
    folder = version_files.folder(version)
    try:
        card = json.loads((folder / "card.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"FROM={version} is no trained version: {error}") from error
    if "thresholds" not in card:
        raise DataError(f"FROM={version} is not calibrated: `make train VERSION={version}` does.")
    if not card["finds_cells"]:
        raise DataError(f"FROM={version} looks at whole fields: start from one that finds cells.")
    try:
        networks = load_networks(folder, card)
    except (OSError, RuntimeError) as error:
        raise DataError(f"FROM={version} is no trained version: {error}") from error
    return card, networks["locator"], networks["network"]


def split(cells: CellSet) -> tuple[CellSet, CellSet]:
    """Split into what trains and what only judges, by group; raise DataError if those are few."""
    for label, name in enumerate(CLASSES):
        if (count := len(set(cells.groups[cells.labels == label]))) < JUDGING:
            raise DataError(
                f"{name} has {count} groups; at least {JUDGING} are needed to judge it."
            )
    train, judging = data.grouped_folds(_rows(cells), JUDGING, 0)[0]
    return cells.take(train), cells.take(judging)


def old_cells(locator: Locator) -> CellSet | None:
    """Return the cells that older versions were trained on, or None if they are not at hand."""
    parts = []
    for name, read, choose_cell in (
        ("photographs", lambda: data.photographs(data.data_root(), "TRAIN"), surest),
        ("pbc", lambda: pbc("train"), middle),
    ):
        try:
            parts.append(collect(read(), name, locator, choose_cell))
        except DataError as error:
            print(f"without the old cells of {name}: {error}")
    return join(parts) if parts else None


def train_on(
    network: CellNet,
    own: CellSet,
    old: CellSet | None,
    card: dict[str, Any],
    seed: int,
    title: str,
) -> tuple[CellNet, list[dict[str, float]]]:
    """Train a copy of a network on a laboratory's cells, beside the old ones."""
    channels, dropout = tuple(card["network"]["channels"]), card["network"]["dropout"]
    recipe = CellRecipe(channels, dropout, steps=STEPS, learning_rate=LEARNING_RATE)
    cells = join([own, old]) if old is not None else own
    return train_cells(cells, recipe, seed, title, start=network)


def some(cells: CellSet, count: int) -> CellSet:
    """Return the first so many cells of each of the four classes, in an order of their own."""
    order = np.random.default_rng(0).permutation(len(cells.labels))
    chosen = [order[cells.labels[order] == label][:count] for label in range(len(CLASSES))]
    return cells.take(np.concatenate(chosen))


def measure(network: CellNet, cells: CellSet) -> dict[str, Any]:
    """Summarize a network's answers to cells of the four classes."""
    four = cells.take(cells.labels < OTHER)
    predicted = predict_cells(network, four.cutouts)[:, :OTHER].argmax(1).numpy()
    return summarize(confusion_by_photograph(four.labels, predicted, four.groups.tolist()))


def _rows(cells: CellSet) -> list[Sample]:
    return [
        Sample(Path(), int(label), "", str(group))
        for label, group in zip(cells.labels, cells.groups, strict=True)
    ]


def _judged(cells: CellSet, logits: torch.Tensor) -> Judged:
    count = len(cells.labels)
    return Judged(
        cells.groups,
        cells.laboratories,
        cells.labels.astype(str),
        cells.labels,
        cells.groups,
        np.zeros(count, int),
        np.ones(count, bool),
        logits.numpy(),
    )


def _short(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {when: each["macro_recall"] for when, each in part.items()}
        for name, part in metrics.items()
        if isinstance(part, dict)
    }


if __name__ == "__main__":
    sys.exit(main())

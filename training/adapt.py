"""Adapt a version to a laboratory's own cells, and measure how many cells this needs.

A quarter of the laboratory's groups (training/laboratories.py) is held out. The network of an older
version is trained further on the other groups, and on some cells of the laboratories of its first
training that are available, so that it does not forget them; the locator does not change. A quarter
of the old cells is held out, too: they trained the older version, but not the new one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handler.engine import Engine, Network
from handler.preprocessing import Pixels
from training import data, version_files
from training.calibrate import choose, of_test
from training.cells import predict_cells, train_cells
from training.crops import NOT_LABELLED, CellSet, collect, windows
from training.data import OTHER, DataError, Sample
from training.export import Served, as_served, is_quantized
from training.few_cells import COUNTS, draw, recall
from training.fitting import History
from training.laboratories import laboratories, read_folder, require
from training.metrics import confusion_by_photograph, summarize
from training.networks import CellNet, Locator, load_networks
from training.out_of_fold import OutOfFold
from training.predict import write_golden
from training.protocol import CLASSES, FIELD_CLASSES, HELD_OUT, INNER_FOLDS, KEPT_OWN
from training.recipes import RECIPES, CellRecipe, Fit
from training.runs import all_runs
from training.train import CALIBRATION, network_of, prepare
from training.version_files import Card, Trained
from training.views import NO_PARTNER
from training.views import choose as choose_views
from training.views import draw as draw_views

FIT = Fit(400, 64, 1e-3, 0.05, decay=0.99, mean_from=0.3)
# Views of the laboratory's cells, and as many of older ones.
VIEWS = 3_000
# Cells of each class, and other cells, of each older laboratory.
OLD = 50
BATCH = 64
# What an adapted version has in common with its base.
KEPT_FACTS = ("classes", "input", "finds_cells", "embedding", "network")
# The cells that an adapted version and its base are measured on.
MEASURED = {
    "own_cells": "held-out own cells",
    "old_cells": "held-out old cells, which trained an earlier version",
}


def adapt(base: str, folder: Path, version: str) -> None:
    """Adapt a version to the labelled cells of a laboratory."""
    if not re.fullmatch(r"\d+\.\d+", version):
        raise DataError(f"VERSION={version} is not a version: it should look like 3.0.")
    if version == base or version in RECIPES:
        raise DataError(f"{version} exists already: choose another VERSION.")
    card, locator, network = load_base(base)
    samples = read_folder(folder)
    require([sample.label for sample in samples])
    cells = collect(samples, "own", locator)
    require(cells.labels.tolist())
    if lacking := len(samples) - len(cells.labels):
        print(f"{lacking} of {len(samples)} images show no white cell and are not used")
    require_groups(cells)
    train, held_out = split(cells)
    measured, old, old_views = {"own_cells": held_out}, [], None
    if all_old := old_cells(locator):
        trained_on, measured["old_cells"] = split(all_old)
        old, old_views = [trained_on], views_of(trained_on)
    there, here = version_files.folder(base), version_files.folder(version)
    quantized = is_quantized(there / "network.onnx")
    logits = np.zeros((len(train.labels), len(CLASSES) + 1), np.float32)
    for fold, (rest, unseen) in enumerate(data.grouped_folds(_samples(train), INNER_FOLDS, 0)):
        seen = train.take(rest)
        judge, _ = train_on(network, seen, old_views, card, fold, f"fold {fold}")
        served = as_served(judge, calibration([seen, *old]) if quantized else None)
        logits[unseen] = predict_cells(served, train.take(unseen))[0]
    trained, rows = train_on(network, train, old_views, card, INNER_FOLDS, "all")
    chosen = choose(_out_of_fold(train, logits), KEPT_OWN)
    kept = {name: card[name] for name in KEPT_FACTS}
    networks: dict[str, Served] = {"locator": locator, "network": trained}
    version_files.write(
        version,
        Trained(
            networks,
            card={**kept, **chosen, "adapted_from": base},
            history={"adapted_from": base, "rows": rows},
            calibration={"network": calibration([train, *old])} if quantized else {},
            exported={"locator": there / "locator.onnx"},
        ),
    )
    before, after = (
        Engine((folder / "network.onnx").read_bytes(), 1, None) for folder in (there, here)
    )
    metrics = {
        name: {"before": measure(before, part), "after": measure(after, part)}
        for name, part in measured.items()
    }
    version_files.write_json(
        here / "metrics.json", {"version": version, "adapted_from": base, **metrics}
    )
    shutil.copy(there / "model-config.yaml", here)
    write_golden(version)
    for name, part in metrics.items():
        recalls = " to ".join(f"{each['macro_recall']['value']:.1%}" for each in part.values())
        print(f"macro recall on {MEASURED[name]}: {recalls}")
    print(f"`make deploy VERSION={version}` serves it beside the other versions")


def draw_curve(version: str) -> None:
    """Measure how many cells a laboratory must label: adaptation.json.

    Networks that never saw a laboratory train further on 5, 10 and 25 of its cells of each class.
    They are drawn once, as for few_cells.json.
    """
    card, _locator, _network = load_base(version)
    if version not in RECIPES:
        raise DataError(f"{version} was adapted: the curve needs a version with a recipe.")
    made, curves = prepare(version), {}
    for run in all_runs():
        if run.laboratory is None:
            continue
        network, _ = network_of(version, run)
        own = made.cells.laboratories == run.laboratory
        test = of_test(made.cells.names, made.cells.groups)
        cells = made.cells.take(own & (made.cells.labels < OTHER) & ~test)
        seen = np.random.default_rng(0).permutation(made.views.seen(run.sees(made.parts)))[:VIEWS]
        old_views = made.views.pixels[np.sort(seen)], made.labels[np.sort(seen)]
        points = [_point(network, cells, 0)]
        for count in COUNTS:
            labelled, unseen = draw(cells.labels, cells.groups, count, 0)
            title = f"{run.laboratory}, {count} a class"
            trained, _ = train_on(network, cells.take(labelled), old_views, card, 0, title)
            points.append(_point(trained, cells.take(unseen), count))
        curves[run.laboratory] = {"points": points}
    path = version_files.folder(version) / "adaptation.json"
    version_files.write_json(path, {"steps": FIT.steps, "laboratories": curves})
    print(f"wrote {path}")


def load_base(version: str) -> tuple[Card, Locator, CellNet]:
    """Load a version to start from; raise DataError if it is missing or finds no cells."""
    card = version_files.read_card(version)
    if not card["finds_cells"]:
        raise DataError(f"{version} classifies whole fields: start from one that finds cells.")
    if card.get("classes") != list(CLASSES):
        raise DataError(f"{version} does not have the classes {', '.join(CLASSES)}.")
    try:
        networks = load_networks(version_files.folder(version), card)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{version} is not a trained version: {error}") from error
    return card, networks["locator"], networks["network"]


def require_groups(cells: CellSet) -> None:
    """Raise DataError unless each class has enough groups to hold some out."""
    for label, name in enumerate(FIELD_CLASSES):
        if (count := len(set(cells.groups[cells.labels == label]))) < HELD_OUT:
            raise DataError(f"{name} has {count} groups; each class needs at least {HELD_OUT}.")


def split(cells: CellSet) -> tuple[CellSet, CellSet]:
    """Split into training and held-out cells by group."""
    train, held_out = data.grouped_folds(_samples(cells), HELD_OUT, 0)[0]
    return cells.take(train), cells.take(held_out)


def old_cells(locator: Locator) -> CellSet | None:
    """Return some cells of the available laboratories that train versions, or None."""
    parts = []
    for name, laboratory in laboratories().items():
        if laboratory.is_background:
            continue
        try:
            labelled = [each for each in laboratory.samples() if each.kind != NOT_LABELLED]
            parts.append(collect(some(labelled), name, locator))
        except DataError as error:
            print(f"the old cells of {name} are not used: {error}")
    if not parts:
        return None
    cells = CellSet.join(parts)
    return cells.take(~of_test(cells.names, cells.groups))


def some(samples: list[Sample]) -> list[Sample]:
    """Return random samples, OLD of each label."""
    order = np.random.default_rng(0).permutation(len(samples))
    labels = np.array([sample.label for sample in samples])
    chosen = [order[labels[order] == label][:OLD] for label in range(OTHER + 1)]
    return [samples[index] for index in np.concatenate(chosen)]


def views_of(cells: CellSet) -> tuple[Pixels, np.ndarray]:
    """Draw augmented views of cells: (VIEWS, 84, 112, 3), and their labels."""
    torch.manual_seed(0)
    chosen, partners = choose_views(cells, VIEWS, np.random.default_rng(0))
    views = [
        draw_views(
            cells.patches[chosen[at : at + BATCH]],
            [
                None if partner == NO_PARTNER else cells.patches[partner]
                for partner in partners[at : at + BATCH]
            ],
        )
        for at in range(0, VIEWS, BATCH)
    ]
    return np.concatenate(views), cells.labels[chosen]


def train_on(
    network: CellNet,
    own: CellSet,
    old_views: tuple[Pixels, np.ndarray] | None,
    card: Card,
    seed: int,
    title: str,
) -> tuple[CellNet, History]:
    """Train a copy of a network on views of a laboratory's cells and of older ones."""
    recipe = CellRecipe(tuple(card["network"]["channels"]), card["network"]["dropout"], FIT)
    parts = [views_of(own)] + ([old_views] if old_views else [])
    views, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return train_cells(views, labels, np.arange(len(labels)), recipe, seed, title, start=network)


def calibration(parts: Sequence[CellSet]) -> Pixels:
    """Return some of the cells that trained a network, to set the ranges of its 8 bits."""
    random, inputs = np.random.default_rng(0), []
    for part in parts:
        some = random.permutation(len(part.labels))[: CALIBRATION // len(parts)]
        inputs.append(windows(part.patches[some]))
    return np.concatenate(inputs)


def measure(network: Network, cells: CellSet) -> dict[str, Any]:
    """Summarize a network's answers to cells of the classes."""
    known = cells.take(cells.labels < OTHER)
    predicted = predict_cells(network, known)[0][:, :OTHER].argmax(1)
    return summarize(confusion_by_photograph(known.labels, predicted, known.groups.tolist()))


def _point(network: CellNet, cells: CellSet, count: int) -> dict[str, Any]:
    value = recall(cells.labels, predict_cells(as_served(network), cells)[0][:, :OTHER])
    return {"cells_a_class": count, "macro_recall": round(value, 4)}


def _samples(cells: CellSet) -> list[Sample]:
    pairs = zip(cells.labels.tolist(), cells.groups.tolist(), strict=True)
    return [Sample(Path(), label, "", group) for label, group in pairs]


def _out_of_fold(cells: CellSet, logits: np.ndarray) -> OutOfFold:
    count, kinds = len(cells.labels), cells.labels.astype(str)
    folds, found = np.zeros(count, int), np.ones(count, bool)
    rows = cells.groups, cells.laboratories, kinds, cells.labels, cells.groups, folds, found
    return OutOfFold(*rows, logits, first=found)

"""Adapt a version to a laboratory's own cells, and measure how many cells this needs.

A quarter of the laboratory's groups (training/laboratories.py) is held out. The network of an older
version is trained further on the other groups, and on the cells of its first training if they are
available, so that it does not forget them. The locator does not change.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from training import data, version_files
from training.calibrate import choose
from training.cell_set import CellSet, Choose, collect, middle, surest
from training.cells import predict_cells, train_cells, train_network
from training.data import OTHER, DataError, Sample
from training.export import Served
from training.laboratories import pbc, read_folder, require
from training.metrics import confusion_by_photograph, summarize
from training.networks import CellNet, Locator, load_networks
from training.out_of_fold import OutOfFold
from training.predict import write_golden
from training.protocol import CLASSES, HELD_OUT, INNER_FOLDS
from training.recipes import RECIPES, CellRecipe
from training.version_files import Card, Trained

STEPS = 400
LEARNING_RATE = 1e-3
CURVE = (0, 10, 30, 100, 300)


def adapt(base: str, folder: Path, version: str) -> None:
    """Adapt a version to the labelled cells of a laboratory."""
    if not re.fullmatch(r"\d+\.\d+", version):
        raise DataError(f"VERSION={version} is not a version: it should look like 3.0.")
    if version == base or version in RECIPES:
        raise DataError(f"{version} exists already: choose another VERSION.")
    card, locator, network = load_base(base)
    samples = read_folder(folder)
    require([sample.label for sample in samples])
    cells = collect(samples, "own", locator, middle)
    require(cells.labels.tolist())
    if lacking := len(samples) - len(cells.labels):
        print(f"{lacking} of {len(samples)} images show no white cell and are not used")
    train, held_out = split(cells)
    old = old_cells(locator)
    logits = np.zeros((len(train.labels), len(CLASSES) + 1), np.float32)
    for fold, (rest, unseen) in enumerate(data.grouped_folds(_samples(train), INNER_FOLDS, 0)):
        judge, _ = train_on(network, train.take(rest), old, card, fold, f"fold {fold}")
        logits[unseen] = predict_cells(judge, list(train.take(unseen).cutouts)).numpy()
    trained, rows = train_on(network, train, old, card, INNER_FOLDS, "all")
    chosen = choose(_out_of_fold(train, logits))
    chosen["thresholds"]["stain"] = card["thresholds"]["stain"]
    kept = {name: card[name] for name in ("input", "finds_cells", "network")}
    networks: dict[str, Served] = {"locator": locator, "network": trained}
    history = {"adapted_from": base, "rows": rows}
    version_files.write(
        version, Trained(networks, {**kept, **chosen, "adapted_from": base}, history)
    )
    metrics = {
        name: {"before": measure(network, part), "after": measure(trained, part)}
        for name, part in (("own_cells", held_out), ("old_cells", old))
        if part is not None
    }
    here = version_files.folder(version)
    version_files.write_json(
        here / "metrics.json", {"version": version, "adapted_from": base, **metrics}
    )
    shutil.copy(version_files.folder(base) / "model-config.yaml", here)
    write_golden(version)
    for name, part in metrics.items():
        recalls = " to ".join(f"{each['macro_recall']['value']:.1%}" for each in part.values())
        print(f"macro recall on {name.replace('_', ' ')}: {recalls}")
    print(f"`make deploy VERSION={version}` serves it beside the other versions")


def draw_curve(version: str) -> None:
    """Measure how many cells a laboratory must label: adaptation.json.

    A network that never saw PBC trains further on 0 to 300 of its cells of each class.
    """
    card, locator, _network = load_base(version)
    recipe = RECIPES.get(version)
    if not isinstance(recipe, CellRecipe):
        raise DataError(f"{version} was adapted: the curve needs a version with a recipe.")
    photographs = data.photographs(data.data_root(), "TRAIN", "TEST")
    checkpoint = version_files.scratch(version) / "pbc-from-photographs.pt"
    network, _ = train_network(locator, photographs, [], recipe, 0, checkpoint)
    old = collect(photographs, "photographs", locator, surest)
    known, unseen = (collect(pbc(part), "pbc", locator, middle) for part in ("train", "test"))
    points = []
    for count in CURVE:
        trained = network
        if count:
            trained, _ = train_on(network, some(known, count), old, card, 0, f"{count} a class")
        recalls = {
            name: measure(trained, part)["macro_recall"]
            for name, part in (("own", unseen), ("old", old))
        }
        points.append({"cells_a_class": count, **recalls})
    path = version_files.folder(version) / "adaptation.json"
    version_files.write_json(path, {"steps": STEPS, "points": points})
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


def split(cells: CellSet) -> tuple[CellSet, CellSet]:
    """Split into training and held-out cells by group; raise DataError if groups are few."""
    for label, name in enumerate(CLASSES):
        if (count := len(set(cells.groups[cells.labels == label]))) < HELD_OUT:
            raise DataError(f"{name} has {count} groups; each class needs at least {HELD_OUT}.")
    train, held_out = data.grouped_folds(_samples(cells), HELD_OUT, 0)[0]
    return cells.take(train), cells.take(held_out)


def old_cells(locator: Locator) -> CellSet | None:
    """Return the available cells that older versions were trained on, or None."""
    sources: tuple[tuple[str, Callable[[], list[Sample]], Choose], ...] = (
        ("photographs", lambda: data.photographs(data.data_root(), "TRAIN"), surest),
        ("pbc", lambda: pbc("train"), middle),
    )
    parts = []
    for name, read, by in sources:
        try:
            parts.append(collect(read(), name, locator, by))
        except DataError as error:
            print(f"the old cells of {name} are not used: {error}")
    return CellSet.join(parts) if parts else None


def train_on(
    network: CellNet, own: CellSet, old: CellSet | None, card: Card, seed: int, title: str
) -> tuple[CellNet, list[dict[str, float]]]:
    """Train a copy of a network on a laboratory's cells and the old ones."""
    channels, dropout = tuple(card["network"]["channels"]), card["network"]["dropout"]
    recipe = CellRecipe(channels, dropout, steps=STEPS, learning_rate=LEARNING_RATE)
    cells = CellSet.join([own, old]) if old is not None else own
    return train_cells(cells, recipe, seed, title, start=network)


def some(cells: CellSet, count: int) -> CellSet:
    """Return `count` random cells of each class."""
    order = np.random.default_rng(0).permutation(len(cells.labels))
    chosen = [order[cells.labels[order] == label][:count] for label in range(len(CLASSES))]
    return cells.take(np.concatenate(chosen))


def measure(network: CellNet, cells: CellSet) -> dict[str, Any]:
    """Summarize a network's answers to cells of the classes."""
    known = cells.take(cells.labels < OTHER)
    predicted = predict_cells(network, list(known.cutouts))[:, :OTHER].argmax(1).numpy()
    return summarize(confusion_by_photograph(known.labels, predicted, known.groups.tolist()))


def _samples(cells: CellSet) -> list[Sample]:
    pairs = zip(cells.labels.tolist(), cells.groups.tolist(), strict=True)
    return [Sample(Path(), label, "", group) for label, group in pairs]


def _out_of_fold(cells: CellSet, logits: np.ndarray) -> OutOfFold:
    count, kinds = len(cells.labels), cells.labels.astype(str)
    folds, found = np.zeros(count, int), np.ones(count, bool)
    rows = cells.groups, cells.laboratories, kinds, cells.labels, cells.groups, folds, found
    return OutOfFold(*rows, logits)

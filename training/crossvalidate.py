"""Cross-validate a version: out_of_fold.npz, and locator.json where it finds cells.

Five folds over all photographs (and PBC's training images), grouped: each image is predicted by
networks that saw neither its photograph nor one that overlaps it. A version that knows a second
laboratory is also trained on each laboratory alone and tested on the other.

An interrupted run continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from handler import gate
from handler.locator import locate
from handler.pipelines import CellByCell
from handler.preprocessing import decode
from handler.verdict import Prediction, probabilities
from training import data, version_files
from training.cell_set import halved, read_field
from training.cells import train_both, train_network, train_shipped
from training.export import in_torch
from training.fields import Batch, cross_predict
from training.gate import Gate
from training.laboratories import pbc
from training.locate import measure_locator
from training.networks import CellNet, Locator
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES, FOLDS
from training.recipes import RECIPES, CellRecipe, FieldRecipe

BATCH = 16


def cross_validate(version: str) -> None:
    """Predict each image by networks that never saw it: out_of_fold.npz."""
    root, folder = data.data_root(), version_files.folder(version)
    folder.mkdir(parents=True, exist_ok=True)
    scratch, recipe = version_files.scratch(version), RECIPES[version]
    if isinstance(recipe, FieldRecipe):
        predicted = _by_field(root, recipe, scratch)
    else:
        predicted = _by_cell(root, recipe, scratch, folder)
    predicted.save(folder / "out_of_fold.npz")
    print(f"wrote {folder / 'out_of_fold.npz'}")


def _by_field(root: Path, recipe: FieldRecipe, scratch: Path) -> OutOfFold:
    images = [*data.list_images(root, "TRAIN"), *data.list_images(root, "TEST")]
    samples = [each.sample for each in images]
    everything = Batch.of(*data.load(images, "TRAIN and TEST"))
    folds = data.grouped_folds(images, FOLDS, 0)
    numbers = np.zeros(len(images), int)
    for fold, (_train, held_out) in enumerate(folds):
        numbers[held_out] = fold
    logits, _network = cross_predict(recipe, everything, folds, scratch, "")
    return _predictions(samples, "photographs", numbers, np.ones(len(images), bool), logits)


def _by_cell(root: Path, recipe: CellRecipe, scratch: Path, folder: Path) -> OutOfFold:
    photographs, second = data.photographs(root, "TRAIN", "TEST"), pbc("train")
    located = data.located_photographs(root)
    images = [*data.list_images(root, "TRAIN"), *data.list_images(root, "TEST")]
    parts, found, drawn = [], [], []
    splits = (data.grouped_folds(samples, FOLDS, 0) for samples in (photographs, second))
    for fold, ((_, held_photographs), (_, held_cells)) in enumerate(zip(*splits, strict=True)):
        kept_out = {photographs[index].group for index in held_photographs}
        cells_out = {second[index].path for index in held_cells}
        locator, network, _history = train_both(
            [each for each in located if each[2] not in kept_out],
            [each for each in photographs if each.group not in kept_out],
            [each for each in second if each.path not in cells_out],
            recipe,
            fold,
            scratch / f"fold-{fold}.pt",
        )
        hidden = [each for each in located if each[2] in kept_out]
        found += locate(in_torch(locator), [read_field(path) for path, *_ in hidden])
        drawn += [[halved(box) for box in boxes] for *_, boxes in hidden]
        samples = [each.sample for each in images if each.group in kept_out]
        parts += [
            predict(locator, network, samples, "photographs", fold),
            predict(locator, network, [second[index] for index in held_cells], "pbc", fold),
        ]
    version_files.write_json(folder / "locator.json", measure_locator(found, drawn))
    # The network learns from one laboratory alone. The locator can't: only photographs have boxes.
    locator, _network, _history = train_shipped(root, recipe, scratch)
    for known, cells, unseen, name in (
        (photographs, [], pbc(), "pbc from photographs"),
        ([], second, photographs, "photographs from pbc"),
    ):
        checkpoint = scratch / f"{name.replace(' ', '-')}.pt"
        network, _history = train_network(locator, known, cells, recipe, 0, checkpoint)
        parts.append(predict(locator, network, unseen, name, -1))
    return OutOfFold.join(parts)


def predict(
    locator: Locator, network: CellNet, samples: Sequence[data.Sample], laboratory: str, fold: int
) -> OutOfFold:
    """Predict images as the service does."""
    networks = in_torch(Gate(gate.SIZE)), in_torch(locator), in_torch(network)
    version = CellByCell(*networks, BATCH, len(CLASSES))
    predictions: list[Prediction] = []
    title = f"predicting {laboratory}"
    for start in tqdm(range(0, len(samples), BATCH), desc=title, mininterval=1):
        part = samples[start : start + BATCH]
        pictures = [decode(sample.path.read_bytes(), version.fit) for sample in part]
        predictions += version.predict(pictures)
    nothing = [0.0] * (len(CLASSES) + 1)
    best = [
        max((cell.logits for cell in each.cells), key=_certainty, default=nothing)
        for each in predictions
    ]
    found = np.array([bool(each.cells) for each in predictions])
    folds = np.full(len(samples), fold)
    return _predictions(samples, laboratory, folds, found, np.array(best, np.float32))


def _predictions(
    samples: Sequence[data.Sample],
    laboratory: str,
    folds: np.ndarray,
    found: np.ndarray,
    logits: np.ndarray,
) -> OutOfFold:
    return OutOfFold(
        np.array([sample.path.name for sample in samples]),
        np.full(len(samples), laboratory),
        np.array([sample.kind for sample in samples]),
        np.array([sample.label for sample in samples]),
        np.array([sample.group for sample in samples]),
        folds,
        found,
        logits,
    )


def _certainty(logits: Sequence[float]) -> float:
    return max(probabilities(logits[: len(CLASSES)], 1.0))

"""Cross-validate a version: out_of_fold.npz, and the FIGURES of one that finds cells.

Five folds over all photographs, grouped: each image is predicted by networks that saw neither its
photograph nor one that overlaps it. A version that finds cells is also measured on each laboratory
by networks that never saw any of its images.

An interrupted run continues.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from handler.engine import Network
from handler.locator import locate
from handler.pipelines import CellByCell
from handler.preprocessing import HEIGHT, WIDTH, Size, decode
from handler.verdict import Cell, Prediction
from training import data, version_files, workers
from training.cropped import measure_cropped
from training.data import Sample
from training.export import as_served
from training.fields import Batch, cross_predict
from training.laboratories import PHOTOGRAPHS, laboratories
from training.locate import (
    FRAMES,
    RIGHT_OVERLAP,
    frames,
    measure_locator,
    overlap,
    whole_sources,
)
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES, FOLDS
from training.recipes import RECIPES, FieldRecipe
from training.runs import SHIPPED, Run, select
from training.train import calibration, locator_of, network_of, train_runs

BATCH = 16
# The folder in .train/ that holds the embeddings of each laboratory left out.
EMBEDDINGS = "embeddings"
# The files beside out_of_fold.npz that describe laboratories left out.
FIGURES = ("locator", "cropped")


def cross_validate(version: str, runs: Sequence[str] = ()) -> None:
    """Predict each image by networks that never saw it: out_of_fold.npz.

    With --runs, the predictions of the other runs stay.
    """
    root, folder = data.data_root(), version_files.folder(version)
    folder.mkdir(parents=True, exist_ok=True)
    scratch, recipe = version_files.scratch(version), RECIPES[version]
    if isinstance(recipe, FieldRecipe):
        predicted = _by_field(root, recipe, scratch)
    else:
        predicted = _by_cell(version, folder, scratch, runs)
    path = folder / "out_of_fold.npz"
    if runs and path.exists():
        predicted = OutOfFold.of(version).updated(predicted)
    predicted.save(path)
    print(f"wrote {path}")


def _by_field(root: Path, recipe: FieldRecipe, scratch: Path) -> OutOfFold:
    images = [*data.list_images(root, "TRAIN"), *data.list_images(root, "TEST")]
    samples = [each.sample for each in images]
    everything = Batch.of(*data.load(images, "TRAIN and TEST"))
    folds = data.grouped_folds(images, FOLDS, 0)
    numbers = np.zeros(len(images), int)
    for fold, (_train, held_out) in enumerate(folds):
        numbers[held_out] = fold
    logits, _network = cross_predict(recipe, everything, folds, scratch, "")
    ones = np.ones(len(images), bool)
    return OutOfFold.of_samples(samples, PHOTOGRAPHS, numbers, ones, logits, ones)


def _by_cell(version: str, folder: Path, scratch: Path, names: Sequence[str]) -> OutOfFold:
    runs = [run for run in select(names) if run != SHIPPED]
    train_runs(version, runs)
    done = dict(workers.each(_measure, [(version, run) for run in runs], "predicting"))
    (scratch / EMBEDDINGS).mkdir(exist_ok=True)
    for (_version, run), (_rows, embeddings, _figures) in done.items():
        if run.laboratory:
            np.save(scratch / EMBEDDINGS / f"{run.laboratory}.npy", embeddings)
    for name in FIGURES:
        path = folder / f"{name}.json"
        kept = json.loads(path.read_text())["laboratories"] if names and path.exists() else {}
        new = {run.laboratory: done[version, run][2].get(name) for run in runs}
        measured = {laboratory: figures for laboratory, figures in new.items() if figures}
        version_files.write_json(path, {"laboratories": kept | measured})
    return OutOfFold.join([done[version, run][0] for run in runs])


def _measure(work: tuple[str, Run]) -> tuple[OutOfFold, np.ndarray, dict[str, Any]]:
    """Predict what a run never saw; also return the embeddings, and the FIGURES of a laboratory."""
    version, run = work
    inputs = calibration(version, run)
    locator = as_served(locator_of(version, run)[0], inputs.get("locator"))
    network = as_served(network_of(version, run)[0], inputs.get("network"))
    if run.laboratory is None:
        fold = run.fold if run.fold is not None else -1
        return *predict(locator, network, _images(fold), PHOTOGRAPHS, fold), {}
    samples = laboratories()[run.laboratory].samples()
    rows, embeddings = predict(locator, network, samples, run.laboratory, -1)
    pipeline = CellByCell(locator, network, BATCH, len(CLASSES))
    figures = {
        "locator": _measure_locator(locator, run.laboratory),
        "cropped": measure_cropped(pipeline, locator, samples),
    }
    return rows, embeddings, figures


def _images(fold: int) -> list[Sample]:
    """List the augmented images of a fold's photographs."""
    root = data.data_root()
    photographs = data.photographs(root, "TRAIN", "TEST")
    _train, held_out = data.grouped_folds(photographs, FOLDS, 0)[fold]
    groups = {photographs[index].group for index in held_out}
    images = [*data.list_images(root, "TRAIN"), *data.list_images(root, "TEST")]
    return [image.sample for image in images if image.group in groups]


def _measure_locator(locator: Network, laboratory: str) -> dict[str, object] | None:
    """Measure a locator where all white cells have boxes: as they are, and smaller, in mosaics."""
    own = [each for each in whole_sources() if each.laboratory == laboratory]
    made = [frame for grid in FRAMES for frame in frames(own, grid)]
    if not made:
        return None
    found = [locate(locator, [pixels])[0] for pixels, _ in made]
    drawn, widths = [boxes for _, boxes in made], [pixels.shape[1] for pixels, _ in made]
    return measure_locator(found, drawn, widths)


def predict(
    locator: Network, network: Network, samples: Sequence[Sample], laboratory: str, fold: int
) -> tuple[OutOfFold, np.ndarray]:
    """Predict the labelled cells of images as the service does; also return their embeddings."""
    version = CellByCell(locator, network, BATCH, len(CLASSES))
    width = network(np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)).shape[1] - len(CLASSES) - 1
    paths = list(dict.fromkeys(sample.path for sample in samples))
    predictions: dict[Path, tuple[Size, Prediction]] = {}
    title = f"predicting {laboratory}"
    for start in tqdm(range(0, len(paths), BATCH), desc=title, mininterval=1):
        part = paths[start : start + BATCH]
        pictures = [decode(path.read_bytes(), version.fit) for path in part]
        sizes = [(picture.width, picture.height) for picture in pictures]
        made = zip(sizes, version.predict(pictures), strict=True)
        predictions |= dict(zip(part, made, strict=True))
    nothing = Cell([0.0] * (len(CLASSES) + 1), None, np.zeros(width, np.float32))
    rows = [
        (sample, cell, at == 0)
        for sample in samples
        for at, cell in enumerate(candidates(sample, *predictions[sample.path]) or [nothing])
    ]
    found = np.array([cell is not nothing for _, cell, _ in rows])
    folds = np.full(len(rows), fold)
    logits = np.array([cell.logits for _, cell, _ in rows], np.float32)
    embeddings = np.array([cell.embedding for _, cell, _ in rows], np.float32)
    first = np.array([is_first for *_, is_first in rows])
    shown = [sample for sample, *_ in rows]
    return OutOfFold.of_samples(shown, laboratory, folds, found, logits, first), embeddings


def candidates(sample: Sample, size: Size, prediction: Prediction) -> Sequence[Cell]:
    """Return the located cells that a label may be about.

    The one that overlaps the drawn box by half; without a box, all cells of the image.
    """
    cells = prediction.cells
    if sample.box:
        (width, height), (left, top, right, bottom) = size, sample.box
        drawn = left * width, top * height, right * width, bottom * height
        matching = [(overlap(cell.box, drawn), cell) for cell in cells if cell.box]
        overlapping, best = max(matching, key=lambda match: match[0], default=(0, None))
        return [best] if best and overlapping >= RIGHT_OVERLAP else []
    return cells

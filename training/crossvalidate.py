"""Cross-validate a version: `python -m training.crossvalidate --version 2.0`.

Five folds over all 348 photographs (and PBC's images that may train), grouped: every image is
judged by networks that saw neither its photograph nor one that overlaps it; for 2.0 its locator
neither. A version that knows a second laboratory is also trained on each alone and judged on the
other, from which no image was seen.

Writes out_of_fold.npz to models/<version>/: what each image is, and the logits it got; for 2.0 also
locator.json, how well the cells' boxes were found. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from handler import gate
from handler.locator import locate
from handler.networks import CellNet, Locator
from handler.pipelines import CellByCell
from handler.preprocessing import decode
from handler.verdict import CLASSES, Prediction, probabilities
from training import data, version_files
from training.cells import (
    CellRecipe,
    halved,
    read_field,
    train_both,
    train_network,
    train_shipped,
)
from training.export import in_torch
from training.fields import Batch, FieldRecipe, Run, predict
from training.gate import Gate
from training.laboratories import pbc
from training.locate import measure_locator
from training.train import RECIPES, keep_memory

FOLDS = 5


@dataclass
class Judged:
    """N images and what networks that never saw them say: the logits of the most certain cell.

    `found` is false where no cell was found; the logits are then zeros. `fold` tells who judged:
    the number of the fold, or -1 for networks of the other laboratory alone.
    """

    names: np.ndarray
    laboratories: np.ndarray
    kinds: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    found: np.ndarray
    logits: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """Return the likeliest of the four classes."""
        classes: np.ndarray = self.logits[:, : len(CLASSES)].argmax(1)
        return classes

    def take(self, where: np.ndarray) -> Judged:
        return Judged(*(getattr(self, field.name)[where] for field in fields(self)))

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Judged:
        with np.load(path) as file:
            return cls(**{field.name: file[field.name] for field in fields(cls)})


def join(parts: Sequence[Judged]) -> Judged:
    """Return the images of all parts."""
    return Judged(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Judged))
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Cross-validate one version; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.crossvalidate")
    parser.add_argument("--version", required=True)
    version = parser.parse_args(arguments).version
    try:
        keep_memory()
        cross_validate(version)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def cross_validate(version: str) -> None:
    """Write a version's out_of_fold.npz."""
    root, folder = data.data_root(), version_files.folder(version)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = version_files.SCRATCH / version
    recipe = RECIPES[version]
    if isinstance(recipe, CellRecipe):
        judged = _by_cell(root, recipe, scratch, folder)
    else:
        judged = _by_field(root, recipe, scratch)
    judged.save(folder / "out_of_fold.npz")
    print(f"wrote {folder / 'out_of_fold.npz'}")


def _by_field(root: Path, recipe: FieldRecipe, scratch: Path) -> Judged:
    images = [*data.list_images(root, "TRAIN"), *data.list_images(root, "TEST")]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    everything = Batch.of(*data.load(images, "TRAIN and TEST"), device)
    folds = np.zeros(len(images), int)
    logits = torch.zeros(len(images), len(CLASSES))
    for fold, (train, held_out) in enumerate(data.grouped_folds(images, FOLDS, 0)):
        run = Run(recipe, everything.take(train), None, fold, scratch / f"fold-{fold}.pt")
        network = run.fit(f"fold {fold}")
        logits[torch.from_numpy(held_out)] = predict(network, everything.take(held_out).images)
        folds[held_out] = fold
    return Judged(
        np.array([image.path.name for image in images]),
        np.full(len(images), "photographs"),
        np.array([CLASSES[image.label] for image in images]),
        np.array([image.label for image in images]),
        np.array([image.photograph for image in images]),
        folds,
        np.ones(len(images), bool),
        logits.numpy(),
    )


def _by_cell(root: Path, recipe: CellRecipe, scratch: Path, folder: Path) -> Judged:
    photographs = data.photographs(root, "TRAIN", "TEST")
    second = pbc("train")
    folds = zip(
        data.grouped_folds(photographs, FOLDS, 0),
        data.grouped_folds(second, FOLDS, 0),
        strict=True,
    )
    parts, found, drawn = [], [], []
    for fold, ((_, held_photographs), (_, held_cells)) in enumerate(folds):
        kept_out = {photographs[index].group for index in held_photographs}
        cells_out = {second[index].path for index in held_cells}
        locator, network, _history = train_both(
            [each for each in data.located_photographs(root) if each[2] not in kept_out],
            [each for each in photographs if each.group not in kept_out],
            [each for each in second if each.path not in cells_out],
            recipe,
            fold,
            scratch / f"fold-{fold}.pt",
        )
        hidden = [each for each in data.located_photographs(root) if each[2] in kept_out]
        found += locate(in_torch(locator), [read_field(path) for path, *_ in hidden])
        drawn += [[halved(box) for box in boxes] for *_, boxes in hidden]
        images = [
            data.Sample(image.path, image.label, CLASSES[image.label], image.photograph)
            for split in ("TRAIN", "TEST")
            for image in data.list_images(root, split)
            if image.group in kept_out
        ]
        parts += [
            judge(locator, network, images, "photographs", fold),
            judge(locator, network, [second[index] for index in held_cells], "pbc", fold),
        ]
    version_files.write_json(folder / "locator.json", measure_locator(found, drawn))
    # One laboratory alone teaches the network; boxes, which only the photographs have, the locator.
    locator, _network, _history = train_shipped(root, recipe, scratch)
    for known, cells, unseen, name in (
        (photographs, [], pbc(), "pbc from photographs"),
        ([], second, photographs, "photographs from pbc"),
    ):
        checkpoint = scratch / f"{name.replace(' ', '-')}.pt"
        network, _history = train_network(locator, known, cells, recipe, 0, checkpoint)
        parts.append(judge(locator, network, unseen, name, -1))
    return join(parts)


def judge(
    locator: Locator,
    network: CellNet,
    samples: Sequence[data.Sample],
    laboratory: str,
    fold: int,
) -> Judged:
    """Ask networks of images, as the service would."""
    look = in_torch(Gate(gate.SIZE))
    version = CellByCell(look, in_torch(locator), in_torch(network), lambda: network, 16)
    predictions: list[Prediction] = []
    for start in tqdm(range(0, len(samples), 16), desc=f"judging {laboratory}", mininterval=1):
        part = samples[start : start + 16]
        pictures = [decode(sample.path.read_bytes(), version.fit) for sample in part]
        predictions += version.predict(pictures)
    nothing = [0.0] * (len(CLASSES) + 1)
    best = [
        max((cell.logits for cell in each.cells), key=_certainty, default=nothing)
        for each in predictions
    ]
    return Judged(
        np.array([sample.path.name for sample in samples]),
        np.full(len(samples), laboratory),
        np.array([sample.kind for sample in samples]),
        np.array([sample.label for sample in samples]),
        np.array([sample.group for sample in samples]),
        np.full(len(samples), fold),
        np.array([bool(each.cells) for each in predictions]),
        np.array(best, np.float32),
    )


def _certainty(logits: Sequence[float]) -> float:
    return max(probabilities(logits[: len(CLASSES)], 1.0))


if __name__ == "__main__":
    sys.exit(main())

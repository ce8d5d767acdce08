"""Measure a version: `python -m training.evaluate --version 2.0`.

On TEST, by cross-validation, on other laboratories' cells, on what is no cell at all; how far its
probabilities can be trusted, what throws it off, and which labels look wrong. Changes no weights
and chooses nothing.

Writes metrics.json to models/<version>/, the known answers of the drawn samples to golden.json, and
the accuracy to card.json, which goes into the archive. training.report makes plots and prose of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from PIL import Image, ImageOps
from sklearn.metrics import roc_auc_score, roc_curve
from tqdm import tqdm

from handler.pipelines import Pipeline, load
from handler.preprocessing import DecodedImage, Pixels, decode
from handler.verdict import (
    CLASSES,
    Answer,
    Cell,
    Prediction,
    answer,
    other_probability,
    probabilities,
)
from serving.deployment.known_answers import SAMPLES
from serving.settings import MODEL
from training import data, report, version_files
from training.calibrate import calibration, for_choosing
from training.crossvalidate import Judged
from training.data import OTHER, Sample
from training.laboratories import pbc
from training.metrics import confusion_by_photograph, summarize
from training.outliers import far_images
from training.robustness import CHANGES, light_of

BATCH = 16
# Others were looked at while the gate was made.
FAR_SEED = 1
# What the seed's README says of its own network: an accuracy, and a table per class. The mean
# recall of that table is .805, and TEST is balanced, so the two are not of one run.
SEED_PROJECT: dict[str, Any] = {
    "source": "github.com/HeitorCoimbra/blood-cells-cnn, README",
    "image_accuracy": 0.832,
    "image_accuracy_by_its_table": 0.805,
    "classes": {
        "EOSINOPHIL": {"precision": 0.72, "recall": 0.74, "f1": 0.73},
        "LYMPHOCYTE": {"precision": 0.97, "recall": 0.95, "f1": 0.96},
        "MONOCYTE": {"precision": 0.96, "recall": 0.76, "f1": 0.85},
        "NEUTROPHIL": {"precision": 0.64, "recall": 0.77, "f1": 0.70},
    },
}


@dataclass
class Asked:
    """What a version says of N pictures, as its service would, and what it saw in them."""

    card: dict[str, Any]
    predictions: list[Prediction]
    answers: list[Answer]

    @property
    def predicted(self) -> np.ndarray:
        """Return the most probable class of each, also where the answer is `rejected`."""
        shares = [[each["probabilities"][name] for name in CLASSES] for each in self.answers]
        classes: np.ndarray = np.array(shares).argmax(1)
        return classes

    @property
    def verdicts(self) -> np.ndarray:
        return np.array([each["verdict"] for each in self.answers])

    @property
    def strangeness(self) -> np.ndarray:
        """Return how little each looks like one of the four: what the verdict goes by.

        From 0 to 1 by the network (how likely it is none of the four, or, of a network that does
        not tell, how unlikely its answer); 2 where no cell is found, and above where no stain is.
        """
        return np.array([self._strange(each) for each in self.predictions])

    def _strange(self, prediction: Prediction) -> float:
        missing: float = self.card["thresholds"]["stain"] - prediction.stain
        if missing > 0:
            return 2 + missing
        if not prediction.cells:
            return 2.0
        return min(map(self._foreign, prediction.cells))

    def _foreign(self, cell: Cell) -> float:
        temperature: float = self.card["temperature"]
        if len(cell.logits) > len(CLASSES):
            return other_probability(cell.logits, temperature)
        return 1 - max(probabilities(cell.logits, temperature))


def ask(
    version: Pipeline, card: dict[str, Any], pictures: Iterable[DecodedImage], what: str
) -> Asked:
    """Ask a version of pictures, in batches."""
    predictions: list[Prediction] = []
    batch: list[DecodedImage] = []
    for picture in tqdm(pictures, desc=f"asking of {what}", unit="image", mininterval=1):
        batch.append(picture)
        if len(batch) == BATCH:
            predictions += version.predict(batch)
            batch = []
    predictions += version.predict(batch) if batch else []
    return Asked(card, predictions, [answer(MODEL, card, each) for each in predictions])


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate one version; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate")
    parser.add_argument("--version", required=True)
    name = parser.parse_args(arguments).version
    folder = version_files.folder(name)
    try:
        root = data.data_root()
        second = pbc("test")
        card = json.loads((folder / "card.json").read_text())
        version = load(folder, card, BATCH)
        judged = Judged.load(folder / "out_of_fold.npz")
        card["temperature"]
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, RuntimeError, KeyError) as error:
        print(f"error: {error}\nRun `make train VERSION={name}` first.", file=sys.stderr)
        return 1
    metrics = {
        "version": name,
        "temperature": card["temperature"],
        "thresholds": card["thresholds"],
        **on_test(version, card, root),
        **on_photographs(judged, root, card),
        **on_laboratories(version, card, judged, second),
        **on_other_images(version, card, root, second),
        "robustness": on_changes(version, card, root, second),
        "seed_project": SEED_PROJECT,
    }
    if (folder / "locator.json").exists():
        metrics["locator"] = json.loads((folder / "locator.json").read_text())
    card["test_accuracy"] = metrics["test"]["image_accuracy"]
    version_files.write_json(folder / "metrics.json", metrics)
    version_files.write_json(folder / "card.json", card)
    example = write_golden(name)
    report.write(name, example)
    return 0


def on_test(version: Pipeline, card: dict[str, Any], root: Path) -> dict[str, Any]:
    """Measure on TEST, and without what TRAIN shows, too."""
    images, train = (data.list_images(root, split) for split in ("TEST", "TRAIN"))
    asked = ask(version, card, _decoded(version, [image.path for image in images]), "TEST")
    labels = np.array([image.label for image in images])
    photographs = np.array([image.photograph for image in images])
    fields = data.fields_also_in_train(images, train)

    def of(keep: np.ndarray) -> dict[str, Any]:
        return _summary(labels[keep], asked.predicted[keep], photographs[keep])

    return {
        "test": of(np.full(len(images), True)),
        "test_without_cells_also_in_train": of(
            ~np.isin(photographs, sorted(data.CELLS_ALSO_IN_TRAIN))
        ),
        "test_without_fields_also_in_train": of(~np.isin(photographs, sorted(fields))),
        "test_where_confident": of(asked.verdicts == "confident"),
        "test_verdicts": _shares(asked.verdicts),
        "test_photographs": _by_majority(labels, asked.predicted, photographs),
    }


def on_photographs(judged: Judged, root: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Measure by cross-validation over all photographs, and how calibrated that is."""
    own = judged.take(judged.laboratories == "photographs")
    choosing = for_choosing(judged, root)
    choosing = choosing.take(choosing.labels < OTHER)
    before, after = (
        torch.from_numpy(choosing.logits[:, :OTHER] / by).double().softmax(1)
        for by in (1.0, card["temperature"])
    )
    labels = torch.from_numpy(choosing.labels)
    return {
        "cross_validation": {
            **_summary(own.labels, own.predicted, own.groups),
            "photographs_right": _by_majority(own.labels, own.predicted, own.groups),
            "cells_not_found": int((~own.found).sum()),
        },
        "calibration": {
            "images": len(labels),
            "before": calibration(before, labels),
            "after": calibration(after, labels),
        },
        "label_doubts": label_doubts(own, card["temperature"]),
    }


def label_doubts(own: Judged, temperature: float) -> list[dict[str, Any]]:
    """List photographs whose label their out-of-fold probabilities contradict (cleanlab)."""
    names = np.unique(own.groups)
    shares = torch.from_numpy(own.logits[:, :OTHER] / temperature).softmax(1).numpy()
    mean = np.stack([shares[own.groups == name].mean(0) for name in names])
    labels = np.array([own.labels[own.groups == name][0] for name in names])
    doubtful = find_label_issues(labels, mean, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [
        {
            "photograph": str(names[index]),
            "label": CLASSES[labels[index]],
            "looks_like": CLASSES[mean[index].argmax()],
            "probability_of_label": round(float(mean[index, labels[index]]), 4),
        }
        for index in doubtful
    ]


def on_laboratories(
    version: Pipeline, card: dict[str, Any], judged: Judged, second: Sequence[Sample]
) -> dict[str, Any]:
    """Measure on PBC's cells that no training saw, and what one laboratory teaches of another."""
    four = [sample for sample in second if sample.label < OTHER]
    labels = np.array([sample.label for sample in four])
    names = np.array([sample.path.name for sample in four])
    result: dict[str, Any] = {"split": "training/pbc.csv"}
    for how, change in (("as_uploaded", None), ("scale_matched", to_proportions)):
        pictures = _decoded(version, [sample.path for sample in four], change)
        asked = ask(version, card, pictures, f"PBC {how.replace('_', ' ')}")
        result[how] = {
            **_summary(labels, asked.predicted, names),
            "verdicts": _shares(asked.verdicts),
        }
    alone = {}
    for name in ("pbc from photographs", "photographs from pbc"):
        part = judged.take((judged.laboratories == name) & (judged.labels < OTHER))
        if len(part.labels):
            alone[name] = _summary(part.labels, part.predicted, part.groups)
    return {"pbc": result, "one_laboratory_from_the_other": alone}


def on_other_images(
    version: Pipeline, card: dict[str, Any], root: Path, second: Sequence[Sample]
) -> dict[str, Any]:
    """Measure how well cells of the four classes are told from other cells, and from no cells.

    The cells are TEST's photographs and PBC's of the four classes; near are PBC's other cells, far
    is what is no smear at all (training/outliers.py).
    """
    photographs = data.photographs(root, "TEST")
    near = [sample for sample in second if sample.label == OTHER]
    four = [sample for sample in second if sample.label < OTHER]
    cells = ask(
        version,
        card,
        _decoded(version, [each.path for each in (*photographs, *four)]),
        "cells of the four classes",
    )
    others = ask(version, card, _decoded(version, [each.path for each in near]), "other cells")
    kinds = np.array([sample.kind for sample in near])
    result = {
        "near": {
            **separation(cells.strangeness, others.strangeness),
            "verdicts": _shares(others.verdicts),
            "kinds": {
                str(kind): {
                    **separation(cells.strangeness, others.strangeness[kinds == kind]),
                    "verdicts": _shares(others.verdicts[kinds == kind]),
                }
                for kind in np.unique(kinds)
            },
        },
        "verdicts_of_cells": _shares(cells.verdicts),
    }
    strange, verdicts, far = [], [], {}
    for kind, images in far_images(FAR_SEED).items():
        asked = ask(version, card, _as_uploads(version, images), f"far: {kind}")
        far[kind] = {
            **separation(cells.strangeness, asked.strangeness),
            "verdicts": _shares(asked.verdicts),
        }
        strange.append(asked.strangeness)
        verdicts.append(asked.verdicts)
    result["far"] = {
        **separation(cells.strangeness, np.concatenate(strange)),
        "verdicts": _shares(np.concatenate(verdicts)),
        "kinds": far,
    }
    return {"rejection": result}


def on_changes(
    version: Pipeline, card: dict[str, Any], root: Path, second: Sequence[Sample]
) -> dict[str, Any]:
    """Measure accuracy on changed pictures: TEST's photographs, and 50 of PBC's a class."""
    samples = data.photographs(root, "TEST")
    for label in range(OTHER):
        samples += [sample for sample in second if sample.label == label][:50]
    labels = np.array([sample.label for sample in samples])
    curves = {}
    for name, (unit, amounts, change) in CHANGES.items():
        points = []
        for amount in amounts:
            pictures = _decoded(
                version,
                [sample.path for sample in samples],
                partial(change, amount=amount),
            )
            right = ask(version, card, pictures, f"{name} {amount}").predicted == labels
            points.append({"amount": amount, "accuracy": round(float(right.mean()), 4)})
        curves[name] = {"unit": unit, "points": points}
    return {"images": len(samples), "curves": curves}


def separation(cells: np.ndarray, out_of_distribution: np.ndarray) -> dict[str, Any]:
    """Return AUROC, and the share of other images kept with 95 % of the cells."""
    labels = np.repeat([0, 1], [len(cells), len(out_of_distribution)])
    scores = np.concatenate([cells, out_of_distribution])
    kept_others, kept_cells, _ = roc_curve(1 - labels, -scores)
    return {
        "images": len(out_of_distribution),
        "auroc": round(float(roc_auc_score(labels, scores)), 4),
        "fpr_at_95_tpr": round(float(kept_others[np.argmax(kept_cells >= 0.95)]), 4),
    }


def write_golden(name: str) -> Answer:
    """Write what the service must say to each drawn sample; return what it says to the neutrophil.

    Whoever holds the archive can then tell whether it answers rightly.
    """
    folder = version_files.folder(name)
    card = json.loads((folder / "card.json").read_text())
    version = load(folder, card, BATCH)
    paths = sorted(SAMPLES.glob("*.png"))
    answers = ask(version, card, _decoded(version, paths), "drawn samples").answers
    said = {path.name: answer for path, answer in zip(paths, answers, strict=True)}
    golden = {path: answer["probabilities"] for path, answer in said.items()}
    version_files.write_json(folder / "golden.json", golden)
    return said["neutrophil.png"]


def to_proportions(image: Image.Image) -> Image.Image:
    """Widen a picture to the photographs' 4:3, in the colour of its own light."""
    size = (round(image.height * 4 / 3), image.height)
    return ImageOps.pad(image, size, color=light_of(image))


def _decoded(
    version: Pipeline,
    paths: Iterable[Path],
    change: Callable[[Image.Image], Image.Image] | None = None,
) -> Iterable[DecodedImage]:
    for path in paths:
        content = path.read_bytes()
        if change:
            with Image.open(BytesIO(content)) as image:
                content = _encoded(change(image.convert("RGB")))
        yield decode(content, version.fit)


def _as_uploads(version: Pipeline, images: Iterable[Pixels]) -> Iterable[DecodedImage]:
    for pixels in images:
        yield decode(_encoded(Image.fromarray(pixels)), version.fit)


def _encoded(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "BMP")
    return out.getvalue()


def _summary(labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    return summarize(confusion_by_photograph(labels, predicted, groups.tolist()))


def _by_majority(labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Count photographs most of whose images are right; list the others."""
    wrong = [
        str(name)
        for name in np.unique(groups)
        if (predicted == labels)[groups == name].mean() <= 0.5
    ]
    total = len(np.unique(groups))
    return {"photographs": total, "right": total - len(wrong), "wrong": wrong}


def _shares(verdicts: np.ndarray) -> dict[str, float]:
    return {
        name: round(float((verdicts == name).mean()), 4) if len(verdicts) else 0.0
        for name in ("confident", "uncertain", "rejected")
    }


if __name__ == "__main__":
    sys.exit(main())

"""Measure a version: metrics.json, golden.json, and the accuracy in card.json.

On laboratories that its networks never saw, on TEST, by cross-validation, on images without a smear
and on changed images; how well its probabilities are calibrated, and which labels look wrong.
Nothing is trained or chosen.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanlab.filter import find_label_issues

from handler.verdict import Answer
from training import data, left_out
from training.calibrate import calibration, for_choosing, photographs_of
from training.crossvalidate import FIGURES
from training.laboratories import PHOTOGRAPHS, laboratories
from training.left_out import shares
from training.metrics import confusion_by_photograph, separation, summarize
from training.out_of_distribution import far_images
from training.out_of_fold import OutOfFold
from training.predict import Answers, TrainedVersion, write_golden
from training.protocol import CLASSES, FIELD_CLASSES
from training.robustness import CHANGES
from training.version_files import Card, folder, write_json

Json = dict[str, Any]
# Others were looked at during development.
FAR_SEED = 1
# The original project's README: an accuracy, and a table by class. That table's mean recall is
# .805 and TEST is balanced, so the two are not of one run.
SEED_PROJECT: Json = {
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


def evaluate(name: str) -> Answer:
    """Write a version's measurements; return its answer to the drawn neutrophil."""
    root, here = data.data_root(), folder(name)
    version, rows = TrainedVersion(name), OutOfFold.of(name)
    card = version.card
    unseen = rows if card["finds_cells"] else never_seen(version)
    metrics = {
        "version": name,
        "temperature": card["temperature"],
        "thresholds": card["thresholds"],
        "left_out": left_out.measure(unseen, card),
        **on_test(version, root),
        **on_photographs(rows, card),
        "far": on_images_without_smear(version, root),
        "robustness": on_changes(version, root),
        "seed_project": SEED_PROJECT,
    }
    for part in FIGURES:
        if (here / f"{part}.json").exists():
            metrics[part] = json.loads((here / f"{part}.json").read_text())
    write_json(here / "metrics.json", metrics)
    write_json(here / "card.json", card | {"test_accuracy": metrics["test"]["image_accuracy"]})
    return write_golden(name)


def never_seen(version: TrainedVersion) -> OutOfFold:
    """Predict the laboratories that a version of one laboratory was not trained on.

    It classifies whole fields, so only images of a single cell can be measured.
    """
    parts = []
    for name, laboratory in laboratories().items():
        if name == PHOTOGRAPHS or not laboratory.is_measured:
            continue
        if samples := [each for each in laboratory.samples() if each.box is None]:
            contents = (sample.path.read_bytes() for sample in samples)
            predictions = version.predict(map(version.decode, contents), name)
            parts.append(
                OutOfFold.of_samples(
                    samples,
                    name,
                    np.full(len(samples), -1),
                    np.full(len(samples), True),
                    np.array([each.cells[0].logits for each in predictions], np.float32),
                    np.full(len(samples), True),
                )
            )
    return OutOfFold.join(parts)


def on_test(version: TrainedVersion, root: Path) -> Json:
    """Measure on TEST, and on TEST without what TRAIN shows too."""
    images, train = (data.list_images(root, split) for split in ("TEST", "TRAIN"))
    answers = version.ask_files([image.path for image in images], "TEST")
    confident = answers.verdicts == "confident"
    labels = np.array([image.label for image in images])
    photographs = np.array([image.photograph for image in images])

    def of(keep: np.ndarray) -> Json:
        return _summary(labels[keep], answers.predicted[keep], photographs[keep])

    def without(names: set[str] | frozenset[str]) -> Json:
        return of(~np.isin(photographs, sorted(names)))

    return {
        "test": of(np.full(len(images), True)),
        "test_without_cells_also_in_train": without(data.CELLS_ALSO_IN_TRAIN),
        "test_without_fields_also_in_train": without(data.fields_also_in_train(images, train)),
        "test_where_confident": of(confident) if confident.any() else None,
        "test_verdicts": shares(answers.verdicts),
        "test_photographs": _by_majority(labels, answers.predicted, photographs),
    }


def on_photographs(rows: OutOfFold, card: Card) -> Json:
    """Measure by cross-validation over all photographs, if there is one, and the calibration."""
    own = rows.take(rows.laboratories == PHOTOGRAPHS).leading(card)
    folds = own.take(own.folds >= 0)
    metrics: Json = {}
    if len(folds.labels):
        predicted = left_out.most_probable(folds, len(card["classes"]))
        metrics["cross_validation"] = {
            **_summary(folds.labels, predicted, folds.groups),
            "photographs_right": _by_majority(
                folds.labels, predicted, photographs_of(folds.names, folds.groups)
            ),
            "cells_not_found": int((~folds.found).sum()),
        }
    return metrics | {
        "calibration": on_calibration(rows, card),
        "label_doubts": label_doubts(folds if len(folds.labels) else own, card),
    }


def on_calibration(rows: OutOfFold, card: Card) -> Json:
    """Measure the probabilities before and after they are divided by the temperature."""
    count = len(card["classes"])
    chosen = for_choosing(rows)
    chosen = chosen.take(chosen.found & (chosen.labels < count))
    labels = torch.from_numpy(chosen.labels)
    logits = torch.from_numpy(chosen.logits[:, :count]).double()
    before, after = (
        calibration((logits / by).softmax(1), labels) for by in (1.0, card["temperature"])
    )
    return {"images": len(labels), "before": before, "after": after}


def label_doubts(own: OutOfFold, card: Card) -> list[Json]:
    """List photographs whose label their out-of-fold probabilities contradict (cleanlab)."""
    own = own.take(own.found)
    logits = torch.from_numpy(own.logits[:, : len(FIELD_CLASSES)]) / card["temperature"]
    probabilities = logits.softmax(1).numpy()
    photographs = photographs_of(own.names, own.groups)
    names = np.unique(photographs)
    mean = np.stack([probabilities[photographs == name].mean(0) for name in names])
    labels = np.array([own.labels[photographs == name][0] for name in names])
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


def on_images_without_smear(version: TrainedVersion, root: Path) -> Json:
    """Measure how well TEST's photographs are separated from images without a smear."""
    photographs = [sample.path for sample in data.photographs(root, "TEST")]
    cells = version.ask_files(photographs, "photographs")
    far = {
        kind: version.ask_pixels(images, f"far: {kind}")
        for kind, images in far_images(FAR_SEED).items()
    }

    def rejection(part: Answers) -> Json:
        return {**separation(cells.ood, part.ood), "verdicts": shares(part.verdicts)}

    return {
        **rejection(Answers.join(list(far.values()))),
        "kinds": {kind: rejection(part) for kind, part in far.items()},
        "verdicts_of_cells": shares(cells.verdicts),
    }


def on_changes(version: TrainedVersion, root: Path) -> Json:
    """Measure accuracy on changed images of TEST's photographs."""
    samples = data.photographs(root, "TEST")
    paths, labels = [each.path for each in samples], np.array([each.label for each in samples])
    curves = {}
    for name, (unit, amounts, change) in CHANGES.items():
        points = []
        for amount in amounts:
            answers = version.ask_files(paths, f"{name} {amount}", partial(change, amount=amount))
            accuracy = round(float((answers.predicted == labels).mean()), 4)
            points.append({"amount": amount, "accuracy": accuracy})
        curves[name] = {"unit": unit, "points": points}
    return {"images": len(samples), "curves": curves}


def _summary(labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray) -> Json:
    return summarize(confusion_by_photograph(labels, predicted, groups.tolist()))


def _by_majority(labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray) -> Json:
    """Count photographs most of whose images are right; list the others."""
    wrong = [
        str(name)
        for name in np.unique(groups)
        if (predicted == labels)[groups == name].mean() <= 0.5
    ]
    total = len(np.unique(groups))
    return {"photographs": total, "right": total - len(wrong), "wrong": wrong}

"""Calibration: from out-of-fold predictions to a card's temperature and thresholds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_up_laboratories import drawn, laboratories, predictions

from handler.verdict import Cell, Prediction, answer, other_probability
from training import data, version_files
from training.__main__ import main
from training.calibrate import (
    calibration,
    choose,
    confident_from,
    for_choosing,
    foreign_from,
    temperature,
)
from training.data import OTHER
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES, KEPT, RIGHT


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize(("weights", "expected"), [((1, 0), 0.5), ((0, 1), 3.0)])
def test_the_temperature_corrects_overconfident_logits_by_weight(
    weights: tuple[int, int], expected: float
) -> None:
    pairs = zip(drawn(2000, 0, 0.5), drawn(2000, 1, 3.0), strict=True)
    weight = np.repeat(np.array(weights, float), 2000)
    found = temperature(*tensors(*(np.concatenate(pair) for pair in pairs), weight))
    assert found == pytest.approx(expected, rel=0.08)


def sure(share: float, right: int, of: int) -> list[torch.Tensor]:
    """Predict EOSINOPHIL with this probability for `of` images, `right` of which are."""
    probabilities = np.full((of, 4), (1 - share) / 3)
    probabilities[:, 0] = share
    return tensors(probabilities, np.repeat([0, 1], [right, of - right]))


@pytest.mark.parametrize(
    ("share", "right", "error"), [(0.9, 6, 0.3), (0.6, 6, 0.0), (0.97, 0, 0.97)]
)
def test_ece_is_the_gap_between_confidence_and_accuracy(
    share: float, right: int, error: float
) -> None:
    measured = calibration(*sure(share, right, 10))
    assert measured["ece"] == pytest.approx(error, abs=1e-4)
    assert measured["bins"] == [{"count": 10, "confidence": share, "accuracy": right / 10}]


def test_errors_of_bins_do_not_cancel() -> None:
    parts = [sure(0.9, 80, 100), sure(0.6, 70, 100)]
    measured = calibration(*(torch.cat(pair) for pair in zip(*parts, strict=True)))
    assert measured["ece"] == pytest.approx(0.1, abs=1e-4)
    assert [each["count"] for each in measured["bins"]] == [100, 100]


def test_likelihood_and_brier_score_of_a_known_case() -> None:
    measured = calibration(*sure(0.7, 1, 2))
    assert measured["nll"] == pytest.approx(-(np.log(0.7) + np.log(0.1)) / 2, abs=1e-4)
    # Right: 0.3 off, three times 0.1. Wrong: 0.7 off, 0.9 off, twice 0.1.
    assert measured["brier"] == pytest.approx((0.12 + 0.49 + 0.81 + 0.02) / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("weight", "share", "expected"),
    [
        (1, 1.0, 0.8),
        (1, 0.76, 0.8),
        (1, 0.75, 0.6),
        (1, 0.1, 0.6),
        (0.1, 0.95, 0.6),
        (9, 0.75, 0.8),
    ],
)
def test_confident_from_is_the_lowest_that_keeps_the_accuracy(
    weight: float, share: float, expected: float
) -> None:
    top, right = np.array([0.6, 0.9, 0.7, 0.8]), np.array([True, True, False, True])
    assert confident_from(top, right, np.array([1, 1, weight, 1]), share) == expected


def numbers(chosen: dict[str, Any]) -> list[float]:
    return [chosen["temperature"], *chosen["thresholds"].values()]


def test_the_thresholds_hold_in_each_laboratory() -> None:
    """In the answers of the service."""
    images = laboratories(1000)
    images.found[::50] = False
    card = choose(images) | {"version": "9.0", "classes": CLASSES, "finds_cells": True}
    rows = zip(images.logits.tolist(), images.found, strict=True)
    answers = [
        answer("m", card, Prediction([Cell(logits, (0, 0, 1, 1))] if found else []))
        for logits, found in rows
    ]
    kept = np.array([each["verdict"] != "rejected" for each in answers])
    known = images.labels < OTHER
    shares = [
        kept[known & (images.laboratories == name)].mean() for name in set(images.laboratories)
    ]
    assert KEPT <= min(shares) < KEPT + 0.002
    assert kept[~known].mean() < 0.6
    sure = known & np.array([each["verdict"] == "confident" for each in answers])
    right = images.logits[:, : len(CLASSES)].argmax(1) == images.labels
    assert right[sure].mean() == pytest.approx(RIGHT, abs=0.01)
    assert sure.sum() > 150


@pytest.mark.parametrize(("kept", "expected"), [(0.5, 0.5), (0.9, 0.9), (0.91, 1.0), (0.01, 0.3)])
def test_the_worst_laboratory_decides_the_threshold(kept: float, expected: float) -> None:
    scores = np.concatenate([np.arange(1, 11) / 10, np.full(7, 0.3)])
    assert foreign_from(scores, np.repeat(["a", "b"], [10, 7]), kept) == expected


def test_laboratories_and_their_classes_have_the_same_weight() -> None:
    """Many more images of one laboratory or class change nothing; OTHER does not calibrate."""
    here, there = predictions(800, 0, "here", 1.0), predictions(800, 1, "there", 4.0)
    once, often = (choose(OutOfFold.join([here] * times + [there])) for times in (1, 10))
    assert numbers(often) == pytest.approx(numbers(once), abs=0.002)
    alone = [choose(each)["temperature"] for each in (here, there)]
    assert alone[0] < once["temperature"] < alone[1]
    more = OutOfFold.join([here, *[here.take(here.labels == 2)] * 5])
    assert choose(more)["temperature"] == pytest.approx(choose(here)["temperature"], abs=0.002)
    known = here.take(here.labels < OTHER)
    assert numbers(choose(known)) == numbers(choose(here))


def test_a_version_without_other_outputs_rejects_no_cell() -> None:
    images = predictions(800)
    images = images.take(images.labels < 4)
    card = {"classes": CLASSES[:4], **choose(replace(images, logits=images.logits[:, :4]))}
    assert card["thresholds"]["foreign"] == 1.0
    assert other_probability(card, images.logits[0, :4].tolist()) == 0


def test_laboratories_left_out_calibrate_without_tests_photographs() -> None:
    """Of a version that was never measured on one, its folds do."""
    [tested, *_] = (sample.path for sample in data.photographs(Path(), "TEST"))
    images = predictions(6)
    images.names = np.array([tested.name, *images.names[1:]])
    images.groups = np.array([images.groups[0], tested.stem, *images.groups[2:]])
    images.folds[:4] = -1
    assert for_choosing(images).names.tolist() == ["here-2", "here-3"]
    images.folds[:] = 2
    assert for_choosing(images).names.tolist() == [f"here-{at}" for at in range(2, 6)]


def test_without_a_training_the_message_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_files, "ROOT", tmp_path)
    version_files.folder("8.0").mkdir(parents=True)
    (version_files.folder("8.0") / "card.json").write_text("{}")
    for version in ("8.0", "9.0"):
        result = CliRunner().invoke(main, ["calibrate", "--version", version])
        assert result.exit_code == 1
        assert f"make train VERSION={version}" in result.output


def test_calibrate_updates_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file that cross-validation writes."""
    monkeypatch.setattr(version_files, "ROOT", tmp_path)
    folder = version_files.folder("9.0")
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps({"version": "9.0", "finds_cells": True}))
    parts = [predictions(200), predictions(200, laboratory="a longer name")]
    columns = vars(OutOfFold.join(parts))
    # Older files lack this column: each row is an image.
    del columns["first"]
    np.savez(folder / "out_of_fold.npz", **columns)
    assert CliRunner().invoke(main, ["calibrate", "--version", "9.0"]).exit_code == 0
    card = json.loads((folder / "card.json").read_text())
    assert card == {"version": "9.0", "finds_cells": True} | choose(OutOfFold.join(parts))

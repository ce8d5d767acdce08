"""Calibration: from out-of-fold predictions to a card's temperature and thresholds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from handler.preprocessing import DecodedImage, within_field
from handler.verdict import Cell, Prediction, answer, other_probability
from training import calibrate, crossvalidate, data, version_files
from training.__main__ import main
from training.calibrate import (
    calibration,
    choose,
    confident_from,
    for_choosing,
    stain_from,
    temperature,
)
from training.crossvalidate import predict
from training.data import OTHER, Sample
from training.networks import CellNet, Locator
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES, KEPT

SAME = np.ones


def drawn(count: int, seed: int, sharp: float = 1.0, width: int = 4) -> tuple[np.ndarray, ...]:
    """Draw logits, and labels with just those probabilities; return `sharp` times the logits."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, width))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(1)
    return sharp * logits, labels


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


def predictions(
    count: int, seed: int = 0, laboratory: str = "here", sharp: float = 2.0
) -> OutOfFold:
    """Make predictions for the classes, and for a tenth of other cells."""
    logits, labels = drawn(count, seed, sharp)
    random = np.random.default_rng(seed + 100)
    labels[random.random(count) < 0.1] = OTHER
    fifth = random.normal(-3, 2, count) + 8 * (labels == OTHER)
    names = np.array([f"{laboratory}-{at}" for at in range(count)])
    return OutOfFold(
        names,
        np.full(count, laboratory),
        np.array([*CLASSES, "OTHER"])[labels],
        labels,
        names,
        np.zeros(count, int),
        np.ones(count, bool),
        np.column_stack([logits, fifth]).astype(np.float32),
    )


def numbers(chosen: dict[str, Any]) -> list[float]:
    return [chosen["temperature"], *chosen["thresholds"].values()]


def test_the_thresholds_reject_and_confirm_the_intended_shares() -> None:
    """In the answers of the service."""
    images = predictions(2000)
    chosen = choose(images)
    card = chosen | {"version": "9.0", "classes": CLASSES, "finds_cells": True}
    card["thresholds"]["stain"] = 0.0
    rejected: dict[bool, list[bool]] = {True: [], False: []}
    confident = []
    assert chosen["temperature"] == pytest.approx(2, rel=0.06)
    for logits, label in zip(images.logits.tolist(), images.labels.tolist(), strict=True):
        said = answer("m", card, Prediction(1.0, [Cell(logits, (0, 0, 1, 1))]))
        rejected[label < OTHER].append(said["label"] is None)
        if label < OTHER and max(said["probabilities"].values()) >= card["thresholds"]["confident"]:
            confident.append(max(said["probabilities"], key=said["probabilities"].get))
    assert np.mean(rejected[True]) == pytest.approx(1 - KEPT["foreign"], abs=0.01)
    assert np.mean(rejected[False]) > 0.5
    assert len(confident) > 150


def test_laboratories_and_their_classes_have_the_same_weight() -> None:
    """Many more images of one laboratory or class change nothing; OTHER does not calibrate."""
    here, there = predictions(600, 0, "here", 1.0), predictions(600, 1, "there", 4.0)
    once, often = (choose(OutOfFold.join([here] * times + [there])) for times in (1, 10))
    assert numbers(often) == pytest.approx(numbers(once), abs=0.002)
    alone = [choose(each)["temperature"] for each in (here, there)]
    assert alone[0] < once["temperature"] < alone[1]
    more = OutOfFold.join([here, *[here.take(here.labels == 2)] * 5])
    assert numbers(choose(more)) == pytest.approx(numbers(choose(here)), abs=0.002)
    known = here.take(here.labels < OTHER)
    assert numbers(choose(known)) == numbers(choose(here))


def test_a_version_without_other_outputs_rejects_no_cell() -> None:
    images = predictions(800)
    card = {"classes": CLASSES, **choose(replace(images, logits=images.logits[:, :4]))}
    assert card["thresholds"]["foreign"] == 1.0
    assert other_probability(card, images.logits[0, :4].tolist()) == 0


def test_only_fold_predictions_with_a_cell_of_train_calibrate() -> None:
    [tested, *_], trained = (
        sorted({image.photograph for image in data.list_images(Path(), split)})
        for split in ("TEST", "TRAIN")
    )
    images = predictions(5)
    images.groups = np.array([tested, *trained[:4]])
    images.folds[3] = -1
    images.found[4] = False
    assert for_choosing(images, Path()).names.tolist() == ["here-1", "here-2"]


def test_the_stain_threshold_keeps_most_images_of_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 images of one class and 5 of another, a tenth of the weight is one image each."""
    images = []
    for label, levels in ((0, range(100, 120)), (1, range(50, 55))):
        for level in levels:
            path = tmp_path / f"{level}.png"
            Image.new("RGB", (8, 6), (level, 0, 0)).save(path)
            images.append(data.Image(path, label, path.stem, path.stem))
    monkeypatch.setattr(data, "list_images", lambda root, split: images * (split == "TRAIN"))
    monkeypatch.setattr(calibrate, "in_torch", lambda _gate: lambda small: small[:, 0, 0, 0] / 100)
    monkeypatch.setitem(KEPT, "stain", 0.85)
    assert stain_from(tmp_path, True) == stain_from(tmp_path, False) == 0.51


def test_without_a_training_the_message_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_files, "ROOT", tmp_path)
    monkeypatch.setattr(data, "data_root", lambda: tmp_path)
    version_files.folder("8.0").mkdir(parents=True)
    (version_files.folder("8.0") / "card.json").write_text("{}")
    for version in ("8.0", "9.0"):
        result = CliRunner().invoke(main, ["calibrate", "--version", version])
        assert result.exit_code == 1
        assert f"make train VERSION={version}" in result.output


def test_calibrate_updates_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file that cross-validation writes."""
    monkeypatch.setattr(version_files, "ROOT", tmp_path)
    monkeypatch.setattr(data, "data_root", lambda: tmp_path)
    monkeypatch.setattr(calibrate, "stain_from", lambda root, finds_cells: 0.25)
    folder = version_files.folder("9.0")
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps({"version": "9.0", "finds_cells": True}))
    parts = [predictions(200), predictions(200, laboratory="a longer name")]
    OutOfFold.join(parts).save(folder / "out_of_fold.npz")
    assert CliRunner().invoke(main, ["calibrate", "--version", "9.0"]).exit_code == 0
    card = json.loads((folder / "card.json").read_text())
    expected = choose(OutOfFold.join(parts))
    expected["thresholds"]["stain"] = 0.25
    assert card == {"version": "9.0", "finds_cells": True} | expected


class Asked:
    """Stands in for the networks: an image of level n has n cells, the last the most certain."""

    fit = staticmethod(within_field)

    def __init__(self, *_: object) -> None:
        pass

    def predict(self, pictures: Sequence[DecodedImage]) -> list[Prediction]:
        return [
            Prediction(1.0, [Cell([float(at), 0.0, 0.0, 0.0, 7.0]) for at in range(level)])
            for level in (picture.pixels[0, 0, 0] for picture in pictures)
        ]


def test_an_image_is_predicted_by_its_most_certain_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossvalidate, "CellByCell", Asked)
    samples: list[Sample] = []
    for level in (1, 0, 4, 2):
        path = tmp_path / f"{len(samples)}.png"
        Image.new("RGB", (8, 6), (level, 0, 0)).save(path)
        samples.append(Sample(path, level, f"kind {level}", path.stem))
    images = predict(Locator(), CellNet(len(CLASSES), (8,), 0.1), samples, "here", 3)
    assert images.names.tolist() == [sample.path.name for sample in samples]
    assert images.labels.tolist() == [sample.label for sample in samples]
    assert set(images.folds) == {3}
    assert images.found.tolist() == [sample.label > 0 for sample in samples]
    fours_and_other = [[0, 0, 0, 0, 7], [0, 0, 0, 0, 0], [3, 0, 0, 0, 7], [1, 0, 0, 0, 7]]
    assert images.logits.tolist() == fours_and_other

"""From what networks said of images they had not seen to a card's temperature and thresholds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handler.networks import CellNet, Locator
from handler.preprocessing import DecodedImage, within_field
from handler.verdict import CLASSES, Cell, Prediction, answer, other_probability
from training import calibrate, crossvalidate, data, version_files
from training.calibrate import (
    KEPT,
    calibration,
    choose,
    confident_from,
    for_choosing,
    lowest,
    stain_from,
    temperature,
)
from training.crossvalidate import Judged, join, judge
from training.data import OTHER, Sample

SAME = np.ones


def drawn(count: int, seed: int, sharp: float = 1.0, width: int = 4) -> tuple[np.ndarray, ...]:
    """Draw logits, and labels with just those probabilities; return `sharp` times the logits."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, width))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(1)
    return sharp * logits, labels


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


# The temperature


@pytest.mark.parametrize("sharp", [0.5, 1.0, 2.5])
def test_the_temperature_takes_back_how_much_too_sure_logits_are(sharp: float) -> None:
    logits, labels = drawn(4000, 0, sharp)
    assert temperature(*tensors(logits, labels, SAME(4000))) == pytest.approx(sharp, rel=0.06)


def test_the_temperature_is_that_of_what_has_weight() -> None:
    one, other = drawn(3000, 0, 1.0), drawn(3000, 1, 3.0)
    logits, labels = (np.concatenate(pair) for pair in zip(one, other, strict=True))
    for weights, expected in (((1, 0), 1.0), ((0, 1), 3.0)):
        weight = np.repeat(np.array(weights, float), 3000)
        assert temperature(*tensors(logits, labels, weight)) == pytest.approx(expected, rel=0.08)


# How well calibrated probabilities are


def test_probabilities_that_come_true_are_calibrated() -> None:
    logits, labels = drawn(6000, 0)
    measured = calibration(*tensors(torch.from_numpy(logits).softmax(1).numpy(), labels))
    assert measured["ece"] < 0.02
    assert sum(each["count"] for each in measured["bins"]) == 6000
    assert all(
        abs(each["confidence"] - each["accuracy"]) < 0.1
        for each in measured["bins"]
        if each["count"] > 200
    )


def sure(share: float, right: int, of: int) -> list[torch.Tensor]:
    """Say EOSINOPHIL with this probability of so many images, of which so many are that."""
    probabilities = np.full((of, 4), (1 - share) / 3)
    probabilities[:, 0] = share
    return tensors(probabilities, np.repeat([0, 1], [right, of - right]))


@pytest.mark.parametrize(
    ("share", "right", "error"), [(0.9, 6, 0.3), (0.6, 6, 0.0), (0.5, 10, 0.5), (0.97, 0, 0.97)]
)
def test_the_error_is_how_far_confidence_and_accuracy_are_apart(
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


def test_a_class_ruled_out_that_comes_true_costs_much_but_not_everything() -> None:
    measured = calibration(*sure(1.0, 0, 4))
    assert np.isfinite(measured["nll"])
    assert (measured["ece"], measured["brier"]) == (1, 2)


# Thresholds


@pytest.mark.parametrize(("kept", "expected"), [(1.0, 0), (0.985, 1), (0.905, 9), (0.505, 49)])
def test_lowest_keeps_the_share_of_the_scores(kept: float, expected: int) -> None:
    scores = np.random.default_rng(0).permutation(100).astype(float)
    assert lowest(scores, SAME(100), kept) == expected


def test_lowest_counts_by_weight() -> None:
    scores, weights = np.array([3.0, 1.0, 2.0, 4.0]), np.array([0.2, 0.1, 0.4, 0.3])
    chosen = [lowest(scores, weights, kept) for kept in (0.95, 0.85, 0.55, 0.45, 0.25)]
    assert chosen == [1, 2, 2, 3, 4]


TOP, RIGHT = np.array([0.6, 0.9, 0.7, 0.8]), np.array([True, True, False, True])


@pytest.mark.parametrize(("share", "expected"), [(1.0, 0.8), (0.76, 0.8), (0.75, 0.6), (0.1, 0.6)])
def test_confident_from_is_the_lowest_that_keeps_the_accuracy(
    share: float, expected: float
) -> None:
    assert confident_from(TOP, RIGHT, SAME(4), share) == expected


def test_confident_from_counts_by_weight() -> None:
    assert confident_from(TOP, RIGHT, np.array([1, 1, 0.1, 1]), 0.95) == 0.6
    assert confident_from(TOP, RIGHT, np.array([1, 1, 9.0, 1]), 0.75) == 0.8


def test_where_no_answers_are_right_enough_none_is_confident() -> None:
    assert confident_from(TOP, ~RIGHT, SAME(4), 0.97) == 1.0


# Everything that a card needs


def judged(count: int, seed: int = 0, laboratory: str = "here", sharp: float = 2.0) -> Judged:
    """Make images of the four, some said to be foreign, and a tenth that are none of them."""
    logits, labels = drawn(count, seed, sharp)
    random = np.random.default_rng(seed + 100)
    labels[random.random(count) < 0.1] = OTHER
    fifth = random.normal(-3, 2, count) + 8 * (labels == OTHER)
    names = np.array([f"{laboratory}-{at}" for at in range(count)])
    return Judged(
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


def test_a_card_gets_temperature_and_thresholds() -> None:
    chosen = choose(judged(4000))
    assert list(chosen) == ["temperature", "thresholds"]
    assert set(chosen["thresholds"]) == {"foreign", "confident"}
    assert chosen["temperature"] == pytest.approx(2, rel=0.06)
    json.dumps(chosen)


def test_what_is_chosen_keeps_what_it_promises() -> None:
    """As the service judges, not only as the choice was made."""
    images = judged(4000)
    chosen = choose(images)
    card = chosen | {"version": "9.0", "finds_cells": True}
    card["thresholds"]["stain"] = 0.0
    rejected: dict[bool, list[bool]] = {True: [], False: []}
    confident = []
    for logits, label in zip(images.logits.tolist(), images.labels.tolist(), strict=True):
        said = answer("m", card, Prediction(1.0, [Cell(logits, (0, 0, 1, 1))]))
        rejected[label < OTHER].append(said["label"] is None)
        if label < OTHER and max(said["probabilities"].values()) >= card["thresholds"]["confident"]:
            confident.append(max(said["probabilities"], key=said["probabilities"].get))
    assert np.mean(rejected[True]) == pytest.approx(1 - KEPT["foreign"], abs=0.01)
    assert np.mean(rejected[False]) > 0.5
    assert len(confident) > 400


def test_laboratories_count_alike() -> None:
    """Ten times the images of one laboratory change nothing."""
    here, there = judged(600, 0, "here", 1.0), judged(600, 1, "there", 4.0)
    once, often = (choose(join([here] * times + [there])) for times in (1, 10))
    assert numbers(often) == pytest.approx(numbers(once), abs=0.002)
    alone = [choose(each)["temperature"] for each in (here, there)]
    assert alone[0] < once["temperature"] < alone[1]


def test_classes_of_a_laboratory_count_alike() -> None:
    images = judged(800)
    more = join([images, *[images.take(images.labels == 2)] * 5])
    assert numbers(choose(more)) == pytest.approx(numbers(choose(images)), abs=0.002)


def test_what_is_none_of_the_four_does_not_choose() -> None:
    images = judged(800)
    four = images.take(images.labels < OTHER)
    assert numbers(choose(four)) == numbers(choose(images))


def test_a_version_of_four_logits_rejects_nothing_as_foreign() -> None:
    images = judged(800)
    chosen = choose(replace(images, logits=images.logits[:, :4]))
    assert chosen["thresholds"]["foreign"] == 1.0
    assert other_probability(images.logits[0, :4].tolist(), chosen["temperature"]) == 0


def test_test_photographs_do_not_choose() -> None:
    """Nor does what no fold judged, or what no cell was found in."""
    train, test = (data.photographs(Path("nowhere"), split)[0] for split in ("TRAIN", "TEST"))
    images = judged(5)
    images.groups = np.array([train.path.stem, test.path.stem, train.path.stem, "a.jpg", "b.jpg"])
    images.folds[2] = -1
    images.found[3] = False
    assert for_choosing(images, Path("nowhere")).names.tolist() == ["here-0", "here-4"]


def test_no_test_image_is_left_to_choose() -> None:
    groups = {
        split: np.array(sorted({image.photograph for image in data.list_images(Path(), split)}))
        for split in ("TRAIN", "TEST")
    }
    images = judged(len(groups["TRAIN"]) + len(groups["TEST"]))
    images.groups = np.concatenate([groups["TEST"], groups["TRAIN"]])
    assert set(for_choosing(images, Path()).groups) == set(groups["TRAIN"])


def test_the_stain_is_that_of_all_but_a_few_images_of_each_class(
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


@pytest.mark.parametrize("there", [(), ("card.json",)])
def test_without_anything_to_choose_from_it_is_said_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    there: Sequence[str],
) -> None:
    monkeypatch.setattr(version_files, "ROOT", tmp_path)
    monkeypatch.setattr(data, "data_root", lambda: tmp_path)
    version_files.folder("9.0").mkdir(parents=True)
    for name in there:
        (version_files.folder("9.0") / name).write_text("{}")
    assert calibrate.main(["--version", "9.0"]) == 1
    assert "make train VERSION=9.0" in capsys.readouterr().err


def test_what_is_chosen_stands_in_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_files, "ROOT", tmp_path)
    monkeypatch.setattr(data, "data_root", lambda: tmp_path)
    monkeypatch.setattr(calibrate, "stain_from", lambda root, finds_cells: 0.25)
    folder = version_files.folder("9.0")
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps({"version": "9.0", "finds_cells": True}))
    images = judged(400)
    images.save(folder / "out_of_fold.npz")
    assert calibrate.main(["--version", "9.0"]) == 0
    card = json.loads((folder / "card.json").read_text())
    expected = choose(images)
    expected["thresholds"]["stain"] = 0.25
    assert card == {"version": "9.0", "finds_cells": True} | expected


# What was judged


def same(one: Judged, other: Judged) -> bool:
    return all(
        np.array_equal(getattr(one, each.name), getattr(other, each.name))
        and getattr(one, each.name).dtype == getattr(other, each.name).dtype
        for each in fields(Judged)
    )


def test_what_was_judged_is_read_as_it_was_written(tmp_path: Path) -> None:
    images = judged(20)
    images.save(tmp_path / "judged.npz")
    assert same(Judged.load(tmp_path / "judged.npz"), images)


@pytest.mark.parametrize("where", [np.array([3, 1]), np.arange(20) % 7 == 1])
def test_taking_some_images_takes_all_of_them(where: np.ndarray) -> None:
    images = judged(20)
    taken = images.take(where)
    assert all(
        np.array_equal(getattr(taken, each.name), getattr(images, each.name)[where])
        for each in fields(Judged)
    )


def test_parts_are_joined_in_their_order() -> None:
    images = judged(20, laboratory="a longer name")
    parts = [images.take(np.arange(20) < 8), images.take(np.arange(20) >= 8)]
    assert same(join(parts), images)
    both = join([judged(2), judged(1, laboratory="a longer name")])
    assert both.laboratories.tolist() == ["here", "here", "a longer name"]


def test_the_likeliest_of_the_four_is_predicted() -> None:
    images = judged(3)
    images.logits[:] = [[0, 3, 1, 2, 9], [5, 0, 0, 0, 0], [-3, -2, -5, -1, 0]]
    assert images.predicted.tolist() == [1, 0, 3]


class Asked:
    """Stands in for the networks: a picture of level n has n cells, the last one the surest."""

    fit = staticmethod(within_field)

    def __init__(self, *_: object) -> None:
        pass

    def predict(self, pictures: Sequence[DecodedImage]) -> list[Prediction]:
        return [
            Prediction(
                1.0,
                [
                    Cell([float(at), 0.0, 0.0, 0.0, 7.0], (0, 0, 1, 1))
                    for at in range(picture.pixels[0, 0, 0])
                ],
            )
            for picture in pictures
        ]


def test_images_are_judged_by_their_most_certain_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossvalidate, "CellByCell", Asked)
    samples: list[Sample] = []
    for level in (1, 0, 4, *[2] * 20):
        path = tmp_path / f"{len(samples)}.png"
        Image.new("RGB", (8, 6), (level, 0, 0)).save(path)
        samples.append(Sample(path, level, f"kind {level}", path.stem))
    images = judge(Locator(), CellNet((8,), 0.1), samples, "here", 3)
    assert images.names.tolist() == [sample.path.name for sample in samples]
    assert images.labels.tolist() == [sample.label for sample in samples]
    assert set(images.folds) == {3}
    assert images.found.tolist() == [sample.label > 0 for sample in samples]
    assert images.logits[:4].tolist() == [
        [0, 0, 0, 0, 7],
        [0, 0, 0, 0, 0],
        [3, 0, 0, 0, 7],
        [1, 0, 0, 0, 7],
    ]

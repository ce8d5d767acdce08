"""What the images must look like before anything is trained or measured on them."""

from __future__ import annotations

import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from handler.verdict import CLASSES
from training import data

SPLITS = ("TRAIN", "TEST")


@pytest.fixture(scope="module")
def images(blood_cells: Path) -> dict[str, list[data.Image]]:
    return {split: data.list_images(blood_cells, split) for split in SPLITS}


def test_the_set_is_complete(blood_cells: Path) -> None:
    data.check(blood_cells)


@pytest.mark.parametrize("split", SPLITS)
def test_the_csv_files_agree_with_the_expected_counts(split: str) -> None:
    images = data.list_images(Path("nowhere"), split)
    counts = Counter(CLASSES[image.label] for image in images)
    assert counts == data.IMAGES_PER_CLASS[split]
    assert len({image.path for image in images}) == len(images)


@pytest.mark.parametrize(("split", "photographs"), [("TRAIN", 277), ("TEST", 71)])
def test_images_stem_from_few_photographs(split: str, photographs: int) -> None:
    images = data.list_images(Path("nowhere"), split)
    assert len({image.photograph for image in images}) == photographs


def test_a_photograph_has_one_label() -> None:
    labels: dict[str, set[int]] = {}
    for split in SPLITS:
        for image in data.list_images(Path("nowhere"), split):
            labels.setdefault(image.photograph, set()).add(image.label)
    assert all(len(each) == 1 for each in labels.values())


def test_no_photograph_is_in_train_and_test() -> None:
    train, test = (data.list_images(Path("nowhere"), split) for split in SPLITS)
    assert not {image.photograph for image in train} & {image.photograph for image in test}


def test_cells_that_train_shows_too_are_eight_percent_of_test() -> None:
    train, test = (data.list_images(Path("nowhere"), split) for split in SPLITS)
    assert sum(image.photograph in data.CELLS_ALSO_IN_TRAIN for image in test) == 202
    assert data.fields_also_in_train(test, train) > data.CELLS_ALSO_IN_TRAIN


@pytest.mark.parametrize("seed", [0, 1])
def test_no_group_stands_on_two_sides_of_a_fold(seed: int) -> None:
    images = data.list_images(Path("nowhere"), "TRAIN")
    held_out_once = Counter[int]()
    for train, held_out in data.grouped_folds(images, folds=5, seed=seed):
        groups = [{images[index].group for index in side} for side in (train, held_out)]
        assert not groups[0] & groups[1]
        assert {images[index].label for index in held_out} == set(range(len(CLASSES)))
        held_out_once.update(held_out.tolist())
    assert held_out_once == Counter(range(len(images)))


def test_images_decode_to_the_networks_input(images: dict[str, list[data.Image]]) -> None:
    some = images["TRAIN"][::500]
    pixels, labels = data.load(some, "some of TRAIN")
    assert pixels.shape == (len(some), 60, 80, 3)
    assert pixels.dtype == "uint8"
    assert labels.tolist() == [image.label for image in some]
    # Bright fields with dark cells: neither black nor blank.
    assert (pixels.mean((1, 2, 3)) > 60).all()
    assert (pixels.std((1, 2, 3)) > 5).all()


def test_a_missing_set_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOOD_CELLS_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"make data.*kaggle\.com"):
        data.data_root()


def test_an_incomplete_set_is_said_clearly(tmp_path: Path) -> None:
    folder = data.image_folder(tmp_path, "TRAIN") / "MONOCYTE"
    folder.mkdir(parents=True)
    (folder / "_0_1.jpeg").touch()
    with pytest.raises(data.DataError, match=r"TRAIN should hold .* but holds"):
        data.check(tmp_path)


def stand_in_for_kagglehub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, download: object
) -> None:
    module = types.SimpleNamespace(dataset_download=download)
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    monkeypatch.setattr(data, "LINK", tmp_path / "data")
    monkeypatch.delenv("BLOOD_CELLS_DATA", raising=False)


def test_fetch_links_what_kaggle_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kaggle's archive holds the outer folder twice."""
    sent = tmp_path / "cache"
    (sent / "dataset2-master" / "dataset2-master" / "images" / "TRAIN").mkdir(parents=True)
    stand_in_for_kagglehub(monkeypatch, tmp_path, lambda name: str(sent))
    assert data.fetch() == tmp_path / "data"
    assert data.image_folder(data.data_root(), "TRAIN").is_dir()


def test_without_a_network_fetch_says_how_to_do_it_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> str:
        raise ConnectionError("no network")

    stand_in_for_kagglehub(monkeypatch, tmp_path, fail)
    assert data.main() == 1
    assert "By hand: download https://www.kaggle.com/" in capsys.readouterr().err

"""The images and their lists: complete, and divided only by group."""

from __future__ import annotations

import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from training import data
from training.__main__ import main
from training.protocol import CLASSES, FIELD_CLASSES

SPLITS = ("TRAIN", "TEST")


@pytest.mark.data
def test_the_set_is_complete(blood_cells: Path) -> None:
    data.check(blood_cells)


def test_the_lists_have_each_image_once_and_divide_by_photograph() -> None:
    """The lists of photographs, images and cells that are in both parts agree."""
    lists = {split: data.list_images(Path(), split) for split in SPLITS}
    for split, images in lists.items():
        counts = Counter(CLASSES[image.label] for image in images)
        assert counts == data.IMAGES_PER_CLASS[split]
        assert len({image.path for image in images}) == len(images)
        listed = {(sample.path.stem, sample.label) for sample in data.photographs(Path(), split)}
        assert {(image.photograph, image.label) for image in images} == listed
    train, test = ({image.photograph for image in images} for images in lists.values())
    assert (len(train), len(test), len(train & test)) == (277, 71, 0)
    both = [image.photograph in data.CELLS_ALSO_IN_TRAIN for image in lists["TEST"]]
    assert sum(both) == 202
    assert data.fields_also_in_train(lists["TEST"], lists["TRAIN"]) > data.CELLS_ALSO_IN_TRAIN


def test_folds_do_not_divide_groups() -> None:
    images = data.list_images(Path("nowhere"), "TRAIN")
    held_out_once = Counter[int]()
    for train, held_out in data.grouped_folds(images, folds=5, seed=1):
        groups = [{images[index].group for index in side} for side in (train, held_out)]
        assert not groups[0] & groups[1]
        assert {images[index].label for index in held_out} == set(range(len(FIELD_CLASSES)))
        held_out_once.update(held_out.tolist())
    assert held_out_once == Counter(range(len(images)))


@pytest.mark.data
def test_images_decode_to_the_networks_input(blood_cells: Path) -> None:
    some = data.list_images(blood_cells, "TRAIN")[::1000]
    pixels, labels = data.load(some, "some of TRAIN")
    assert pixels.shape == (len(some), 60, 80, 3)
    assert pixels.dtype == "uint8"
    assert labels.tolist() == [image.label for image in some]
    # Bright fields with dark cells: neither black nor blank.
    assert (pixels.mean((1, 2, 3)) > 60).all()
    assert (pixels.std((1, 2, 3)) > 5).all()


def test_a_missing_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOOD_CELLS_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"make data.*kaggle\.com"):
        data.data_root()


def test_an_incomplete_set_is_refused(tmp_path: Path) -> None:
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


def test_fetch_links_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kaggle's archive nests the outer folder."""
    sent = tmp_path / "cache"
    (sent / "dataset2-master" / "dataset2-master" / "images" / "TRAIN").mkdir(parents=True)
    stand_in_for_kagglehub(monkeypatch, tmp_path, lambda name: str(sent))
    assert data.fetch() == tmp_path / "data"
    assert data.image_folder(data.data_root(), "TRAIN").is_dir()


def test_without_a_network_the_message_says_how_to_do_it_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> str:
        raise ConnectionError("no network")

    stand_in_for_kagglehub(monkeypatch, tmp_path, fail)
    result = CliRunner().invoke(main, ["data"])
    assert result.exit_code == 1
    assert "By hand: download https://www.kaggle.com/" in result.output

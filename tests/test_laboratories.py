"""Folders of labelled cells: of any laboratory, of PBC, and the photographs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from handler.preprocessing import Box
from handler.verdict import CLASSES
from training import data, laboratories
from training.data import OTHER, DataError, Sample
from training.laboratories import pbc, read_folder, require
from training.protocol import MIN_CELLS

FILES = (
    "EOSINOPHIL/b.png",
    "EOSINOPHIL/a.JPG",
    "LYMPHOCYTE/c.tiff",
    "MONOCYTE/d.webp",
    "NEUTROPHIL/e.bmp",
    "OTHER/f.jpeg",
    "OTHER/platelet/g.tif",
    "OTHER/platelet/h.png",
)


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def by_name(samples: Sequence[Sample]) -> dict[str, Sample]:
    return {sample.path.name: sample for sample in samples}


# A folder


def test_a_folder_is_a_class_and_a_kind(tmp_path: Path) -> None:
    samples = read_folder(make(tmp_path, *FILES))
    assert [(each.path.name, each.label, each.kind) for each in samples] == [
        ("a.JPG", 0, "EOSINOPHIL"),
        ("b.png", 0, "EOSINOPHIL"),
        ("c.tiff", 1, "LYMPHOCYTE"),
        ("d.webp", 2, "MONOCYTE"),
        ("e.bmp", 3, "NEUTROPHIL"),
        ("f.jpeg", OTHER, "OTHER"),
        ("g.tif", OTHER, "platelet"),
        ("h.png", OTHER, "platelet"),
    ]


@pytest.mark.parametrize("name", ["notes.txt", "EOSINOPHIL/notes.txt", "EOSINOPHIL/Thumbs.db"])
def test_other_files_are_skipped(tmp_path: Path, name: str) -> None:
    assert len(read_folder(make(tmp_path, *FILES, name))) == len(FILES)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cells is not a folder"):
        read_folder(tmp_path / "cells")


@pytest.mark.parametrize("name", ["BASOPHIL", "eosinophil", "Neutrophils"])
def test_an_unknown_class_is_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path, *FILES, f"{name}/a.png")
    with pytest.raises(DataError, match=rf"unknown classes.*{name}.*EOSINOPHIL.*OTHER"):
        read_folder(tmp_path)


# Groups


def test_without_groups_every_image_is_its_own(tmp_path: Path) -> None:
    samples = read_folder(make(tmp_path, *FILES, "NEUTROPHIL/a.JPG"))
    assert len({sample.group for sample in samples}) == len(samples)


def test_groups_are_read_from_a_file(tmp_path: Path) -> None:
    make(tmp_path, *FILES)
    rows = "file,group\nEOSINOPHIL/b.png,slide 1\nOTHER/platelet/g.tif,slide 1\n"
    (tmp_path / "groups.csv").write_text(rows)
    samples = by_name(read_folder(tmp_path))
    assert samples["b.png"].group == samples["g.tif"].group == "slide 1"
    assert samples["h.png"].group == "OTHER/platelet/h.png"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,patient\nEOSINOPHIL/b.png,1\n", "columns file,group"),
        ("file\nEOSINOPHIL/b.png\n", "columns file,group"),
        ("file,group,slide\nEOSINOPHIL/b.png,1,2\n", "columns file,group"),
        ("EOSINOPHIL/b.png,1\nEOSINOPHIL/a.JPG,1\n", "columns file,group"),
        ("file;group\nEOSINOPHIL/b.png;1\n", "columns file,group"),
        (
            "file,group\nEOSINOPHIL/b.png,1\nx.png,1\ny.png,1\n",
            "missing files: x.png, y.png",
        ),
        ("file,group\nb.png,1\n", "missing files: b.png"),
    ],
)
def test_a_wrong_file_of_groups_is_refused(tmp_path: Path, text: str, said: str) -> None:
    make(tmp_path, *FILES)
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_folder(tmp_path)


# Enough cells


@pytest.mark.parametrize("counts", [(4, 5, 5, 5), (5, 5, 5, 4), (9, 0, 9, 9), ()])
def test_each_class_needs_a_few_cells(counts: tuple[int, ...]) -> None:
    require([*range(4)] * MIN_CELLS)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    lacking = next(at for at in range(4) if labels.count(at) < MIN_CELLS)
    with pytest.raises(DataError, match=rf"{CLASSES[lacking]} has [0-4] cells; each class needs"):
        require(labels)


# The second laboratory


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of made-up files with a list of its own."""
    here, root = tmp_path / "training", make(tmp_path / "cells", *FILES)
    here.mkdir()
    rows = [f"{name},{'test' if at % 3 == 0 else 'train'}" for at, name in enumerate(FILES[:-1])]
    (here / "pbc.csv").write_text("\n".join(["file,part", *rows]) + "\n")
    monkeypatch.setattr(laboratories, "HERE", here)
    monkeypatch.setenv("PBC_DATA", str(root))
    return root


@pytest.mark.usefixtures("made_up")
def test_images_train_or_test() -> None:
    train, test = (set(by_name(pbc(part))) for part in ("train", "test"))
    assert test == {"b.png", "d.webp", "g.tif"}
    assert train == {"a.JPG", "c.tiff", "e.bmp", "f.jpeg"}


def test_missing_images_are_refused(made_up: Path) -> None:
    (made_up / FILES[0]).unlink()
    with pytest.raises(DataError, match=r"lacks 1 of the images in pbc\.csv"):
        pbc("train")


@pytest.mark.parametrize("where", [None, "", "nowhere"])
def test_a_missing_set_is_refused(
    made_up: Path, monkeypatch: pytest.MonkeyPatch, where: str | None
) -> None:
    if where is None:
        monkeypatch.delenv("PBC_DATA")
    else:
        monkeypatch.setenv("PBC_DATA", where and str(made_up / where))
    with pytest.raises(DataError, match=r"Set PBC_DATA .*10\.17632/snkd93bnjr\.1"):
        pbc()


def test_the_committed_list_has_both_parts_of_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (data.HERE / "pbc.csv").open() as file:
        names = [line.split(",")[0] for line in file][1:]
    monkeypatch.setenv("PBC_DATA", str(make(tmp_path, *names)))
    train, test = (Counter(sample.label for sample in pbc(part)) for part in ("train", "test"))
    assert train.total() + test.total() == len(names)
    for label in (*range(len(CLASSES)), OTHER):
        assert train[label] > test[label] >= MIN_CELLS


# The photographs


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data set of four made-up photographs, with a list of its own."""
    here = tmp_path / "training"
    here.mkdir()
    (here / "photographs.csv").write_text(
        "P1,NEUTROPHIL,TRAIN,G1\nP2,EOSINOPHIL,TEST,G2\nP3,MONOCYTE,TRAIN,G1\nP4,,unused,G4\n"
    )
    monkeypatch.setattr(data, "HERE", here)
    return tmp_path / "set"


def annotate(root: Path, name: str, *drawn: tuple[str, tuple[int, int, int, int]]) -> None:
    objects = "".join(
        f"<object><name>{kind}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for kind, box in drawn
    )
    path = root / "dataset-master" / "Annotations" / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{objects}</annotation>")


CELL, SECOND, SPECK = (100, 50, 260, 220), (300, 10, 351, 40), (10, 10, 60, 60)


@pytest.mark.parametrize(
    ("splits", "names"),
    [(("TRAIN",), ["P1", "P3"]), (("TEST",), ["P2"]), (("TRAIN", "TEST"), ["P1", "P2", "P3"])],
)
def test_photographs_of_a_split_are_listed(
    photographs: Path, splits: tuple[str, ...], names: list[str]
) -> None:
    samples = data.photographs(photographs, *splits)
    assert [sample.path.stem for sample in samples] == names


def test_a_photograph_has_a_label_and_a_group(photographs: Path) -> None:
    [sample] = data.photographs(photographs, "TEST")
    assert (sample.label, sample.kind, sample.group) == (0, "EOSINOPHIL", "G2")
    assert sample.path == photographs / "dataset-master" / "JPEGImages" / "P2.jpg"


def test_a_folder_that_is_there_twice_is_found(photographs: Path) -> None:
    outer = photographs / "dataset-master" / "dataset-master"
    outer.mkdir(parents=True)
    assert data.photograph_file(photographs, "P1") == outer / "JPEGImages" / "P1.jpg"


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ((("RBC", (1, 2, 90, 99)), ("WBC", CELL), ("WBC", SECOND)), [CELL, SECOND]),
        ((("WBC", SPECK), ("WBC", CELL), ("Platelets", CELL)), [CELL]),
        ((("WBC", SPECK),), None),
        ((("RBC", CELL),), None),
        ((), None),
        (None, None),
    ],
)
def test_boxes_too_small_or_of_other_cells_are_left_out(
    photographs: Path, drawn: Any, expected: list[Box] | None
) -> None:
    if drawn is not None:
        annotate(photographs, "P1", *drawn)
    assert data.white_cells(photographs, "P1") == expected


def test_photographs_with_boxes_are_listed_whatever_their_split(photographs: Path) -> None:
    annotate(photographs, "P2", ("WBC", CELL))
    annotate(photographs, "P4", ("WBC", SECOND))
    located = data.located_photographs(photographs)
    assert [(path.stem, *rest) for path, *rest in located] == [
        ("P2", "TEST", "G2", [CELL]),
        ("P4", "unused", "G4", [SECOND]),
    ]


@pytest.mark.parametrize(("split", "count"), [("TRAIN", 277), ("TEST", 71)])
def test_the_list_has_every_photograph_that_images_stem_from(split: str, count: int) -> None:
    listed = data.photographs(Path("nowhere"), split)
    assert len(listed) == count
    images = data.list_images(Path("nowhere"), split)
    assert {image.photograph for image in images} == {sample.path.stem for sample in listed}
    labels = {sample.path.stem: sample.label for sample in listed}
    assert all(labels[image.photograph] == image.label for image in images)

"""Folders of labelled cells: of any laboratory, of PBC, and the photographs."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from handler.preprocessing import Box
from serving.settings import ROOT
from training import data, laboratories
from training.data import OTHER, DataError
from training.laboratories import read_folder, require
from training.protocol import CLASSES, MIN_CELLS

FILES = (
    "EOSINOPHIL/b.png",
    "EOSINOPHIL/a.JPG",
    "LYMPHOCYTE/c.tiff",
    "MONOCYTE/d.webp",
    "NEUTROPHIL/e.bmp",
    "OTHER/f.jpeg",
    "OTHER/platelet/g.tif",
    "OTHER/platelet/h.png",
    "OTHER/basophil/i.png",
    "BASOPHIL/slide 1/j.png",
)


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_a_folder_is_a_class_and_a_kind(tmp_path: Path) -> None:
    """Files that are not images are skipped. Basophils are a class, wherever they are."""
    samples = read_folder(make(tmp_path, *FILES, "notes.txt", "EOSINOPHIL/Thumbs.db"))
    assert [(each.path.name, each.label, each.kind) for each in samples] == [
        ("j.png", 4, "BASOPHIL"),
        ("a.JPG", 0, "EOSINOPHIL"),
        ("b.png", 0, "EOSINOPHIL"),
        ("c.tiff", 1, "LYMPHOCYTE"),
        ("d.webp", 2, "MONOCYTE"),
        ("e.bmp", 3, "NEUTROPHIL"),
        ("i.png", 4, "BASOPHIL"),
        ("f.jpeg", OTHER, "OTHER"),
        ("g.tif", OTHER, "platelet"),
        ("h.png", OTHER, "platelet"),
    ]


@pytest.mark.parametrize("name", ["BLAST", "eosinophil"])
def test_an_unknown_class_is_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path, *FILES, f"{name}/a.png")
    with pytest.raises(DataError, match=rf"unknown classes.*{name}.*EOSINOPHIL.*OTHER"):
        read_folder(tmp_path)


def test_an_image_without_a_group_is_its_own(tmp_path: Path) -> None:
    make(tmp_path, *FILES, "NEUTROPHIL/a.JPG")
    samples = read_folder(tmp_path)
    assert len({sample.group for sample in samples}) == len(samples)
    rows = "file,group\nEOSINOPHIL/b.png,slide 1\nOTHER/platelet/g.tif,slide 1\n"
    (tmp_path / "groups.csv").write_text(rows)
    groups = {sample.path.name: sample.group for sample in read_folder(tmp_path)}
    assert groups["b.png"] == groups["g.tif"] == "slide 1"
    assert groups["h.png"] == "OTHER/platelet/h.png"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,patient\nEOSINOPHIL/b.png,1\n", "columns file,group"),
        ("file;group\nEOSINOPHIL/b.png;1\n", "columns file,group"),
        ("file,group\nEOSINOPHIL/b.png,1\nx.png,1\nb.png,1\n", "missing files: b.png, x.png"),
    ],
)
def test_a_wrong_file_of_groups_is_refused(tmp_path: Path, text: str, said: str) -> None:
    make(tmp_path, *FILES)
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_folder(tmp_path)


@pytest.mark.parametrize(("counts", "lacking"), [((4, 5, 5, 5), 0), ((9, 0, 9, 9, 9), 1), ((), 0)])
def test_each_class_needs_a_few_cells(counts: tuple[int, ...], lacking: int) -> None:
    """Except basophils."""
    require([*range(4)] * MIN_CELLS)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    with pytest.raises(DataError, match=rf"{CLASSES[lacking]} has [0-4] cells; each class needs"):
        require(labels)


@pytest.mark.parametrize("where", [None, "", "nowhere"])
def test_a_missing_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str | None
) -> None:
    if where is None:
        monkeypatch.delenv("PBC_DATA", raising=False)
    else:
        monkeypatch.setenv("PBC_DATA", where and str(tmp_path / where))
    with pytest.raises(DataError, match=r"Set PBC_DATA .*10\.17632/snkd93bnjr\.1"):
        laboratories.laboratories()["pbc"].samples()


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


def test_photographs_of_a_split_are_listed(photographs: Path) -> None:
    train, both = (data.photographs(photographs, *each) for each in (["TRAIN"], ["TRAIN", "TEST"]))
    assert [sample.path.stem for sample in train] == ["P1", "P3"]
    assert [sample.path.stem for sample in both] == ["P1", "P2", "P3"]
    assert (both[1].label, both[1].kind, both[1].group) == (0, "EOSINOPHIL", "G2")
    assert both[1].path == photographs / "dataset-master" / "JPEGImages" / "P2.jpg"


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ((("RBC", (1, 2, 90, 99)), ("WBC", CELL), ("WBC", SECOND)), [CELL, SECOND]),
        ((("WBC", SPECK), ("WBC", CELL), ("Platelets", CELL)), [CELL]),
        ((("WBC", SPECK), ("RBC", CELL)), None),
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


BOXES = "image,label,x_center,y_center,width,height (share of frame)\n"


def test_an_image_with_boxes_has_several_cells(tmp_path: Path) -> None:
    """Bands are neutrophils, and the labels of the boxes count, not the image's folder."""
    make(tmp_path, "NEUTROPHIL/a.jpg", "OTHER/blast/b.jpg", "NEUTROPHIL/without.jpg")
    rows = "a.jpg,band,0.5,0.5,0.2,0.4\na.jpg,blast,0.1,0.1,0.2,0.2\nb.jpg,Monocyte,0.5,0.5,1,1\n"
    (tmp_path / "boxes.csv").write_text(BOXES + rows)
    samples = read_folder(tmp_path)
    assert [(each.path.name, each.label, each.kind, each.group) for each in samples] == [
        ("a.jpg", CLASSES.index("NEUTROPHIL"), "NEUTROPHIL", "NEUTROPHIL/a.jpg"),
        ("a.jpg", OTHER, "blast", "NEUTROPHIL/a.jpg"),
        ("b.jpg", CLASSES.index("MONOCYTE"), "MONOCYTE", "OTHER/blast/b.jpg"),
    ]
    assert samples[0].box == pytest.approx((0.4, 0.3, 0.6, 0.7))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,label\na.jpg,band\n", "should have the columns image,label,x_center"),
        (f"{BOXES}b.jpg,band,0.5,0.5,1,1\n", r"boxes\.csv lists a missing file: b\.jpg"),
        (f"{BOXES}a.jpg,band,0.5,,1,1\n", r"boxes\.csv has a box of a\.jpg without numbers"),
    ],
)
def test_wrong_boxes_are_refused(tmp_path: Path, text: str, said: str) -> None:
    make(tmp_path, "NEUTROPHIL/a.jpg")
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_folder(tmp_path)


def test_images_with_boxes_need_different_names(tmp_path: Path) -> None:
    """A box names its image without the folder."""
    make(tmp_path, "NEUTROPHIL/a.jpg", "MONOCYTE/a.jpg")
    (tmp_path / "boxes.csv").write_text(f"{BOXES}a.jpg,band,0.5,0.5,1,1\n")
    with pytest.raises(DataError, match="each image needs a name of its own"):
        read_folder(tmp_path)


def test_a_slide_is_a_group(tmp_path: Path) -> None:
    names = "95-8-27-1_17_4.jpg", "95-8-27-1_3_1.jpg", "95-8-27-10_1.jpg", "other.jpg"
    make(tmp_path, *(f"NEUTROPHIL/{name}" for name in names))
    samples = read_folder(tmp_path, laboratories.laboratories()["raabin"].slide)
    groups = {sample.path.name: sample.group for sample in samples}
    assert groups[names[0]] == groups[names[1]] == "95-8-27-1"
    assert groups[names[2]] == "95-8-27-10"
    assert groups["other.jpg"] == "NEUTROPHIL/other.jpg"


def test_a_laboratory_is_found_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rvpbs = laboratories.laboratories()["rvpbs"]
    monkeypatch.setenv("LABORATORIES_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"Set LABORATORIES_DATA .* the folder rvpbs: https://"):
        rvpbs.samples()
    make(tmp_path / "rvpbs", "NEUTROPHIL/a.jpg")
    assert [sample.kind for sample in rvpbs.samples()] == ["NEUTROPHIL"]


def test_the_docs_list_every_laboratory() -> None:
    """`make data` writes the table."""
    text = (ROOT / "docs" / "training.md").read_text()
    listed = text.split("<!-- laboratories:")[1].split("<!-- end of laboratories")[0]
    for each in laboratories.laboratories().values():
        for fact in (each.title, each.stain, each.camera, each.licence, each.source, each.use):
            assert fact in listed


@pytest.mark.usefixtures("blood_cells")
def test_the_docs_count_the_cells() -> None:
    cells = {}
    for name, each in laboratories.laboratories().items():
        try:
            cells[name] = Counter(sample.kind for sample in each.samples())
        except DataError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
    assert laboratories.as_table(cells) in (ROOT / "docs" / "training.md").read_text()

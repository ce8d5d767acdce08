"""Labelled cells: where they are found, and how they are cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import painted
import pytest
from painted import box_of, paint
from PIL import Image

from handler.cells import window
from handler.locator import Located
from handler.preprocessing import HEIGHT, WIDTH, Pixels, cut
from training import crops
from training.crops import PATCH, CellSet, collect, large, middle, middle_box, windows
from training.data import OTHER, DataError, Sample
from training.networks import Locator
from training.protocol import CLASSES

LEFT, MIDDLE, RIGHT = (
    Located((0, 40, 60, 80), 0.9),
    Located((70, 50, 90, 70), 0.6),
    Located((100, 0, 140, 50), 0.8),
)
COVERING = Located((75, 40, 120, 100), 0.5)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([LEFT, RIGHT, MIDDLE], MIDDLE),
        ([LEFT, MIDDLE, COVERING], MIDDLE),
        ([LEFT, COVERING], COVERING),
        ([LEFT, RIGHT], None),
        ([], None),
    ],
)
def test_the_labelled_cell_is_the_one_in_the_middle(
    cells: list[Located], expected: Located | None
) -> None:
    assert middle(cells, (160, 120)) == expected


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Return painted images, the second of another size and the third without any cell."""
    made = []
    for at, field in enumerate([paint(0), paint(1, 1, 360, 270), np.zeros((9, 9, 3), np.uint8)]):
        path = tmp_path / f"{at}.png"
        Image.fromarray(field).save(path)
        made.append(Sample(path, at, CLASSES[at], f"group {at}"))
    return made


@pytest.fixture(autouse=True)
def known_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find cells where they are painted, and a more likely one elsewhere."""

    def find(_locator: Locator, fields: Sequence[Pixels]) -> list[list[Located]]:
        return [
            [Located((0, 0, 20, 20), 0.9), Located(box_of(field), 0.5)] if field.any() else []
            for field in fields
        ]

    monkeypatch.setattr(crops, "locate", find)


def test_labelled_cells_are_cut_out_where_they_are_found(samples: list[Sample]) -> None:
    cells = collect(samples, "here", Locator())
    assert cells.labels.tolist() == [0, 1]
    assert cells.kinds.tolist() == ["EOSINOPHIL", "LYMPHOCYTE"]
    assert cells.groups.tolist() == ["group 0", "group 1"]
    assert cells.names.tolist() == ["0.png", "1.png"]
    assert cells.laboratories.tolist() == ["here"] * 2
    assert cells.patches.shape == (2, PATCH, PATCH, 3)
    assert cells.boxes[0].tolist() == pytest.approx([3 / 8, 1 / 3, 5 / 8, 2 / 3])
    both = CellSet.join([cells, painted.cells([2], laboratory="elsewhere")])
    assert both.labels.tolist() == [0, 1, 2]
    assert both.identity not in (cells.identity, both.take(np.array([0, 2])).identity)
    with pytest.raises(DataError, match=r"No white cell was found in any of the 1 images\."):
        collect(samples[2:], "here", Locator())


def test_a_drawn_box_is_used_as_it_is(samples: list[Sample]) -> None:
    box = (0.1, 0.2, 0.3, 0.4)
    cells = collect([replace(samples[0], box=box), samples[0]], "here", Locator())
    assert cells.boxes[0].tolist() == pytest.approx(box)
    assert (cells.patches[0] != cells.patches[1]).any()
    black = collect([replace(samples[2], box=box)], "here", Locator())
    assert not black.patches.any()


def test_the_window_of_a_patch_is_what_the_service_sees(samples: list[Sample]) -> None:
    field = crops.read(samples[1].path).pixels
    served = cut(field, window(box_of(field)), (WIDTH, HEIGHT)).astype(int)
    [seen] = windows(collect(samples[1:2], "here", Locator()).patches).astype(int)
    assert seen.shape == (HEIGHT, WIDTH, 3)
    off = abs(seen - served).mean()
    assert off < 2
    assert all(abs(np.roll(seen, 4, axis) - served).mean() > 2 * off for axis in (0, 1))


def test_large_images_are_reduced_before_they_are_cut() -> None:
    assert large((640, 480)) == (640, 480)
    assert large((6400, 3200)) == (1600, 800)
    assert large((100_000, 1)) == (1600, 1)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.png can't be read"):
        middle_box(tmp_path / "a.png", lambda canvases: canvases)
    with pytest.raises(DataError, match=r"b\.png can't be read"):
        crops.read(tmp_path / "b.png")


def test_touching_is_sharing_a_point() -> None:
    box = (10, 10, 20, 20)
    assert crops._touches(box, [(100, 100, 110, 110), (20, 20, 30, 30)])
    assert not crops._touches(box, [(21, 0, 30, 30), (0, 21, 30, 30)])
    assert not crops._touches(box, [])


def test_other_cells_have_the_last_label() -> None:
    assert painted.cells([OTHER]).kinds.tolist() == ["other"]
    assert len(CLASSES) == OTHER

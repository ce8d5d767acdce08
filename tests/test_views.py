"""Augmented views: what they show, and which of them a run may use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import painted
import pytest
import torch

from handler.preprocessing import HEIGHT, WIDTH
from training import views, workers
from training.crops import CellSet, windows
from training.data import OTHER
from training.networks import to_input
from training.protocol import CLASSES
from training.views import NO_PARTNER, VIEW, Views, choose, draw, nudge, views_of


def unchanged(images: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return images


def not_turned(count: int, *_: object, **__: object) -> torch.Tensor:
    return torch.eye(2).repeat(count, 1, 1)


def test_training_sees_what_the_service_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from the draws: the same window of the same cell."""
    for name in ("restain", "recolour", "recolour_slightly", "refocus"):
        monkeypatch.setattr(views, name, unchanged)
    monkeypatch.setattr(views, "turns", not_turned)
    monkeypatch.setattr(views, "SHIFT", 0.0)
    monkeypatch.setattr(views.torch, "rand", lambda *shape: torch.full(shape, 0.5))
    cells = painted.cells([0, 1, 2, 3])
    drawn = draw(cells.patches, [None] * 4)
    assert drawn.shape == (4, *VIEW, 3)
    served = to_input(windows(cells.patches))
    seen = nudge(drawn)
    assert seen.shape == served.shape == (4, 3, HEIGHT, WIDTH)
    assert (seen - served).abs().mean() < 0.02
    assert (seen.flip(3) - served).abs().mean() > 3 * (seen - served).abs().mean()


def test_views_differ_and_are_reproducible() -> None:
    cells = painted.cells([0, 0, 0, 1])
    patches = cells.patches[[0, 0, 0]]
    torch.manual_seed(0)
    one = draw(patches, [None, cells.patches[3], None])
    torch.manual_seed(0)
    assert (draw(patches, [None, cells.patches[3], None]) == one).all()
    torch.manual_seed(0)
    other = draw(patches, [None, None, None])
    assert [(one[at] != other[at]).any() for at in range(3)] == [False, True, False]
    assert (one[0] != one[2]).any()
    torch.manual_seed(0)
    again = nudge(one)
    assert 0 <= again.min() <= again.max() <= 1
    assert (again - nudge(one)).abs().mean() > 1e-3


def many() -> CellSet:
    """Return cells of a large and a small laboratory, and windows without a cell."""
    labels = [0] * 80 + [1] * 20 + [0] * 5 + [OTHER] * 10
    cells = painted.cells([0, 1, OTHER]).take(np.array([min(each, 2) for each in labels]))
    cells.labels = np.array(labels)
    cells.laboratories = np.array(["large"] * 100 + ["small"] * 5 + ["empty"] * 10)
    cells.kinds = np.array(["some"] * 105 + ["no_wbc"] * 10)
    return cells


def test_classes_are_drawn_equally_often_and_small_laboratories_more_often() -> None:
    cells = many()
    chosen, _partners = choose(cells, 20_000, np.random.default_rng(0))
    times = np.bincount(chosen, minlength=115)
    for label in (0, 1, OTHER):
        assert times[cells.labels == label].sum() / 20_000 == pytest.approx(1 / 3, abs=0.02)
    assert times[100:105].mean() / times[:80].mean() == pytest.approx(16**0.6, rel=0.1)


def test_partners_are_cells_of_the_same_class_of_another_laboratory() -> None:
    cells = many()
    chosen, partners = choose(cells, 20_000, np.random.default_rng(0))
    paired = partners != NO_PARTNER
    assert (cells.labels[chosen[paired]] == cells.labels[partners[paired]]).all()
    assert (cells.laboratories[chosen[paired]] != cells.laboratories[partners[paired]]).all()
    # Only class 0 has cells in two laboratories; half of its views are re-stained.
    assert set(cells.labels[partners[paired]]) == {0}
    assert paired.mean() == pytest.approx(0.5 / 3, abs=0.02)


def test_rare_classes_are_drawn_less() -> None:
    cells = many()
    cells.labels[cells.labels == 1] = CLASSES.index("BASOPHIL")
    chosen, _partners = choose(cells, 20_000, np.random.default_rng(0))
    share = (cells.labels[chosen] == CLASSES.index("BASOPHIL")).mean()
    assert share == pytest.approx(0.3 / 2.3, abs=0.02)


def test_a_run_uses_views_of_cells_and_partners_that_it_may_see() -> None:
    drawn = Views(
        np.zeros((5, 1)), np.array([0, 0, 1, 1, 2]), np.array([NO_PARTNER, 1, NO_PARTNER, 2, 0])
    )
    assert drawn.seen(np.array([True, False, True])).tolist() == [0, 4]
    assert drawn.seen(np.array([False, True, True])).tolist() == [2, 3]


def test_views_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 1)
    cells = painted.cells([0, 1, 2, 3])
    (tmp_path / "cells").mkdir()
    np.save(tmp_path / "cells" / "patches.npy", cells.patches)
    first = views_of(cells, 12, tmp_path / "views")
    monkeypatch.setattr(views, "draw", None)
    again = views_of(cells, 12, tmp_path / "views")
    assert (first.pixels == again.pixels).all()
    assert (first.cells == again.cells).all()
    assert len(first.partners) == 12

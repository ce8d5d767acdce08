"""A head on few labelled cells: what it learns from, what it is tested on, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training import few_cells, version_files
from training.__main__ import main
from training.crossvalidate import EMBEDDINGS
from training.data import DataError
from training.few_cells import Embedded, blend, draw, grid, head, measure_few_cells, recall
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES


def cells(laboratory: str, count: int = 240, apart: float = 3.0, classes: int = 4) -> Embedded:
    """Make cells whose embeddings tell the class, and whose logits do not."""
    random = np.random.default_rng(len(laboratory))
    labels = np.arange(count) % classes
    embeddings = random.normal(0, 1, (count, 8))
    embeddings[np.arange(count), labels] += apart
    groups = np.array([f"{laboratory} {at // 3}" for at in range(count)])
    logits = random.normal(0, 1, (count, 5)).astype(np.float32)
    where = np.full(count, laboratory)
    return Embedded(where, labels, groups, logits, embeddings.astype(np.float32))


@pytest.mark.parametrize("count", [5, 10, 25])
def test_groups_are_never_on_both_sides(count: int) -> None:
    part = cells("here", classes=5)
    for seed in range(5):
        labelled, unseen = draw(part.labels, part.groups, count, seed)
        assert np.bincount(part.labels[labelled]).tolist() == [min(count, 24)] * 5
        assert not set(part.groups[labelled]) & set(part.groups[unseen])
        assert not set(labelled) & set(unseen)
    again, _ = draw(part.labels, part.groups, count, seed)
    other, _ = draw(part.labels, part.groups, count, seed + 1)
    assert again.tolist() == labelled.tolist() != other.tolist()


def test_a_rare_class_keeps_half_of_its_cells() -> None:
    labels = np.array([0] * 20 + [1] * 6)
    labelled, unseen = draw(labels, np.arange(26), 5, 0)
    assert np.bincount(labels[labelled]).tolist() == [5, 3]
    assert np.bincount(labels[unseen]).tolist() == [15, 3]


def test_a_head_learns_the_classes_that_it_is_shown() -> None:
    part = cells("here")
    labelled, unseen = draw(part.labels, part.groups, 10, 0)
    scores = head(part.take(labelled), part.embeddings[unseen], 0.05)
    assert recall(part.labels[unseen], scores) > 0.85
    assert (scores[:, 4] == -np.inf).all()
    # Neither scale nor place of the embeddings matters.
    part.embeddings = part.embeddings * 7 + 3
    moved = head(part.take(labelled), part.embeddings[unseen], 0.05)
    assert moved[:, :4] == pytest.approx(scores[:, :4], abs=1e-2)


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 0), (1.0, 1)])
def test_the_networks_answer_counts_by_its_weight(weight: float, expected: int) -> None:
    scores = blend(np.log([[0.6, 0.4]]), np.array([[0.0, 3.0]]), weight)
    assert scores.argmax() == expected


def test_more_cells_are_better_and_the_network_without_skill_is_ignored() -> None:
    part = cells("here", apart=2.0)
    measured = grid(part, "")
    assert measured.shape == (3, 16)
    assert few_cells.GRID[few_cells.best([measured])][1] == 0
    at = few_cells.best([measured])
    assert measured[0, at] < measured[2, at]


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of a laboratory is chosen on the others; only cells that were found count."""
    monkeypatch.setattr(version_files, "ROOT", tmp_path)
    monkeypatch.setattr(version_files, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(few_cells, "DRAWS", 2)
    for folder in (version_files.folder("9.0"), version_files.scratch("9.0")):
        folder.mkdir(parents=True)
    thresholds = {"foreign": 1.0, "confident": 0.9}
    card = {"classes": CLASSES, "temperature": 1.5, "thresholds": thresholds}
    (version_files.folder("9.0") / "card.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match=r"make train VERSION=9\.0"):
        measure_few_cells("9.0")
    parts = [cells("pbc", classes=5), cells("raabin")]
    # The network knows PBC's cells, a head none of them.
    parts[0].logits[:, :5] = 9 * np.eye(5)[parts[0].labels]
    parts[0].embeddings = np.random.default_rng(0).normal(0, 1, parts[0].embeddings.shape)
    parts[0].embeddings[:5] = 0
    every = Embedded.join(parts)
    count = len(every.labels)
    names, found = every.groups, every.embeddings.any(1)
    folds, first = np.full(count, -1), np.ones(count, bool)
    rows = names, every.laboratories, names, every.labels, every.groups, folds, found, every.logits
    # The photographs of the folds have no embeddings.
    more = OutOfFold(*(np.append(column, column[:1], 0) for column in (*rows, first)))
    more.folds[-1] = 0
    more.save(version_files.folder("9.0") / "out_of_fold.npz")
    with pytest.raises(DataError, match=r"make train VERSION=9\.0"):
        measure_few_cells("9.0")
    (version_files.scratch("9.0") / EMBEDDINGS).mkdir()
    for part in parts:
        name = f"{part.laboratories[0]}.npy"
        np.save(version_files.scratch("9.0") / EMBEDDINGS / name, part.embeddings)
    main(["few-cells", "--version", "9.0"], standalone_mode=False)
    written = json.loads((version_files.folder("9.0") / "few_cells.json").read_text())
    pbc, raabin = (written["laboratories"][name] for name in ("pbc", "raabin"))
    assert pbc["recipe"]["weight"] == 0 < raabin["recipe"]["weight"]
    assert len(pbc["classes"]) == 5
    assert [point["cells_a_class"] for point in pbc["points"]] == [0, 5, 10, 25]
    assert pbc["points"][0]["macro_recall"] == 1

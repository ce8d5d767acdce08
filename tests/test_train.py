"""Version 3.0 from folders of images to files that serve: a small training on painted cells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import painted
import pytest

from handler import pipelines
from handler.preprocessing import decode
from handler.verdict import Cell, Prediction
from training import (
    crossvalidate,
    data,
    fitting,
    laboratories,
    runs,
    train,
    version_files,
    workers,
)
from training.cropped import SHARES
from training.data import OTHER, DataError, Sample
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES, FIELD_CLASSES
from training.recipes import RECIPES, CellRecipe, Fit, LocatorRecipe
from training.runs import SHIPPED, Run, all_runs, parts_of

# Too few steps to learn anything.
STEPS = Fit(4, 4, 4e-3, 0.02, decay=0.8, mean_from=0.5)
FIRST = LocatorRecipe(STEPS, 24, cell_sizes=(0.2, 0.4), quantized=False)
RECIPE = CellRecipe(channels=(8, 16), fit=STEPS, views=60, locator=FIRST)
FOLDS = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    painted.write_laboratories(root, photographs=3, images=1)
    return root


@pytest.fixture(autouse=True)
def _small(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BLOOD_CELLS_DATA", "LABORATORIES_DATA"):
        monkeypatch.setenv(name, str(world))
    for module in (data, laboratories):
        monkeypatch.setattr(module, "HERE", world)
    for module in (runs, crossvalidate):
        monkeypatch.setattr(module, "FOLDS", FOLDS)
    monkeypatch.setattr(version_files, "ROOT", world)
    monkeypatch.setattr(version_files, "SCRATCH", world / ".train")
    monkeypatch.setattr(train, "FIRST_LOCATOR", FIRST)
    monkeypatch.setattr(fitting, "ROW", 2)
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 1)
    monkeypatch.setitem(RECIPES, "3.0", RECIPE)
    for cached in (laboratories.laboratories, runs._photograph_parts, train.prepare):
        cached.cache_clear()
    yield
    for cached in (laboratories.laboratories, runs._photograph_parts, train.prepare):
        cached.cache_clear()


def test_each_run_sees_what_it_may() -> None:
    names = ["photographs", "photographs", "photographs", "boxed", "middle"]
    parts = parts_of(names, ["P00.jpg", "P01.jpg", "P02.jpg", "a.png", "b.png"])
    assert [part.split()[0] for part in parts] == names
    assert SHIPPED.sees(parts).tolist() == [False, True, True, True, True]
    assert Run("", laboratory="boxed").sees(parts).tolist() == [False, True, True, False, True]
    assert not Run("", laboratory="photographs").sees(parts)[:3].any()
    folds = [Run("", fold=fold).sees(parts) for fold in range(FOLDS)]
    # Each photograph is held out by one fold, also of TEST.
    assert (np.sum(folds, 0) == [1, 1, 1, 2, 2]).all()
    assert [run.name for run in all_runs()] == [
        *("shipped", "without-photographs", "without-boxed", "without-middle"),
        *("fold-0", "fold-1"),
    ]
    assert runs.select(["shipped"]) == [SHIPPED]
    with pytest.raises(DataError, match="Unknown runs: fold-9"):
        runs.select(["shipped", "fold-9"])


def test_a_laboratory_whose_name_begins_like_another_is_not_left_out() -> None:
    parts = np.array(["pbc", "pbc-2", "photographs fold 1 TRAIN", "photographs fold 10 TRAIN"])
    assert Run("", laboratory="pbc").sees(parts).tolist() == [False, True, True, True]
    assert Run("", fold=1).sees(parts).tolist() == [True, True, False, True]


def test_from_folders_to_a_version_that_predicts(world: Path) -> None:
    """And to predictions of each laboratory by networks that never saw it."""
    trained = train.train_version("3.0")
    assert trained
    version_files.write("3.0", trained)
    folder = version_files.folder("3.0")
    card = json.loads((folder / "card.json").read_text())
    assert card["classes"] == list(CLASSES)
    assert card["embedding"] == 32
    assert {path.name for path in folder.iterdir()} == {
        *("card.json", "history.json", "locator.onnx", "network.onnx", "weights.pt")
    }
    pipeline = pipelines.load(folder, card, 4)
    image = decode(next((world / "middle").rglob("*.png")).read_bytes(), pipeline.fit)
    [prediction] = pipeline.predict([image])
    for cell in prediction.cells:
        assert len(cell.logits) == len(CLASSES) + 1

    crossvalidate.cross_validate("3.0")
    rows = OutOfFold.of("3.0")
    assert rows.logits.shape == (len(rows.names), len(CLASSES) + 1)
    # Of images without a drawn box, each cell has a row.
    left_out = rows.take(rows.folds < 0)
    assert left_out.first[left_out.laboratories != "middle"].all()
    images = left_out.take(left_out.first)
    assert {
        name: int((images.laboratories == name).sum()) for name in laboratories.laboratories()
    } == {
        "photographs": 12,
        "boxed": 6,
        "middle": 6,
        "empty": 0,
    }
    assert (images.labels == OTHER).sum() == 2
    folds = rows.take((rows.folds >= 0) & rows.first)
    assert len(folds.names) == 12
    assert set(folds.folds) == {0, 1}
    embeddings = {
        path.stem: np.load(path)
        for path in (version_files.scratch("3.0") / crossvalidate.EMBEDDINGS).iterdir()
    }
    assert {name: each.shape for name, each in embeddings.items()} == {
        name: ((left_out.laboratories == name).sum(), 32)
        for name in ("photographs", "boxed", "middle")
    }
    measured = json.loads((folder / "locator.json").read_text())["laboratories"]
    assert set(measured) == {"photographs", "boxed"}
    assert measured["boxed"]["boxes"] >= 6
    cropped = json.loads((folder / "cropped.json").read_text())["laboratories"]
    of_four = (images.laboratories == "boxed") & (images.labels < len(FIELD_CLASSES))
    assert [row["cells"] for row in cropped["boxed"]] == [of_four.sum()] * len(SHARES)

    # Runs that are named replace their own predictions only.
    marked = OutOfFold.of("3.0")
    marked.logits[:] = 77
    marked.save(folder / "out_of_fold.npz")
    version_files.write_json(
        folder / "locator.json", {"laboratories": {"photographs": "kept", "boxed": "old"}}
    )
    crossvalidate.cross_validate("3.0", ["without-boxed", "fold-1"])
    updated = OutOfFold.of("3.0")
    kept = (updated.logits == 77).all(1)
    assert set(updated.runs[kept]) == {"photographs -1", "photographs 0", "middle -1"}
    assert set(updated.runs[~kept]) == {"boxed -1", "photographs 1"}
    for run in np.unique(rows.runs):
        before, after = rows.take(rows.runs == run), updated.take(updated.runs == run)
        assert before.names.tolist() == after.names.tolist()
        assert (before.logits == after.logits).all() == (run in {"boxed -1", "photographs 1"})
    located = json.loads((folder / "locator.json").read_text())["laboratories"]
    assert located == {"photographs": "kept", "boxed": measured["boxed"]}


def test_without_a_box_a_label_may_be_about_any_cell() -> None:
    cells = [
        Cell([0.0] * 6, (0.0, 0.0, 40.0, 40.0)),
        Cell([9.0] * 6, (50.0, 50.0, 100.0, 100.0)),
    ]
    sample = Sample(Path(), 0, "", "")

    def candidates(sample: Sample) -> list[Cell]:
        return list(crossvalidate.candidates(sample, (100, 100), Prediction(cells)))

    assert candidates(sample) == cells
    assert candidates(replace(sample, box=(0.0, 0.0, 0.35, 0.4))) == cells[:1]
    assert candidates(replace(sample, box=(0.2, 0.2, 0.7, 0.7))) == []


def test_what_is_trained_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    train.train_version("3.0", ["shipped", "fold-1"])
    monkeypatch.setattr(fitting.Optimizer, "step", None)
    train.prepare.cache_clear()
    assert train.train_version("3.0", ["shipped"])
    assert train.train_version("3.0", ["fold-1"]) is None

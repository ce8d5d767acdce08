"""Training the whole-field network and its figures, on small data made by the tests."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VERSIONS

from serving.settings import ROOT
from training import sweep, version_files
from training.fields import Batch, Run, predict
from training.metrics import NOT_FOUND, balanced, confusion_by_photograph, summarize
from training.networks import BloodCellNet, to_input, to_planes
from training.protocol import FIELD_CLASSES
from training.recipes import FieldRecipe

SMALL = FieldRecipe(channels=(4, 4), pools=(4, 4), hidden=8, epochs=3, batch_size=16)


def coloured(count: int, seed: int = 0) -> Batch:
    """Make images whose class is the colour of a bright patch."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    pixels = random.integers(0, 60, (count, 60, 80, 3), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[20:40, 30:50, label % 3] += 120
        if label == 3:
            image[20:40, 30:50] += 60
    return Batch.of(pixels, labels)


def same_weights(one: BloodCellNet, other: BloodCellNet) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def network() -> BloodCellNet:
    return BloodCellNet(len(FIELD_CLASSES), **SMALL.network())


def test_evaluation_sees_what_the_service_sees() -> None:
    """`predict` measures, `to_input` feeds the handler: the same pixels, the same logits."""
    made = network()
    pixels = coloured(10).images.permute(0, 2, 3, 1).numpy()
    served = made.eval()(to_input(list(pixels)))
    assert served.shape == (10, len(FIELD_CLASSES))
    assert torch.allclose(predict(made, to_planes(pixels)), served, atol=1e-5)


def test_training_learns(tmp_path: Path) -> None:
    recipe = replace(SMALL, channels=(8, 8), epochs=6)
    run = Run(recipe, coloured(160), coloured(80, seed=1), 0, tmp_path / "run.pt")
    run.fit("learning")
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"]
    assert run.history[-1]["validation_accuracy"] > 0.5


def test_an_interrupted_run_continues_as_if_it_had_not_been(tmp_path: Path) -> None:
    """And a seed gives the same network."""
    images, held_out = coloured(16), coloured(8, seed=1)
    whole = Run(SMALL, images, held_out, 0, tmp_path / "whole.pt")
    whole.fit("whole")

    class InterruptedRun(Run):
        def _save(self) -> None:
            super()._save()
            if len(self.history) == 2:
                raise KeyboardInterrupt

    broken = InterruptedRun(SMALL, images, held_out, 0, tmp_path / "broken.pt")
    with pytest.raises(KeyboardInterrupt):
        broken.fit("broken")
    resumed = Run(SMALL, images, held_out, 0, tmp_path / "broken.pt")
    resumed.fit("resumed")
    assert resumed.history == whole.history
    assert same_weights(resumed.network, whole.network)


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    def run(recipe: FieldRecipe = SMALL, images: int = 0, seed: int = 0) -> Run:
        return Run(recipe, coloured(16, images), None, seed, tmp_path / "run.pt")

    run()._save()
    assert run().checkpoint.load()
    for other in (run(replace(SMALL, weight_decay=0.5)), run(images=9), run(seed=1)):
        assert other.checkpoint.load() is None


def test_balanced_weights_are_equal_for_laboratories_and_their_classes() -> None:
    laboratories = np.array(["a"] * 6 + ["b"] * 2)
    labels = np.array([0, 0, 0, 0, 0, 1, 0, 0])
    weights = balanced(laboratories, labels)
    assert weights[:5].sum() == pytest.approx(0.25)
    assert weights[5] == pytest.approx(0.25)
    assert weights[6:].sum() == pytest.approx(0.5)


def test_summary_of_a_known_case() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    predicted = np.array([0, 0, 1, 1, 1, 2, 3, 0])
    summary = summarize(confusion_by_photograph(labels, predicted, list("aabccdef")))
    assert summary["image_accuracy"]["value"] == 6 / 8
    # Photographs a and c to e are right, b and f wrong.
    assert summary["photograph_accuracy"]["value"] == pytest.approx(4 / 6, abs=1e-6)
    for figure in ("precision", "recall", "f1"):
        value = summary["classes"]["EOSINOPHIL"][figure]["value"]
        assert value == pytest.approx(2 / 3, abs=1e-6)
    assert summary["confusion"][0] == [2, 1, 0, 0]
    assert list(summary["classes"]) == summary["predicted"] == list(FIELD_CLASSES)
    macro_recall = (2 / 3 + 1 + 1 + 1 / 2) / 4
    assert summary["macro_recall"]["value"] == pytest.approx(macro_recall, abs=1e-6)


def test_a_class_without_images_and_cells_that_were_not_found() -> None:
    """Neither do images without a cell count as one of the classes, nor absent classes at all."""
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, NOT_FOUND, 1, 4])
    summary = summarize(confusion_by_photograph(labels, predicted, list("abcd")))
    assert list(summary["classes"]) == ["EOSINOPHIL", "LYMPHOCYTE"]
    assert summary["predicted"] == ["EOSINOPHIL", "LYMPHOCYTE", "BASOPHIL", "no cell"]
    assert summary["confusion"] == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert summary["macro_recall"]["value"] == 0.5
    assert summary["classes"]["EOSINOPHIL"]["precision"]["value"] == 1


def width(photographs: int, images_each: int) -> float:
    """Return the width of the interval where three quarters of the photographs are right."""
    names = [f"p{index:03}" for index in range(photographs) for _ in range(images_each)]
    wrong = np.arange(photographs) >= 3 * photographs // 4
    predicted = np.repeat(wrong, images_each).astype(np.int64)
    labels = np.zeros(len(names), np.int64)
    summary = summarize(confusion_by_photograph(labels, predicted, names))
    low, high = summary["image_accuracy"]["interval"]
    return float(high - low)


def test_only_more_photographs_narrow_the_interval() -> None:
    """For independent images the cluster bootstrap is the plain one."""
    forty, copies, more = width(40, 1), width(40, 50), width(400, 1)
    assert forty == pytest.approx(copies)
    assert more == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 400) ** 0.5, rel=0.08)
    assert more < 0.5 * forty


def test_choose_takes_the_smallest_that_equals_the_best() -> None:
    def result(right: int, work: int) -> dict[str, object]:
        counts = np.zeros((100, 4, 4))
        counts[:right, 0, 0] = counts[right:, 0, 1] = 1
        return {"accuracy": {"value": right / 100}, "multiply_adds": work, "counts": counts}

    results = [result(80, 900), result(79, 300), result(50, 100)]
    sweep.choose(results)  # type: ignore[arg-type]
    assert [each["chosen"] for each in results] == [False, True, False]


def test_a_new_training_removes_the_old_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_files, "ROOT", tmp_path)
    here = version_files.folder("9.0")
    (here / "plots").mkdir(parents=True)
    networks = {"network.onnx"}
    stays = {"model-config.yaml", "card.json", "history.json", "weights.pt", *networks}
    goes = {"metrics.json", "golden.json", "served.json", "adaptation.json", "out_of_fold.npz"}
    goes.add("locator.onnx")
    for name in (*stays, *goes, "plots/adaptation.png", "CARD.md"):
        (here / name).write_text("old")
    made = BloodCellNet(len(FIELD_CLASSES), [1, 1], [4, 4], 1, [0, 0])
    version_files.write("9.0", version_files.Trained({"network": made}, {"a": 1}, {"rows": []}))
    assert {path.name for path in here.iterdir()} == stays
    assert (here / "model-config.yaml").read_text() == "old"
    card = json.loads((here / "card.json").read_text())
    assert (card["version"], card["parameters"]) == (
        "9.0",
        sum(map(torch.numel, made.parameters())),
    )
    assert card["sha256"] == {
        name: hashlib.sha256((here / name).read_bytes()).hexdigest() for name in networks
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_the_committed_files_agree(version: str) -> None:
    folder = ROOT / "models" / version
    card, metrics = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("card", "metrics")
    )
    assert card["test_accuracy"] == metrics["test"]["image_accuracy"]
    assert card["temperature"] == metrics["temperature"]
    assert card["thresholds"] == metrics["thresholds"]


def test_the_shipped_network_is_the_one_that_was_chosen() -> None:
    folder = ROOT / "models" / "1.0"
    card, history, swept = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("card", "history", "sweep")
    )
    (chosen,) = (each for each in swept["networks"] if each["chosen"])
    assert chosen["network"] == card["network"]
    last = {seed: rows[-1]["validation_loss"] for seed, rows in history["seeds"].items()}
    assert history["chosen_seed"] == int(min(last, key=lambda seed: last[seed]))


# The order of a model's life: a module imports only those before it.
ORDER = re.findall(
    r"\w+",
    """
    protocol recipes table metrics data augment robustness out_of_distribution
    torchvision_cpu networks export optimizer workers checkpoints version_files fitting
    scenes laboratories runs crops locate views cells fields train
    out_of_fold cropped crossvalidate calibrate left_out predict evaluate served
    plots sweep few_cells adapt measured figures report __main__
    """,
)


def test_modules_import_only_those_before_them() -> None:
    modules = {path.stem: path for path in (ROOT / "training").glob("*.py")}
    assert set(ORDER) == modules.keys() - {"__init__"}
    for at, name in enumerate(ORDER):
        for node in ast.walk(ast.parse(modules[name].read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("training"):
                own = node.module.removeprefix("training").removeprefix(".")
                for imported in [own] if own else [alias.name for alias in node.names]:
                    assert imported in ORDER[:at], f"{name} imports {imported}"


def test_make_train_accepts_a_folder_with_blanks(tmp_path: Path) -> None:
    """With a stand-in for Python that writes its arguments."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path / 'arguments'}\n")
    python.chmod(0o755)
    variables = [f"BIN={tmp_path}", "FROM=2.0", "VERSION=3.0", 'CELLS=my lab\'s "cells"']
    command = ["make", "-C", str(ROOT), "-o", ".venv/dev.stamp", "train", *variables]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "arguments").read_text().splitlines() == [
        *("-m", "training", "adapt", "--from", "2.0"),
        *("--cells", 'my lab\'s "cells"', "--version", "3.0"),
    ]

"""Measure a version on TEST: `python -m training.evaluate --version 1.0`.

Writes metrics.json and plots/ to models/<version>/, the known answers of the drawn samples to
golden.json, and the accuracy to card.json, which goes into the archive. Changes no weights.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from handler.bloodcells_handler import Answer, answer, load_network
from handler.network import BloodCellNet
from handler.preprocessing import decode, to_input
from serving.golden import SAMPLES
from serving.settings import MODEL
from training import data, plots
from training.metrics import confusion_by_photograph, summarize
from training.train import ROOT, Batch, predict, write_json

# The version whose figures the README shows.
README_VERSION = "1.0"
# What the seed's README says of its own network: an accuracy, and a table per class. The mean
# recall of that table is .805, and TEST is balanced, so the two are not of one run.
SEED_PROJECT: dict[str, Any] = {
    "source": "github.com/HeitorCoimbra/blood-cells-cnn, README",
    "image_accuracy": 0.832,
    "image_accuracy_by_its_table": 0.805,
    "classes": {
        "EOSINOPHIL": {"precision": 0.72, "recall": 0.74, "f1": 0.73},
        "LYMPHOCYTE": {"precision": 0.97, "recall": 0.95, "f1": 0.96},
        "MONOCYTE": {"precision": 0.96, "recall": 0.76, "f1": 0.85},
        "NEUTROPHIL": {"precision": 0.64, "recall": 0.77, "f1": 0.70},
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate one version; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate")
    parser.add_argument("--version", default="1.0")
    version = parser.parse_args(arguments).version
    folder = ROOT / "models" / version
    try:
        root = data.data_root()
        card = json.loads((folder / "card.json").read_text())
        network = load_network(folder / "weights.pt", card)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, RuntimeError) as error:
        print(f"error: {error}\nRun `make train VERSION={version}` first.", file=sys.stderr)
        return 1
    test, train = (data.list_images(root, split) for split in ("TEST", "TRAIN"))
    metrics = evaluate(network, test, train, card["confident_from"])
    answers = answer_samples(network, card)
    card["test_accuracy"] = metrics["test"]["image_accuracy"]
    write_json(folder / "metrics.json", {"version": version, **metrics})
    write_json(folder / "card.json", card)
    golden = {name: said["probabilities"] for name, said in answers.items()}
    write_json(folder / "golden.json", golden)
    history = json.loads((folder / "history.json").read_text())
    draw(folder, metrics, history)
    figures = table(metrics, history, card["confident_from"])
    print(figures)
    if version == README_VERSION:
        example = f"```json\n{json.dumps(answers['neutrophil.png'])}\n```"
        write_readme({"figures": figures, "example": example})
    print(f"wrote {folder}")
    return 0


def evaluate(
    network: BloodCellNet,
    test: Sequence[data.Image],
    train: Sequence[data.Image],
    confident_from: float,
) -> dict[str, Any]:
    """Return every figure of a network on TEST, and without what TRAIN shows, too."""
    pixels, labels = data.load(test, "TEST")
    batch = Batch.of(pixels, labels, torch.device("cpu"))
    top, answers = predict(network, batch.images).softmax(1).max(1)
    predicted, confident = answers.numpy(), (top >= confident_from).numpy()
    photographs = [image.photograph for image in test]
    overlapping = data.fields_also_in_train(test, train)
    known_cells = np.array([name in data.CELLS_ALSO_IN_TRAIN for name in photographs])
    known_fields = np.array([name in overlapping for name in photographs])

    def on(keep: npt.NDArray[np.bool_]) -> dict[str, Any]:
        names = [name for name, kept in zip(photographs, keep, strict=True) if kept]
        return summarize(confusion_by_photograph(labels[keep], predicted[keep], names))

    return {
        "test": on(np.ones(len(test), dtype=bool)),
        "test_without_cells_also_in_train": on(~known_cells),
        "test_without_fields_also_in_train": on(~known_fields),
        "test_where_confident": on(confident),
        "seed_project": SEED_PROJECT,
    }


@torch.inference_mode()
def answer_samples(network: BloodCellNet, card: dict[str, Any]) -> dict[str, Answer]:
    """Return what the service says to each drawn sample, by its file."""
    answers = {}
    for path in sorted(SAMPLES.glob("*.png")):
        row = network(to_input([decode(path.read_bytes())])).softmax(1)[0].tolist()
        answers[path.name] = answer(MODEL, card, row)
    return answers


def draw(folder: Path, metrics: dict[str, Any], history: dict[str, Any]) -> None:
    """Draw the plots of a version."""
    (folder / "plots").mkdir(exist_ok=True)
    plots.confusion(metrics["test"]["confusion"], folder / "plots" / "confusion.png")
    plots.training_curves(history, folder / "plots" / "training.png")


def write_readme(parts: dict[str, str], path: Path = ROOT / "README.md") -> None:
    """Put what was measured between its marks in the README, so that it can't drift from it."""
    text = path.read_text()
    for name, content in parts.items():
        pattern = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        found = pattern.search(text)
        if not found:
            raise ValueError(f"{path.name} should hold the marks of {name}")
        text = f"{text[: found.end(1)]}{content}\n{text[found.start(2) :]}"
    path.write_text(text)


def table(metrics: dict[str, Any], history: dict[str, Any], confident_from: float) -> str:
    """Return the figures as the Markdown that the README shows."""
    seed, test = metrics["seed_project"], metrics["test"]
    sure = metrics["test_where_confident"]
    claimed = f"{seed['image_accuracy']:.1%} claimed"
    by_table = f"{seed['image_accuracy_by_its_table']:.1%} by its own table"
    rows = [
        ("accuracy by image", test["image_accuracy"], f"{claimed}, {by_table}"),
        ("accuracy by photograph", test["photograph_accuracy"], ""),
    ]
    for name, label in (
        ("test_without_cells_also_in_train", "by image, without cells that TRAIN shows, too"),
        ("test_without_fields_also_in_train", "by image, without fields that overlap TRAIN's"),
        ("test_where_confident", "by image, where the verdict is `confident`"),
    ):
        part = metrics[name]
        rows.append((f"{label} ({part['images']} images)", part["image_accuracy"], ""))
    lines = ["| TEST | this network (95 % interval) | the original's README |", "|---|---|---|"]
    lines += [f"| {label} | {_text(figure)} | {theirs} |" for label, figure, theirs in rows]
    lines += [
        "",
        "| class | precision | recall | F1 | the original's three | photographs |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in test["classes"].items():
        ours = " | ".join(_text(figures[key]) for key in ("precision", "recall", "f1"))
        theirs = ", ".join(f"{value:.0%}" for value in seed["classes"][name].values())
        lines.append(f"| {name.lower()} | {ours} | {theirs} | {figures['photographs']} |")
    last = [rows[-1] for rows in history["seeds"].values()]
    accuracies = ", ".join(f"{row['validation_accuracy']:.1%}" for row in last)
    losses = ", ".join(f"{row['validation_loss']:.2f}" for row in last)
    lines += [
        "",
        f"Trained from the random seeds {', '.join(history['seeds'])}, it reached {accuracies} "
        f"(loss {losses}) on the held-out third of TRAIN's photographs. Seed "
        f"{history['chosen_seed']}, of the lowest loss, was taken to train once more, on all of "
        "TRAIN: that is the network above. "
        f"It answers `confident`, from a probability of {confident_from:.0%} on, to "
        f"{sure['images'] / test['images']:.0%} of TEST.",
    ]
    return "\n".join(lines)


def _text(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "never"
    low, high = figure["interval"]
    return f"{figure['value']:.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    sys.exit(main())

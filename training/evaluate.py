"""Measure a version on TEST: `python -m training.evaluate --version 1.0`.

Writes metrics.json and plots/ to models/<version>/, the known answers of the drawn samples to
golden.json, and the accuracy to card.json, which goes into the archive. Changes no weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handler.bloodcells_handler import load_network
from handler.network import CLASSES, BloodCellNet
from handler.preprocessing import decode, to_input
from serving.golden import SAMPLES
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
    metrics = evaluate(network, data.list_images(root, "TEST"), data.list_images(root, "TRAIN"))
    card["test_accuracy"] = metrics["test"]["image_accuracy"]
    write_json(folder / "metrics.json", {"version": version, **metrics})
    write_json(folder / "card.json", card)
    write_json(folder / "golden.json", golden_answers(network))
    draw(folder, metrics)
    print(table(metrics))
    if version == README_VERSION:
        write_readme(table(metrics))
    print(f"wrote {folder}")
    return 0


def evaluate(
    network: BloodCellNet, test: Sequence[data.Image], train: Sequence[data.Image]
) -> dict[str, Any]:
    """Return every figure of a network on TEST, and without what TRAIN shows, too."""
    pixels, labels = data.load(test, "TEST")
    batch = Batch.of(pixels, labels, torch.device("cpu"))
    predicted = predict(network, batch.images).argmax(1).numpy()
    photographs = [image.photograph for image in test]

    def on(keep: Sequence[bool]) -> dict[str, Any]:
        mask = np.array(keep)
        names = [name for name, kept in zip(photographs, keep, strict=True) if kept]
        return summarize(confusion_by_photograph(labels[mask], predicted[mask], names))

    overlapping = data.fields_also_in_train(test, train)
    return {
        "test": on([True] * len(test)),
        "test_without_cells_also_in_train": on(
            [name not in data.CELLS_ALSO_IN_TRAIN for name in photographs]
        ),
        "test_without_fields_also_in_train": on([name not in overlapping for name in photographs]),
        "seed_project": SEED_PROJECT,
    }


@torch.inference_mode()
def golden_answers(network: BloodCellNet) -> dict[str, dict[str, float]]:
    """Return what the network says to each drawn sample: {file: {class: probability}}."""
    answers = {}
    for path in sorted(SAMPLES.glob("*.png")):
        row = network(to_input([decode(path.read_bytes())])).softmax(1)[0].tolist()
        answers[path.name] = {
            name: round(value, 6) for name, value in zip(CLASSES, row, strict=True)
        }
    return answers


def draw(folder: Path, metrics: dict[str, Any]) -> None:
    """Draw the plots of a version from its figures and its history."""
    (folder / "plots").mkdir(exist_ok=True)
    plots.confusion(metrics["test"]["confusion"], folder / "plots" / "confusion.png")
    history = json.loads((folder / "history.json").read_text())
    plots.training_curves(history, folder / "plots" / "training.png")


def write_readme(figures: str, path: Path = ROOT / "README.md") -> None:
    """Put the figures between their marks in the README, so that it can't drift from them."""
    text = path.read_text()
    head, start, rest = text.partition("<!-- figures:")
    mark, arrow, rest = rest.partition("-->\n")
    _, end, tail = rest.partition("<!-- end of figures -->")
    path.write_text(f"{head}{start}{mark}{arrow}{figures}\n{end}{tail}")


def table(metrics: dict[str, Any]) -> str:
    """Return the figures as the Markdown that the README shows."""
    seed = metrics["seed_project"]
    lines = [
        "| TEST | this network (95 % interval) | the seed's README |",
        "|---|---|---|",
        f"| accuracy by image | {_text(metrics['test']['image_accuracy'])} | "
        f"{seed['image_accuracy']:.1%} claimed, "
        f"{seed['image_accuracy_by_its_table']:.1%} by its own table |",
        f"| accuracy by photograph | {_text(metrics['test']['photograph_accuracy'])} | |",
    ]
    for name, label in (
        ("test_without_cells_also_in_train", "by image, without cells that TRAIN shows, too"),
        ("test_without_fields_also_in_train", "by image, without fields that overlap TRAIN's"),
    ):
        part = metrics[name]
        lines.append(f"| {label} ({part['images']}) | {_text(part['image_accuracy'])} | |")
    lines += [
        "",
        "| class | precision | recall | F1 | seed's | photographs |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in metrics["test"]["classes"].items():
        ours = " | ".join(_text(figures[key]) for key in ("precision", "recall", "f1"))
        theirs = ", ".join(f"{value:.2f}" for value in seed["classes"][name].values())
        lines.append(f"| {name.lower()} | {ours} | {theirs} | {figures['photographs']} |")
    return "\n".join(lines)


def _text(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{figure['value']:.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    sys.exit(main())

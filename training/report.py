"""Write a version's plots, its model card and the README's figures from its JSON files.

The card (card.md.jinja) follows the headings of Mitchell et al. 2018. Nothing is measured here.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from serving.deployment.known_answers import TOLERANCE
from training import data, plots
from training.figures import accuracy, figures, seeds, text, write_readme
from training.measured import Json, Measured, all_measured, read
from training.protocol import BINS, FOLDS, KEPT, RESAMPLES, RIGHT

TEMPLATE = "card.md.jinja"


def write(version: str, example: Json | None = None) -> None:
    """Write a version's plots and model card, and the figures of the docs.

    The README shows the newest version's `example`, its answer to neutrophil.png.
    """
    measured = read(version)
    (measured.folder / "plots").mkdir(exist_ok=True)
    for name, draw in drawings(measured).items():
        draw(measured.folder / "plots" / f"{name}.png")
    (measured.folder / "CARD.md").write_text(card(measured))
    versions = all_measured()
    parts = {"accuracy": accuracy(versions)}
    if example and version == versions[-1].name:
        parts["example"] = f"```json\n{json.dumps(example)}\n```"
    root = measured.folder.parents[1]
    write_readme(parts, root / "README.md")
    write_readme({"figures": figures(versions)}, root / "docs" / "accuracy.md")


def drawings(measured: Measured) -> dict[str, Callable[[Path], None]]:
    """Return the plots of a version, by name."""
    metrics = measured.metrics
    found: dict[str, Callable[[Path], None]] = {
        "confusion": partial(plots.confusion, metrics["test"]),
        "training": partial(plots.training_curves, measured.history),
    }
    if "calibration" in metrics:
        found["reliability"] = partial(plots.reliability, metrics["calibration"])
    if "robustness" in metrics:
        found["robustness"] = partial(plots.robustness, metrics["robustness"]["curves"])
    if "rejection" in metrics:
        found["rejection"] = partial(plots.rejection, verdicts(metrics["rejection"]))
    if "pbc" in metrics:
        rows = {
            f"{label}\n({size(part, _clusters(label))})": part["macro_recall"]
            for label, part in measured.recalls.items()
        }
        found["laboratories"] = partial(plots.laboratories, rows, 1 / len(measured.card["classes"]))
    if measured.sweep:
        found["trade_off"] = partial(plots.trade_off, measured.sweep["networks"])
    if measured.adaptation:
        found["adaptation"] = partial(plots.adaptation, measured.adaptation["points"])
    return found


def verdicts(rejection: Json) -> dict[str, dict[str, dict[str, float]]]:
    """Return the shares of the verdicts for each kind of image, by groups of kinds."""
    groups = {"cells of the classes": {"TEST and PBC": rejection["verdicts_of_cells"]}}
    for part, title in (("near", "other cells"), ("far", "no smear")):
        groups[title] = {
            f"{kind.replace('_', ' ')} ({each['images']})": each["verdicts"]
            for kind, each in rejection[part]["kinds"].items()
        }
    return groups


def size(part: Json, clusters: str = "photographs") -> str:
    """Return how many images, and how many photographs (or other clusters) if fewer."""
    images, count = part["images"], part["photographs"]
    return f"{images:,} images" + (f" of {count} {clusters}" if count < images else "")


def _clusters(label: str) -> str:
    """Return the name of the bootstrap's clusters."""
    return "fields" if label.startswith("photographs, ") else "photographs"


def card(measured: Measured) -> str:
    """Return a version's model card, as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(data.HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "figure": text,
        "percent": lambda value: f"{value:.1%}",
        "count": lambda value: f"{value:,}",
        "size": size,
        "kind": lambda value: value.replace("_", " "),
    }
    rendered = environment.get_template(TEMPLATE).render(
        this=measured,
        card=measured.card,
        metrics=measured.metrics,
        history=measured.history,
        sweep=measured.sweep,
        served=measured.served,
        adaptation=measured.adaptation,
        photographs=photograph_counts(),
        images=data.IMAGES_PER_CLASS,
        shared_cells=len(data.CELLS_ALSO_IN_TRAIN),
        pbc=pbc_counts(),
        seeds=seeds(measured.history),
        folds=FOLDS,
        resamples=RESAMPLES,
        kept=KEPT,
        right=RIGHT,
        tolerance=TOLERANCE,
        bins=BINS,
    )
    # Sections that are left out leave empty lines.
    return re.sub(r"\n{3,}", "\n\n", rendered).lstrip()


def photograph_counts() -> dict[str, Counter[str]]:
    """Count the photographs of each split by class."""
    return {
        split: Counter(sample.kind for sample in data.photographs(Path(), split))
        for split in ("TRAIN", "TEST")
    }


def pbc_counts() -> dict[str, Counter[str]]:
    """Count PBC's training and test images by class, and OTHER."""
    counts: dict[str, Counter[str]] = {"train": Counter(), "test": Counter()}
    with (data.HERE / "pbc.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            counts[row["part"]][row["file"].split("/")[0]] += 1
    return counts

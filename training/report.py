"""Write a version's plots, its model card and the README's figures from its JSON files.

The card (card.md.jinja) follows the headings of Mitchell et al. 2018. Nothing is measured here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from serving.deployment.known_answers import TOLERANCE
from training import data, plots
from training.figures import (
    EARLIER,
    accuracy,
    by_laboratory,
    figures,
    left_out,
    seeds,
    text,
    write_readme,
)
from training.laboratories import laboratories
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
        "left_out": partial(plots.left_out, recalls(metrics["left_out"])),
    }
    if "calibration" in metrics:
        found["reliability"] = partial(plots.reliability, metrics["calibration"])
    if "robustness" in metrics:
        found["robustness"] = partial(plots.robustness, metrics["robustness"]["curves"])
    if "far" in metrics:
        found["rejection"] = partial(plots.rejection, verdicts(metrics))
    if "locator" in metrics:
        parts = metrics["locator"]["laboratories"]
        shares = {title(name): part["by_share"] for name, part in parts.items()}
        found["locator"] = partial(plots.locator, shares)
    if measured.sweep:
        found["trade_off"] = partial(plots.trade_off, measured.sweep["networks"])
    if measured.few_cells:
        curves = {
            title(name): {
                how: document["laboratories"][name]["points"]
                for how, document in (("head", measured.few_cells), ("all", measured.adaptation))
                if document and name in document["laboratories"]
            }
            for name in measured.few_cells["laboratories"]
        }
        found["few_cells"] = partial(plots.few_cells, curves)
    return found


def recalls(whole: Json) -> dict[str, tuple[Json, float | None]]:
    """Return macro recall in each laboratory, and what version 2.0 reached there."""
    parts = {title(name): name for name in whole["laboratories"]}
    return {
        label: (whole["laboratories"][name]["macro_recall"], EARLIER["macro_recall"].get(name))
        for label, name in parts.items()
    } | {"mean": (whole["macro_recall"], None)}


def verdicts(metrics: Json) -> dict[str, dict[str, dict[str, float]]]:
    """Return the shares of the verdicts for each kind of image, by groups of kinds."""
    parts = metrics["left_out"]["laboratories"]
    groups = {
        "cells of the classes, laboratories left out": {
            f"{title(name)} ({part['images']})": part["verdicts"] for name, part in parts.items()
        },
        "other cells, laboratories left out": {
            f"{title(name)}: {_spaced(kind)} ({each['images']})": each["verdicts"]
            for name, part in parts.items()
            for kind, each in part.get("near", {"kinds": {}})["kinds"].items()
        },
        "images without a smear": {
            f"{_spaced(kind)} ({each['images']})": each["verdicts"]
            for kind, each in metrics["far"]["kinds"].items()
        },
    }
    return {name: kinds for name, kinds in groups.items() if kinds}


def title(name: str) -> str:
    """Return the short name of a laboratory."""
    return laboratories()[name].title.split(",")[0]


def size(part: Json, clusters: str = "photographs") -> str:
    """Return how many images, and how many photographs (or other clusters) if fewer."""
    images, count = part["images"], part["photographs"]
    return f"{images:,} images" + (f" of {count} {clusters}" if count < images else "")


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def card(measured: Measured) -> str:
    """Return a version's model card, as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(data.HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "figure": text,
        "percent": lambda value: f"{value:.1%}",
        "count": lambda value: f"{value:,}",
        "size": size,
        "kind": _spaced,
        "laboratory": title,
    }
    environment.filters.update(filters)
    rendered = environment.get_template(TEMPLATE).render(
        this=measured,
        card=measured.card,
        metrics=measured.metrics,
        history=measured.history,
        sweep=measured.sweep,
        served=measured.served,
        few_cells=measured.few_cells,
        adaptation=measured.adaptation,
        ablation=measured.ablation,
        left_out="\n".join(left_out([measured])),
        by_laboratory="\n".join(by_laboratory(measured)),
        photographs=photograph_counts(),
        images=data.IMAGES_PER_CLASS,
        shared_cells=len(data.CELLS_ALSO_IN_TRAIN),
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

"""Write a version's plots, its model card and the README's figures from its JSON files.

The card (card.md.jinja) follows the headings of Mitchell et al. 2018. Nothing is measured here.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from handler.verdict import CLASSES
from serving.deployment.known_answers import TOLERANCE
from serving.settings import ROOT
from training import data, plots, version_files
from training.protocol import BINS, FOLDS, KEPT, RESAMPLES, RIGHT

Json = dict[str, Any]
TEMPLATE = "card.md.jinja"
# The sets of cells that macro recall is measured on, and their keys in metrics.json.
CELLS = {
    "TEST": ("test",),
    "cross-validation, all photographs": ("cross_validation",),
    "PBC, as uploaded": ("pbc", "as_uploaded"),
    "PBC, scale matched": ("pbc", "scale_matched"),
    "PBC, trained on photographs alone": (
        "one_laboratory_from_the_other",
        "pbc from photographs",
    ),
    "photographs, trained on PBC alone": (
        "one_laboratory_from_the_other",
        "photographs from pbc",
    ),
}
# The rows that the README shows.
HEADLINES = (
    "TEST by image",
    "TEST by photograph",
    "cross-validation, macro recall",
    "PBC as uploaded, macro recall",
)


@dataclass(frozen=True)
class Measured:
    """The files of a version."""

    folder: Path
    card: Json
    metrics: Json
    history: Json
    golden: Json
    sweep: Json | None
    served: Json | None
    adaptation: Json | None

    @property
    def name(self) -> str:
        return str(self.metrics["version"])

    @property
    def finds_cells(self) -> bool:
        return bool(self.card.get("finds_cells"))

    @property
    def weights_bytes(self) -> int:
        return (self.folder / "weights.pt").stat().st_size

    @property
    def recalls(self) -> dict[str, Json]:
        """Return the measurements on each set of cells."""
        found = {label: find(self.metrics, *path) for label, path in CELLS.items()}
        return {label: part for label, part in found.items() if part}


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


def read(version: str) -> Measured:
    """Read a version's files; raise DataError if it was not measured on TEST."""
    folder = version_files.folder(version)
    names = ("card", "metrics", "history", "golden", "sweep", "served", "adaptation")
    parts = {name: _read(folder / f"{name}.json") for name in names}
    if any(parts[name] is None for name in names[:4]) or "test" not in parts["metrics"]:
        raise data.DataError(
            f"Version {version} is not measured.\nRun `make evaluate VERSION={version}` first."
        )
    return Measured(folder, **parts)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def all_measured() -> list[Measured]:
    """Read every version that was measured on TEST, oldest first."""
    known = [
        read(path.parent.name)
        for path in version_files.folder("").glob("*/metrics.json")
        if "test" in _read(path)
    ]
    # By length first: 10.0 comes after 9.0.
    return sorted(known, key=lambda each: [(len(part), part) for part in each.name.split(".")])


def find(document: Mapping[str, Any], *path: str) -> Any:
    """Return the value at a path of keys, or None."""
    here: Any = document
    for key in path:
        here = here.get(key) if here else None
    return here


def drawings(measured: Measured) -> dict[str, Callable[[Path], None]]:
    """Return the plots of a version, by name."""
    metrics = measured.metrics
    found: dict[str, Callable[[Path], None]] = {
        "confusion": partial(plots.confusion, metrics["test"]["confusion"]),
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
        found["laboratories"] = partial(plots.laboratories, rows)
    if measured.sweep:
        found["trade_off"] = partial(plots.trade_off, measured.sweep["networks"])
    if measured.adaptation:
        found["adaptation"] = partial(plots.adaptation, measured.adaptation["points"])
    return found


def verdicts(rejection: Json) -> dict[str, dict[str, dict[str, float]]]:
    """Return the shares of the verdicts for each kind of image, by groups of kinds."""
    groups = {"cells of the four classes": {"TEST and PBC": rejection["verdicts_of_cells"]}}
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
        classes=CLASSES,
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


def seeds(history: Json) -> str | None:
    """Describe how the seed was chosen, if one was."""
    if "seeds" not in history:
        return None
    last = [rows[-1] for rows in history["seeds"].values()]
    accuracies = ", ".join(f"{row['validation_accuracy']:.1%}" for row in last)
    losses = ", ".join(f"{row['validation_loss']:.2f}" for row in last)
    return (
        f"Trained from the random seeds {', '.join(history['seeds'])}, it reached {accuracies} "
        f"(loss {losses}) on the held-out third of TRAIN's photographs. Seed "
        f"{history['chosen_seed']}, with the lowest loss, was trained again on all of TRAIN."
    )


def write_readme(parts: Mapping[str, str], path: Path = ROOT / "README.md") -> None:
    """Replace the text between the marks of each part, in the README or another page."""
    prose = path.read_text()
    for name, content in parts.items():
        marks = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not (found := marks.search(prose)):
            raise ValueError(f"{path.name} lacks the marks of {name}")
        prose = f"{prose[: found.end(1)]}{content}\n{prose[found.start(2) :]}"
    path.write_text(prose)


def figures(versions: Sequence[Measured]) -> str:
    """Return the figures of all versions side by side, as Markdown."""
    original = versions[0].metrics["seed_project"]
    lines = [
        *_side_by_side(versions, table(versions, original)),
        "",
        "| TEST, by class | | precision | recall | F1 |",
        "|---|---|---|---|---|",
        *(_row(*row) for row in class_table(versions, original)),
    ]
    for each in versions:
        if chosen := seeds(each.history):
            lines += ["", f"Version {each.name}: {chosen[0].lower()}{chosen[1:]}"]
    return "\n".join(lines)


def accuracy(versions: Sequence[Measured]) -> str:
    """Return the most important figures of all versions, as Markdown."""
    rows = table(versions, versions[0].metrics["seed_project"])
    return "\n".join(_side_by_side(versions, [row for row in rows if row[0] in HEADLINES]))


def _side_by_side(versions: Sequence[Measured], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        _row("", "the original's README", *(f"version {each.name}" for each in versions)),
        "|---|---|" + "---|" * len(versions),
        *(_row(*row) for row in rows if any(row[1:])),
    ]


def table(versions: Sequence[Measured], original: Json) -> list[list[str]]:
    """Return rows of a label, the original's figure, and each version's."""
    theirs = (
        f"{original['image_accuracy']:.1%} claimed, "
        f"{original['image_accuracy_by_its_table']:.1%} by its own table"
    )
    without = "TEST by image, without"
    alone = ("one_laboratory_from_the_other", "photographs from pbc", "macro_recall")
    totals = {find(each.metrics, "test_photographs", "photographs") for each in versions} - {None}
    of = f"'s {totals.pop()}" if totals else ""
    rows: dict[str, Callable[[Measured], str]] = {
        "TEST by image": _figure("test", "image_accuracy"),
        "the same, through the service": lambda each: _format(
            "{:.1%}", each.served, "image_accuracy"
        ),
        "TEST by photograph": _figure("test", "photograph_accuracy"),
        f"correct photographs of TEST{of}": lambda each: _format(
            "{}", each.metrics, "test_photographs", "right"
        ),
        f"{without} cells also in TRAIN": _figure(
            "test_without_cells_also_in_train", "image_accuracy"
        ),
        f"{without} fields that overlap TRAIN's": _figure(
            "test_without_fields_also_in_train", "image_accuracy"
        ),
        "TEST by image, where the verdict is `confident`, and how often": _confident,
        "cross-validation, macro recall": _figure("cross_validation", "macro_recall"),
        "PBC as uploaded, macro recall": _figure("pbc", "as_uploaded", "macro_recall"),
        "PBC as uploaded, trained on photographs alone": _pbc_from_photographs,
        "photographs, trained on PBC alone": _figure(*alone),
        "calibration error (ECE)": lambda each: _format(
            "{:.3f}", each.metrics, "calibration", "after", "ece"
        ),
        "AUROC against other cells": _auroc("near"),
        "AUROC against images without a smear": _auroc("far"),
        "weights": lambda each: f"{each.weights_bytes / 1e6:.1f} MB",
        "an image on one core, median": _milliseconds("one_core"),
        "an image through the service, from Python, median": _milliseconds("service"),
    }
    return [
        [label, theirs if label == "TEST by image" else "", *map(tell, versions)]
        for label, tell in rows.items()
    ]


def class_table(versions: Sequence[Measured], original: Json) -> list[list[str]]:
    """Return rows of class, whose figures, precision, recall and F1."""
    rows = []
    for name in CLASSES:
        count = versions[0].metrics["test"]["classes"][name]["photographs"]
        theirs = (f"{value:.0%}" for value in original["classes"][name].values())
        rows.append([f"{name.lower()} ({count} photographs)", "the original's README", *theirs])
        for each in versions:
            ours = each.metrics["test"]["classes"][name]
            three = (text(ours[key]) for key in ("precision", "recall", "f1"))
            rows.append(["", f"version {each.name}", *three])
    return rows


def text(figure: Json | None) -> str:
    """Return a figure with its interval, or nothing if it was not measured."""
    if figure is None:
        return ""
    if figure["value"] is None:
        return "never"
    low, high = figure["interval"]
    return f"{figure['value']:.1%} ({low:.1%} to {high:.1%})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _format(form: str, document: Json | None, *path: str) -> str:
    value = find(document or {}, *path)
    return "" if value is None else form.format(value)


def _figure(*path: str) -> Callable[[Measured], str]:
    return lambda each: text(find(each.metrics, *path))


def _auroc(part: str) -> Callable[[Measured], str]:
    return lambda each: _format("{:.3f}", each.metrics, "rejection", part, "auroc")


def _milliseconds(where: str) -> Callable[[Measured], str]:
    return lambda each: _format("{:.1f} ms", each.served, "milliseconds", where, "median")


def _confident(each: Measured) -> str:
    sure, whole = each.metrics["test_where_confident"], each.metrics["test"]
    return f"{text(sure['image_accuracy'])}, {sure['images'] / whole['images']:.0%} of all"


def _pbc_from_photographs(each: Measured) -> str:
    """Return what photographs alone teach about PBC; other versions were trained on no more."""
    alone = find(each.metrics, "one_laboratory_from_the_other", "pbc from photographs")
    if alone:
        return text(alone["macro_recall"])
    return "as above" if not each.finds_cells and "pbc" in each.metrics else ""

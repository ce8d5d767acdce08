"""The figures of all versions side by side, for the README and the docs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from serving.settings import ROOT
from training.measured import ALONE, Json, Measured, find

# The rows that the README shows.
HEADLINES = (
    "TEST by image",
    "TEST by photograph",
    "cross-validation, macro recall",
    "PBC as uploaded, macro recall",
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
        _row("", "original project", *(f"version {each.name}" for each in versions)),
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
    alone = (ALONE, "photographs from pbc", "macro_recall")
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
    for name, figures in original["classes"].items():
        count = versions[0].metrics["test"]["classes"][name]["photographs"]
        theirs = (f"{value:.0%}" for value in figures.values())
        rows.append([f"{name.lower()} ({count} photographs)", "original project", *theirs])
        for each in versions:
            ours = each.metrics["test"]["classes"][name]
            three = (text(ours[key]) for key in ("precision", "recall", "f1"))
            rows.append(["", f"version {each.name}", *three])
    return rows


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
    alone = find(each.metrics, ALONE, "pbc from photographs")
    if alone:
        return text(alone["macro_recall"])
    return "as above" if not each.finds_cells and "pbc" in each.metrics else ""

"""The figures of all versions side by side, for the README and the docs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from serving.settings import ROOT
from training.data import HERE
from training.laboratories import laboratories
from training.measured import Json, Measured, age, find

# The rows that the README shows.
HEADLINES = ("TEST by image", "TEST by photograph", "cross-validation, macro recall")
# What version 2.0, which is no longer served, reached in laboratories that it had not seen.
EARLIER = json.loads((HERE / "version_2.json").read_text())


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
        *left_out(versions),
        "",
        *by_laboratory(versions[-1]),
        "",
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
    headlines = [row for row in rows if row[0] in HEADLINES]
    return "\n".join([*left_out(versions), "", *_side_by_side(versions, headlines)])


def left_out(versions: Sequence[Measured]) -> list[str]:
    """Return macro recall in each laboratory that a version's networks never saw.

    There is no mean: versions are not measured in the same laboratories.
    """
    recalls = {EARLIER["version"]: _earlier("macro_recall", EARLIER["macro_recall"])}
    for version in versions:
        parts = version.metrics["left_out"]["laboratories"]
        recalls[version.name] = {name: text(part["macro_recall"]) for name, part in parts.items()}
    names = sorted(recalls, key=age)
    return [
        _row("laboratory left out, macro recall", *(f"version {name}" for name in names)),
        "|---|" + "---|" * len(names),
        *(
            _row(each.title, *(recalls[name].get(each.name, "") for name in names))
            for each in laboratories().values()
            if any(each.name in measured for measured in recalls.values())
        ),
    ]


def by_laboratory(measured: Measured) -> list[str]:
    """Return all that was measured in laboratories left out: a column for each, and together."""
    whole = measured.metrics["left_out"]
    parts = {**whole["laboratories"], "mean": whole}
    recalls, kept = _earlier("macro_recall", parts), _earlier("kept", parts)
    unseen = "thresholds_of_the_others"
    rows: dict[str, Callable[[str], str]] = {
        "macro recall": lambda name: text(parts[name]["macro_recall"]),
        "macro recall, version 2.0": lambda name: recalls.get(name, ""),
        **{
            f"recall, {label.lower()}": _of(parts, text, "recall", label)
            for label in measured.card["classes"]
        },
        "recall, basophil among five classes": _of(parts, text, "basophil", "recall"),
        "precision, basophil among five classes": _of(parts, text, "basophil", "precision"),
        "cells found": _of(parts, "{:.1%}", "found"),
        "cells not rejected": _of(parts, "{:.1%}", "kept"),
        "cells not rejected, version 2.0": lambda name: kept.get(name, ""),
        "answers that are `confident`": _of(parts, "{:.1%}", "verdicts", "confident"),
        "`confident` answers that are correct": _of(parts, "{:.1%}", "confident_right"),
        "cells not rejected, thresholds of the others": _of(parts, "{:.1%}", unseen, "kept"),
        "`confident` and correct, thresholds of the others": _of(
            parts, "{:.1%}", unseen, "confident_right"
        ),
        "calibration error (ECE)": _of(parts, "{:.3f}", "ece"),
        "AUROC against other cells": _of(parts, "{:.3f}", "near", "auroc"),
        "cells": _of(parts, "{:,}", "images"),
        "groups": _of(parts, "{:,}", "groups"),
    }
    titles = [laboratories()[name].title for name in whole["laboratories"]]
    table = [[label, *map(tell, parts)] for label, tell in rows.items()]
    return [
        _row(f"laboratory left out, version {measured.name}", *titles, "together"),
        "|---|" + "---|" * len(parts),
        *(_row(*row) for row in table if any(row[1 : len(parts)])),
    ]


def _of(
    parts: Mapping[str, Json], form: str | Callable[[Json | None], str], *path: str
) -> Callable[[str], str]:
    """Return a function that writes a figure of a part."""
    if isinstance(form, str):
        return lambda name: _format(form, parts[name], *path)
    return lambda name: form(find(parts[name], *path))


def _earlier(what: str, laboratories: Collection[str]) -> dict[str, str]:
    """Return a figure of version 2.0 by laboratory, and its mean if it has it of all of these."""
    shares = EARLIER[what]
    parts = {name: f"{value:.0%}" for name, value in shares.items()}
    if set(shares) == set(laboratories) - {"mean"}:
        parts["mean"] = f"{np.mean(list(shares.values())):.0%}"
    return parts


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
        "calibration error (ECE)": lambda each: _format(
            "{:.3f}", each.metrics, "calibration", "after", "ece"
        ),
        "AUROC against images without a smear": lambda each: _format(
            "{:.3f}", each.metrics, "far", "auroc"
        ),
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


def _milliseconds(where: str) -> Callable[[Measured], str]:
    return lambda each: _format("{:.1f} ms", each.served, "milliseconds", where, "median")


def _confident(each: Measured) -> str:
    sure, whole = each.metrics["test_where_confident"], each.metrics["test"]
    if sure is None:
        return "never"
    return f"{text(sure['image_accuracy'])}, {sure['images'] / whole['images']:.0%} of all"

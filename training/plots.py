"""Plots of how a version was trained and of how well it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

mpl.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.w_pad": 0.1,
        "figure.constrained_layout.h_pad": 0.1,
    }
)
# Colour-blind readers can distinguish these: they differ in lightness, or from blue to yellow.
TRAIN_COLOUR, VALIDATION_COLOUR = "#8d6bb8", "#c2504d"
QUIET = "#999999"
COLOURS = (TRAIN_COLOUR, VALIDATION_COLOUR, "#e8a33d", "#3f7f93", QUIET)
VERDICTS = {
    "confident": ("#54278f", "white"),
    "uncertain": ("#c5b8de", "#333"),
    "rejected": ("#e89f4c", "#333"),
}
DPI = 110
# Smaller shares have no room for their number.
LEAST_WRITTEN = 0.05


def training_curves(history: Mapping[str, Any], path: Path) -> None:
    """Draw loss and accuracy during training by epoch and seed, or the loss by step."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    kinds = ("loss", "accuracy") if "seeds" in history else ("loss",)
    for axes, what in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        if "seeds" in history:
            _by_epoch(axes, history, what)
        else:
            _by_step(axes, history)
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=DPI)


def _by_epoch(axes: Any, history: Mapping[str, Any], what: str) -> None:
    """Draw the chosen seed, and faintly the other seeds' validation."""
    others = [seed for seed in history["seeds"] if seed != str(history["chosen_seed"])]
    for seed, rows in history["seeds"].items():
        chosen = seed not in others
        epochs = range(1, len(rows) + 1)
        if chosen:
            axes.plot(
                epochs,
                [row[f"train_{what}"] for row in rows],
                color=TRAIN_COLOUR,
                label="training (augmented, with dropout)",
            )
        axes.plot(
            epochs,
            [row[f"validation_{what}"] for row in rows],
            color=VALIDATION_COLOUR,
            alpha=1 if chosen else 0.25,
            label="validation" if chosen else "validation, other seeds" * (seed == others[0]),
        )
    axes.set(xlabel="epoch", xlim=(1, None))


def _by_step(axes: Any, history: Mapping[str, Any]) -> None:
    networks = {"rows": "classifies cells", "locator_rows": "finds cells"}
    every = history["steps_a_row"]
    for colour, (key, label) in zip(COLOURS, networks.items(), strict=False):
        losses = [row["train_loss"] for row in history.get(key, ())]
        steps = [every * (index + 1) for index in range(len(losses))]
        axes.plot(steps, losses, color=colour, label=label)
    axes.set(xlabel=f"step (means of {every})", xlim=(0, None), yscale="log")


def confusion(measured: Mapping[str, Any], path: Path) -> None:
    """Draw a confusion matrix: the shares of each true class, with counts below."""
    matrix = np.array(measured["confusion"])
    shares = matrix / matrix.sum(1, keepdims=True)
    figure = Figure(figsize=(1.4 + 1.2 * matrix.shape[1], 4.8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Purples", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        axes.text(
            column,
            row,
            f"{share:.1%}\n{matrix[row, column]}",
            ha="center",
            va="center",
            color="white" if share > 0.5 else "#333",
        )
    names, columns = (
        [name.capitalize() for name in measured[key]] for key in ("classes", "predicted")
    )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="label")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(path, dpi=DPI)


def reliability(calibration: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy against probability, before and after temperature scaling."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(2.6, 1))
    for (above, below), when in zip(axes.T, ("before", "after"), strict=True):
        _reliability(above, calibration[when], f"{when} temperature scaling")
        _bin_counts(below, calibration[when]["bins"])
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    figure.savefig(path, dpi=DPI)


def _reliability(axes: Any, measured: Mapping[str, Any], title: str) -> None:
    bins = measured["bins"]
    axes.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1, label="perfect")
    axes.plot(
        [each["confidence"] for each in bins],
        [each["accuracy"] for each in bins],
        color=TRAIN_COLOUR,
        marker="o",
        markersize=5,
        label=f"ECE {measured['ece']:.3f}",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.03), title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left")


def _bin_counts(axes: Any, bins: Sequence[Mapping[str, Any]]) -> None:
    counts = [each["count"] for each in bins]
    places = [each["confidence"] for each in bins]
    axes.bar(places, counts, width=0.03, color=TRAIN_COLOUR)
    for place, count in zip(places, counts, strict=True):
        _annotate(axes, f"{count:,}", (place, count), 3, rotation=90, fontsize=7)
    # The numbers need room above the highest bar; both panels share the axis.
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.7 * max(counts)))
    axes.set_xlabel("probability of the answer")


def robustness(curves: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy against the amount of each change."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(-(-len(curves) // 3), 3, sharey=True, squeeze=False)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, curve) in zip(panels.flat, curves.items(), strict=False):
        amounts = [point["amount"] for point in curve["points"]]
        shares = [point["accuracy"] for point in curve["points"]]
        axes.plot(amounts, shares, color=TRAIN_COLOUR, marker="o", markersize=4)
        axes.set(title=name, xlabel=curve["unit"], ylim=(0, 1.03))
        if amounts[0] > amounts[-1]:
            axes.invert_xaxis()
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.savefig(path, dpi=DPI)


def rejection(groups: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Draw the shares of the verdicts: a bar for each kind of image, in groups."""
    labels, places, place = [], [], 0.0
    figure = Figure(figsize=(9, 1.2 + 0.36 * sum(map(len, groups.values()))), layout="constrained")
    axes = figure.subplots()
    for title, kinds in groups.items():
        axes.text(0, place - 0.62, title, color="#555", fontsize=9, va="center")
        for name, verdicts in kinds.items():
            _verdict_bar(axes, place, verdicts)
            labels.append(name)
            places.append(place)
            place += 1
        place += 0.8
    axes.set_yticks(places, labels)
    axes.set(xlim=(0, 1), ylim=(place - 1.2, -1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    patches = [mpl.patches.Patch(color=colour) for colour, _ink in VERDICTS.values()]
    figure.legend(patches, VERDICTS, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=DPI)


def _verdict_bar(axes: Any, place: float, verdicts: Mapping[str, float]) -> None:
    left = 0.0
    for name, (colour, ink) in VERDICTS.items():
        share = verdicts[name]
        axes.barh(place, share, left=left, height=0.72, color=colour)
        if share >= LEAST_WRITTEN:
            middle = left + share / 2
            style = {"color": ink, "fontsize": 8, "ha": "center", "va": "center"}
            axes.text(middle, place, f"{share:.0%}", clip_on=True, **style)
        left += share


def left_out(recalls: Mapping[str, tuple[Mapping[str, Any], float | None]], path: Path) -> None:
    """Draw macro recall with its interval, a row for each laboratory, and version 2.0's."""
    figure = Figure(figsize=(9, 1.1 + 0.5 * len(recalls)), layout="constrained")
    axes = figure.subplots()
    earlier = []
    for row, (figures, before) in enumerate(recalls.values()):
        value, (low, high) = figures["value"], figures["interval"]
        axes.plot([low, high], [row, row], color=TRAIN_COLOUR, linewidth=2.5)
        axes.plot(value, row, color=TRAIN_COLOUR, marker="o", markersize=7)
        _annotate(axes, f"{value:.1%}", (value, row), 8, fontsize=9)
        if before:
            earlier.append((before, row))
    if earlier:
        axes.plot(*zip(*earlier, strict=True), "D", color=QUIET, label="version 2.0")
        axes.legend(frameon=False, loc="upper left")
    axes.set_yticks(range(len(recalls)), list(recalls))
    axes.set(xlim=(0, 1.03), ylim=(len(recalls) - 0.5, -1), xlabel="macro recall (95 % interval)")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", alpha=0.3)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=DPI)


def locator(parts: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw recall and the share of false boxes by the share of the frame's width of a cell."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = {"recall": "cells found", "false_share": "boxes without a cell"}
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for colour, (name, rows) in zip(COLOURS, parts.items(), strict=False):
            shown = [(at, row[key]) for at, row in enumerate(rows) if row["boxes"]]
            axes.plot(*zip(*shown, strict=True), color=colour, marker="o", markersize=4, label=name)
            axes.set_xticks(
                range(len(rows)),
                [f"{row['from']:.0%}\nto {row['to']:.0%}" for row in rows],
                fontsize=8,
            )
        axes.set(xlabel="the cell's share of the frame's width", ylabel=label, ylim=(-0.03, 1.03))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=DPI)


def few_cells(curves: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], path: Path) -> None:
    """Draw what a laboratory's own cells add: to a linear head, and to the whole network."""
    figure = Figure(figsize=(9, 3.2 * -(-len(curves) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(curves) // 2), 2, sharey=True, squeeze=False)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, lines) in zip(panels.flat, curves.items(), strict=False):
        for how, label, colour in (
            ("head", "linear head", TRAIN_COLOUR),
            ("all", "whole network", VALIDATION_COLOUR),
        ):
            if how in lines:
                counts = [point["cells_a_class"] for point in lines[how]]
                values = [point["macro_recall"] for point in lines[how]]
                axes.plot(counts, values, color=colour, marker="o", markersize=4, label=label)
                axes.set_xticks(counts, [str(count) for count in counts])
        axes.set(title=name, xlabel="labelled cells of each class", ylim=(None, 1.03))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="lower right")
    for axes in panels[:, 0]:
        axes.set_ylabel("macro recall")
    figure.savefig(path, dpi=DPI)


def trade_off(networks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw cross-validated accuracy with its interval against the work of one image."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for network in networks:
        value, (low, high) = network["accuracy"]["value"], network["accuracy"]["interval"]
        axes.errorbar(
            network["multiply_adds"] / 1e6,
            value,
            yerr=[[value - low], [high - value]],
            fmt="o",
            capsize=3,
            color=VALIDATION_COLOUR if network["chosen"] else TRAIN_COLOUR,
        )
        axes.annotate(
            network["name"].replace(", pools", ",\npools"),
            (network["multiply_adds"] / 1e6, high),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(
        xlim=(0, 1.35e-6 * max(network["multiply_adds"] for network in networks)),
        xlabel="millions of multiply-adds per image",
        ylabel="accuracy by image (3-fold, grouped, short training)",
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)


def _annotate(axes: Any, text: str, point: tuple[float, float], up: int, **style: Any) -> None:
    axes.annotate(text, point, xytext=(0, up), textcoords="offset points", ha="center", **style)

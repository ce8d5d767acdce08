"""Plots of how a version was trained and how it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from handler.network import CLASSES

mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
TRAIN_COLOUR, VALIDATION_COLOUR = "#8d6bb8", "#c2504d"


def training_curves(history: dict[str, Any], path: Path) -> None:
    """Draw loss and accuracy by epoch: the chosen seed, and faintly the other seeds' validation."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for seed, rows in history["seeds"].items():
            chosen = seed == str(history["chosen_seed"])
            first = seed == next(s for s in history["seeds"] if s != str(history["chosen_seed"]))
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
                label="validation" if chosen else "validation, other seeds" if first else None,
            )
        axes.set(xlabel="epoch", ylabel=what, xlim=(1, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def confusion(counts: list[list[int]], path: Path) -> None:
    """Draw a confusion matrix: shares of the true class as colour and text, counts below."""
    matrix = np.array(counts)
    shares = matrix / matrix.sum(1, keepdims=True)
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Purples", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        axes.text(
            column,
            row,
            f"{share:.1%}\n{matrix[row, column]}",
            ha="center",
            va="center",
            color="white" if share > 0.5 else "#333",
        )
    names = [name.capitalize() for name in CLASSES]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="network's answer", ylabel="label")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(path, dpi=110)


def trade_off(networks: list[dict[str, Any]], path: Path) -> None:
    """Draw cross-validated accuracy, with its interval, against the work of one image."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
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
        xlabel="millions of multiply-adds an image",
        ylabel="accuracy by image (3-fold, grouped, short training)",
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)

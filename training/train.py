"""Train version 3.0 from the folders of images on.

1. A first locator learns from the fields with drawn boxes, and finds the cells of the others.
2. Cells, views and canvases are made once.
3. Each run (training/runs.py) trains a locator and a network. Runs share the cores; all that is
   finished stays in .train/, so that an interrupted training continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from handler.preprocessing import HEIGHT, WIDTH, Pixels
from training import workers
from training.cells import CODE as CELL_CODE
from training.cells import train_cells
from training.checkpoints import Checkpoint
from training.crops import CellSet, collect_all, find_boxes, labelled_cells, windows
from training.fitting import ROW, History
from training.locate import CODE as LOCATOR_CODE
from training.locate import (
    Canvases,
    cell_sources,
    draw_canvases,
    train_locator,
    whole_sources,
)
from training.networks import CellNet, Locator
from training.protocol import CLASSES
from training.recipes import FIRST_LOCATOR, RECIPES, CellRecipe
from training.runs import SHIPPED, Run, parts_of, select
from training.version_files import Trained, scratch
from training.views import Views, views_of

# Inputs that set the ranges of 8 bits.
CALIBRATION = 512


@dataclass
class Prepared:
    """What all runs share. The cells' patches stay on disk."""

    recipe: CellRecipe
    cells: CellSet
    parts: np.ndarray
    views: Views
    canvases: Canvases

    @property
    def labels(self) -> np.ndarray:
        """Return the labels of the views."""
        labels: np.ndarray = self.cells.labels[self.views.cells]
        return labels


def train_version(version: str, names: Sequence[str] = ()) -> Trained | None:
    """Train the networks of all runs, or of those named; return those to ship, if among them."""
    runs = select(names)
    train_runs(version, runs)
    return shipped(version) if SHIPPED in runs else None


def train_runs(version: str, runs: Sequence[Run]) -> None:
    """Train the locator and the network of each run, unless they are trained already."""
    workers.start()
    prepare(version)
    work = [(version, run, kind) for run in runs for kind in ("network", "locator")]
    for _ in workers.each(_train, work, f"training {version}"):
        pass


@cache
def prepare(version: str) -> Prepared:
    """Make what all runs share, unless it is made already."""
    recipe, folder = _recipe(version), scratch(version)
    first = _first_locator(folder)
    cells = collect_all(first, folder)
    found = find_boxes([each for each in labelled_cells() if not each[1].box], first, folder)
    sources = [*whole_sources(), *cell_sources(found)]
    canvases = draw_canvases(sources, recipe.locator, folder / "canvases")
    views = views_of(cells, recipe.views, folder / "views")
    parts = parts_of(cells.laboratories.tolist(), cells.names.tolist())
    return Prepared(recipe, cells, parts, views, canvases)


def locator_of(version: str, run: Run) -> tuple[Locator, History]:
    """Return a run's locator; train it if it is not trained yet."""
    made = prepare(version)
    rows = np.flatnonzero(run.sees(made.canvases.parts))
    recipe, name = made.recipe.locator, f"{run.name} locator"
    checkpoint = Checkpoint(
        _path(version, run, "locator"), (recipe, made.cells.identity, rows.tolist()), LOCATOR_CODE
    )
    return train_locator(made.canvases, rows, recipe, 0, name, checkpoint)


def network_of(version: str, run: Run) -> tuple[CellNet, History]:
    """Return a run's network; train it if it is not trained yet."""
    made = prepare(version)
    recipe, rows = made.recipe, made.views.seen(run.sees(made.parts))
    identity = made.cells.identity, recipe.views, rows.tolist()
    # The locator is no part of what the network depends on.
    settings = replace(recipe, locator=CellRecipe().locator, quantized=False)
    checkpoint = Checkpoint(_path(version, run, "network"), (settings, identity), CELL_CODE)
    views, title = made.views.pixels, f"{run.name} network"
    return train_cells(views, made.labels, rows, recipe, 0, title, checkpoint=checkpoint)


def calibration(version: str, run: Run) -> dict[str, Pixels]:
    """Return the inputs that set the ranges of the networks that compute in 8 bits."""
    made, random, inputs = prepare(version), np.random.default_rng(0), {}
    if made.recipe.quantized:
        some = random.permutation(np.flatnonzero(run.sees(made.parts)))[:CALIBRATION]
        inputs["network"] = windows(made.cells.patches[np.sort(some)])
    if made.recipe.locator.quantized:
        some = random.permutation(np.flatnonzero(run.sees(made.canvases.parts)))[:CALIBRATION]
        inputs["locator"] = made.canvases.pixels[np.sort(some)]
    return inputs


def shipped(version: str) -> Trained:
    """Return the networks to ship, with their part of the card."""
    locator, found = locator_of(version, SHIPPED)
    network, learned = network_of(version, SHIPPED)
    recipe = _recipe(version)
    return Trained(
        networks={"locator": locator, "network": network},
        card={
            "classes": list(CLASSES),
            "input": f"{WIDTH}x{HEIGHT} RGB, of each cell found",
            "finds_cells": True,
            "embedding": network.classifier.in_features,
            "network": recipe.network(),
        },
        history={
            "recipe": asdict(recipe),
            "first_locator": asdict(FIRST_LOCATOR),
            "steps_a_row": ROW,
            "rows": learned,
            "locator_rows": found,
        },
        calibration=calibration(version, SHIPPED),
    )


def _train(work: tuple[str, Run, str]) -> None:
    version, run, kind = work
    (network_of if kind == "network" else locator_of)(version, run)


def _first_locator(folder: Path) -> Locator:
    canvases = draw_canvases(whole_sources(), FIRST_LOCATOR, folder / "first-canvases")
    rows = np.flatnonzero(SHIPPED.sees(canvases.parts))
    checkpoint = Checkpoint(
        folder / "first-locator.pt", (FIRST_LOCATOR, rows.tolist()), LOCATOR_CODE
    )
    return train_locator(canvases, rows, FIRST_LOCATOR, 0, "first locator", checkpoint)[0]


def _path(version: str, run: Run, kind: str) -> Path:
    return scratch(version) / "runs" / f"{run.name}-{kind}.pt"


def _recipe(version: str) -> CellRecipe:
    recipe = RECIPES[version]
    assert isinstance(recipe, CellRecipe)
    return recipe

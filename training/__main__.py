"""The command line of training: `python -m training COMMAND`, and `--help` for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from serving.client import ServiceError
from serving.settings import ROOT
from training import data
from training.data import DataError
from training.laboratories import as_table, counts, laboratories
from training.recipes import RECIPES, FieldRecipe


class Group(click.Group):
    """Commands in the order of a model's life, with one line for each error.

    A command's module is imported only to run it or to print its help.
    """

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        function, *options = COMMANDS[name]
        if isinstance(function, str):
            module, function = function.split(":")
            function = getattr(import_module(f"training.{module}"), function)
        for option in options:
            function = option(function)
        return click.command(name)(function)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (DataError, ServiceError) as error:
            raise click.ClickException(str(error)) from error


def get_data() -> None:
    """Download the photographs, check them, and list the cells of all laboratories.

    Writes the table of docs/training.md if no laboratory is missing.
    """
    from training.figures import write_readme

    data.fetch_and_check()
    cells = {}
    for name, laboratory in laboratories().items():
        try:
            cells[name] = Counter(sample.kind for sample in laboratory.samples())
            print(f"{name}: {counts(cells[name])}")
        except DataError as error:
            print(f"{name} is missing. {error}")
    if len(cells) == len(laboratories()):
        write_readme({"laboratories": as_table(cells)}, ROOT / "docs" / "training.md")


def train(version: str, runs: Sequence[str]) -> None:
    """Train a version: weights.pt, card.json, history.json and the ONNX graphs.

    Version 3.0 also trains the networks that `crossvalidate` measures. TEST trains none that is
    shipped. An interrupted training continues: checkpoints are in .train/.
    """
    from training import fields, train, version_files

    recipe = RECIPES[version]
    if isinstance(recipe, FieldRecipe):
        scratch = version_files.scratch(version)
        version_files.write(version, fields.train_fields(data.data_root(), recipe, scratch))
    elif trained := train.train_version(version, runs):
        version_files.write(version, trained)


def served(version: str) -> None:
    """Measure a version through the running service: served.json."""
    from training import measured, report
    from training.served import measure_served

    measured.read(version)
    try:
        measure_served(version)
    except ServiceError as error:
        raise click.ClickException(f"{error} Start {version} with `make run`.") from error
    report.write(version)


def evaluate_and_report(version: str) -> None:
    """Measure a version: metrics.json, its plots and its model card."""
    from training import report
    from training.evaluate import evaluate

    report.write(version, evaluate(version))


any_version = click.option("--version", required=True, help="A folder of models/.")
own_version = click.option("--version", required=True, type=click.Choice(list(RECIPES)))
runs = click.option("--runs", multiple=True, help="Only these runs of 3.0 (runs.py).")
epochs = click.option("--epochs", default=8, show_default=True)
laboratory = (
    click.option("--from", "base", required=True, metavar="VERSION", help="Where to start."),
    click.option("--cells", "folder", required=True, type=click.Path(path_type=Path)),
    click.option("--version", required=True, help="The version to write, for example 4.0."),
)
main = Group(
    help="From images to a measured version in models/VERSION/.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
COMMANDS: dict[str, tuple[Any, ...]] = {
    "data": (get_data,),
    "sweep": ("sweep:sweep", epochs),
    "train": (train, own_version, runs),
    "crossvalidate": ("crossvalidate:cross_validate", own_version, runs),
    "calibrate": ("calibrate:calibrate", any_version),
    "evaluate": (evaluate_and_report, any_version),
    "served": (served, any_version),
    "report": ("report:write", any_version),
    "adapt": ("adapt:adapt", *laboratory),
    "few-cells": ("few_cells:measure_few_cells", any_version),
    "curve": ("adapt:draw_curve", any_version),
}

if __name__ == "__main__":
    main(prog_name="python -m training")

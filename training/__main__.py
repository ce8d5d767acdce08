"""The command line of training: `python -m training COMMAND`, and `--help` for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from serving.client import ServiceError
from serving.settings import ROOT
from training import report, version_files
from training.adapt import adapt, draw_curve
from training.calibrate import calibrate
from training.crossvalidate import cross_validate
from training.data import DataError, data_root, fetch_and_check
from training.evaluate import evaluate
from training.few_cells import measure_few_cells
from training.fields import train_fields
from training.figures import write_readme
from training.laboratories import as_table, counts, laboratories
from training.measured import read
from training.recipes import RECIPES, FieldRecipe
from training.served import measure_served
from training.sweep import sweep
from training.train import train_version


class Group(click.Group):
    """Commands in the order of a model's life, with one line for each error."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (DataError, ServiceError) as error:
            raise click.ClickException(str(error)) from error


def get_data() -> None:
    """Download the photographs, check them, and list the cells of all laboratories.

    Writes the table of docs/training.md if no laboratory is missing.
    """
    fetch_and_check()
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
    recipe = RECIPES[version]
    if isinstance(recipe, FieldRecipe):
        scratch = version_files.scratch(version)
        version_files.write(version, train_fields(data_root(), recipe, scratch))
    elif trained := train_version(version, runs):
        version_files.write(version, trained)


def served(version: str) -> None:
    """Measure a version through the running service: served.json."""
    read(version)
    try:
        measure_served(version)
    except ServiceError as error:
        raise click.ClickException(f"{error} Start {version} with `make run`.") from error
    report.write(version)


def evaluate_and_report(version: str) -> None:
    """Measure a version: metrics.json, its plots and its model card."""
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
for name, function, *options in (
    ("data", get_data),
    ("sweep", sweep, epochs),
    ("train", train, own_version, runs),
    ("crossvalidate", cross_validate, own_version, runs),
    ("calibrate", calibrate, any_version),
    ("evaluate", evaluate_and_report, any_version),
    ("served", served, any_version),
    ("report", report.write, any_version),
    ("adapt", adapt, *laboratory),
    ("few-cells", measure_few_cells, any_version),
    ("curve", draw_curve, any_version),
):
    for option in options:
        function = option(function)
    main.command(name)(function)

if __name__ == "__main__":
    main(prog_name="python -m training")

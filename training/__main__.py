"""The command line of training: `python -m training COMMAND`, and `--help` for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from serving.client import ServiceError
from training import adapt as adaptation
from training import calibrate as calibration
from training import crossvalidate as crossvalidation
from training import data as images
from training import evaluate as evaluation
from training import report as reporting
from training import served as service
from training import sweep as layouts
from training import train as training
from training.optimizer import keep_memory
from training.recipes import RECIPES


class Group(click.Group):
    """Commands in the order of a model's life, with one line for each error."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (images.DataError, ServiceError) as error:
            raise click.ClickException(str(error)) from error


any_version = click.option("--version", required=True, help="A folder of models/.")
own_version = click.option("--version", required=True, type=click.Choice(list(RECIPES)))


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """From images to a measured version in models/VERSION/."""


@main.command()
def data() -> None:
    """Download the images from Kaggle, and check them."""
    images.fetch_and_check()


@main.command()
@click.option("--epochs", default=8, show_default=True)
def sweep(epochs: int) -> None:
    """Compare layouts of the whole-field network within TRAIN."""
    keep_memory()
    layouts.sweep(epochs)


@main.command()
@own_version
def train(version: str) -> None:
    """Train a version."""
    keep_memory()
    training.train(version)


@main.command()
@own_version
def crossvalidate(version: str) -> None:
    """Predict each image by networks that never saw it."""
    keep_memory()
    crossvalidation.cross_validate(version)


@main.command()
@any_version
def calibrate(version: str) -> None:
    """Choose the temperature and the thresholds of the verdicts."""
    calibration.calibrate(version)


@main.command()
@any_version
def evaluate(version: str) -> None:
    """Measure a version, and report on it."""
    example = evaluation.evaluate(version)
    reporting.write(version, example)


@main.command()
@any_version
def served(version: str) -> None:
    """Measure a version through the running service, and report on it."""
    reporting.read(version)
    try:
        service.measure_served(version)
    except ServiceError as error:
        raise click.ClickException(f"{error} Start {version} with `make run`.") from error
    reporting.write(version)


@main.command()
@any_version
def report(version: str) -> None:
    """Write the plots and the model card of a version from its measurements."""
    reporting.write(version)


@main.command()
@click.option("--from", "base", required=True, metavar="VERSION", help="The version to start from.")
@click.option("--cells", required=True, type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--version", required=True, help="The version to write, for example 3.0.")
def adapt(base: str, cells: Path, version: str) -> None:
    """Teach a version the labelled cells of a laboratory."""
    keep_memory()
    adaptation.adapt(base, cells, version)


@main.command()
@any_version
def curve(version: str) -> None:
    """Measure how many cells a laboratory must label to teach a version."""
    keep_memory()
    adaptation.draw_curve(version)


if __name__ == "__main__":
    main(prog_name="python -m training")

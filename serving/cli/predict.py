"""The command that classifies images."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TextIO

import click

from serving import predict as batch
from serving.cli.console import NOT_RUNNING_MESSAGE, fail, progress
from serving.client import InferenceClient
from serving.rollout.changes import NotRunning
from serving.settings import Settings
from serving.supervisor import service as supervisor


@click.command()
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(batch.FORMATS)),
    default="table",
    show_default=True,
    help="Output format.",
)
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Output file.  [default: standard output]",
)
@click.option("--version", help="Version to use.  [default: the default version]")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Number of parallel requests.",
)
@click.pass_obj
def predict(
    settings: Settings,
    images: tuple[Path, ...],
    form: str,
    target: Path | None,
    version: str | None,
    jobs: int,
) -> None:
    """Classify images.

    IMAGE is a file, or a folder that is searched for images.
    """
    files = batch.find_images(images)
    if not files:
        raise click.UsageError("No images found.")
    if supervisor.running(settings.run_dir) is None:
        raise NotRunning(NOT_RUNNING_MESSAGE)
    with closing(InferenceClient(settings, pool_size=jobs)) as client, _open(target) as stream:
        # Lines that appear on the terminal show the progress themselves.
        bar = progress.is_terminal and not (form != "table" and stream.isatty())
        failed = batch.run(
            client,
            files,
            batch.FORMATS[form],
            stream,
            version=version,
            jobs=jobs,
            console=progress if bar else None,
        )
    if failed:
        fail(f"{failed} of {len(files)} images failed.")


def _open(target: Path | None) -> AbstractContextManager[TextIO]:
    if target is None:
        return nullcontext(sys.stdout)
    try:
        return target.open("w", encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(target), error.strerror) from error

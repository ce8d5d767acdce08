"""What the commands share: options, output, and exit codes."""

from __future__ import annotations

import sys
from typing import NoReturn

import click
from rich.console import Console
from rich.table import Table

FAILED, NOT_RUNNING, BUSY = 1, 3, 4
NOT_RUNNING_MESSAGE = "The service does not run: start it with `make run`."

# Results go to standard output, progress to standard error. Markup is off, since a path may look
# like it. A pipe has no width to wrap lines at.
output = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
progress = Console(stderr=True, highlight=False, markup=False)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def table(*columns: str) -> Table:
    """Return an empty table without lines."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print an error and exit."""
    click.echo(f"error: {message}", err=True)
    sys.exit(code)

"""Commands that change which versions serve."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click

from serving.cli.console import progress
from serving.deployment import Canary
from serving.rollout.changes import Rollout
from serving.settings import Settings

version_argument = click.argument("version")
force = click.option(
    "--force", is_flag=True, help="Don't wait for open requests; they may be lost."
)


@contextmanager
def open_rollout(settings: Settings) -> Iterator[Rollout]:
    """Yield the changes to the service; show on the terminal what a change waits for."""
    # As Ctrl-C: an interrupted change is undone.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        progress.status("connecting to the service") as line,
        closing(Rollout(settings, line.update)) as rollout,
    ):
        yield rollout


def change(command: Callable[..., str]) -> click.Command:
    """Make a command of a function that changes the service and returns what to print."""

    @functools.wraps(command)
    def run(settings: Settings, **arguments: Any) -> None:
        with open_rollout(settings) as rollout:
            done = command(rollout, **arguments)
        click.echo(done)

    callback: Callable[..., None] = click.pass_obj(run)
    return click.command()(callback)


@change
@version_argument
@click.option("--workers", default=1, show_default=True, help="Number of worker processes.")
@click.option(
    "--archive",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Archive to deploy.  [default: the one built by `make mar`]",
)
@click.option("--sha256", help="Expected SHA-256.  [default: the content of ARCHIVE.sha256]")
def deploy(
    rollout: Rollout, version: str, workers: int, archive: Path | None, sha256: str | None
) -> str:
    """Deploy VERSION beside the others, without clients.

    VERSION must classify the known images correctly, otherwise it is removed.
    """
    rollout.deploy(version, workers, archive, sha256)
    return (
        f"version {version} deployed; try it on some clients with `canary {version}`, "
        f"or make it the default with `promote {version}`"
    )


@change
@version_argument
def promote(rollout: Rollout, version: str) -> str:
    """Make VERSION the default."""
    rollout.promote(version)
    return f"version {version} is the default; `rollback` undoes this"


@change
@version_argument
@click.option(
    "--percent", type=float, default=10.0, show_default=True, help="Percentage of the clients."
)
@click.option(
    "--max-errors",
    type=float,
    default=Canary.max_errors,
    show_default=True,
    help="Highest error rate in percent, above that of the default version.",
)
@click.option(
    "--max-p95",
    type=float,
    default=Canary.max_p95,
    show_default=True,
    help="Highest 95th percentile of the latency, in milliseconds.",
)
def canary(
    rollout: Rollout, version: str, percent: float, max_errors: float, max_p95: float
) -> str:
    """Route a share of the clients to VERSION.

    The canary is rolled back if it exceeds a limit. Repeat the command to change the share.
    """
    rollout.canary(Canary(version, percent, max_errors, max_p95))
    return (
        f"version {version} serves {percent:g} % of the clients; "
        f"make it the default with `promote {version}`"
    )


@change
def rollback(rollout: Rollout) -> str:
    """End the canary, or undo the last promotion."""
    return f"version {rollout.rollback()} is the default"


@change
@version_argument
@click.option("--workers", type=int, required=True, help="Number of worker processes.")
@force
def scale(rollout: Rollout, version: str, workers: int, force: bool) -> str:
    """Set the number of workers of VERSION."""
    rollout.scale(version, workers, force)
    return f"version {version} has {workers} worker{'' if workers == 1 else 's'}"


@change
@version_argument
@force
def retire(rollout: Rollout, version: str, force: bool) -> str:
    """Remove VERSION from the service.

    Open requests are answered first.
    """
    rollout.retire(version, force)
    return f"version {version} retired; `deploy {version}` restores it"


@change
@force
def apply(rollout: Rollout, force: bool) -> str:
    """Apply deployment.yaml to the service."""
    return "\n".join(rollout.apply(force) or ["nothing to do"])

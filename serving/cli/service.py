"""Commands that start and stop the service, and renew its tokens."""

from __future__ import annotations

import click

from serving.client import Unreachable
from serving.settings import Settings
from serving.supervisor import service as supervisor
from serving.torchserve.tokens import HEADER_FILE, KINDS, Tokens, renew, write_header


@click.command()
@click.pass_obj
def run(settings: Settings) -> None:
    """Start TorchServe and the page, and restart what exits.

    Ctrl-C stops everything.
    """
    supervisor.run(settings)


@click.command()
@click.pass_obj
def stop(settings: Settings) -> None:
    """Stop the running service."""
    supervisor.stop(settings)


@click.command()
@click.pass_obj
def renew_tokens(settings: Settings) -> None:
    """Replace the tokens, for example after a leak.

    No request is lost.
    """
    tokens = Tokens(settings.run_dir)
    try:
        for kind in KINDS:
            renew(settings, tokens, kind)
    except OSError as error:
        # Includes the errors of requests.
        raise Unreachable(str(error)) from error
    write_header(settings.run_dir, tokens)
    click.echo(f"tokens renewed; {HEADER_FILE} holds the new inference token")

"""Commands that start and stop the service, and renew its tokens."""

from __future__ import annotations

import click
import requests

from serving.errors import connection_error_of
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
    except requests.RequestException as error:
        raise connection_error_of(error) from error
    write_header(settings.run_dir, tokens)
    click.echo(f"tokens renewed; {HEADER_FILE} holds the new inference token")

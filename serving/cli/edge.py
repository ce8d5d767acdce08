"""Commands that run the edge and manage its API keys."""

from __future__ import annotations

import click

from serving.cli.console import output, table
from serving.edge import process as nginx
from serving.edge.keys import MAY, KeyFile
from serving.edge.settings import keys_path
from serving.settings import Settings

# Enough of a key's hash to identify it.
DIGITS = 12


@click.command()
@click.pass_obj
def edge(settings: Settings) -> None:
    """Expose the running service to a network, through nginx.

    The edge adds TLS, API keys and limits. Ctrl-C stops it after the open requests are answered.
    """
    nginx.run(settings)


@click.group()
def edge_key() -> None:
    """Manage the API keys of the edge.

    Changes take effect at once.
    """


@edge_key.command()
@click.argument("client")
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(MAY),
    default=MAY,
    show_default=True,
    help="What the key permits; can be repeated.",
)
@click.pass_obj
def add(settings: Settings, client: str, allow: tuple[str, ...]) -> None:
    """Create a key for CLIENT and print it.

    The key is shown only once.
    """
    click.echo(KeyFile(keys_path(settings)).add(client, allow))


@edge_key.command()
@click.argument("key")
@click.pass_obj
def revoke(settings: Settings, key: str) -> None:
    """Revoke KEY.

    KEY is an identifier from `edge-key list`, or a client name for all keys of that client.
    """
    revoked = KeyFile(keys_path(settings)).revoke(key)
    click.echo("revoked " + ", ".join(hashed[:DIGITS] for hashed in revoked))


@edge_key.command("list")
@click.pass_obj
def list_keys(settings: Settings) -> None:
    """List the keys, their clients and permissions."""
    rows = table("key", "client", "allowed", "revoked")
    for hashed, key in KeyFile(keys_path(settings)).read().items():
        rows.add_row(hashed[:DIGITS], key.client, ", ".join(key.allow), key.revoked or "")
    output.print(rows)

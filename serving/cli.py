"""The command line of the service: `python -m serving COMMAND`, and `--help` for each.

Exit codes: 0 done, or as wanted; 1 not done, and why is said; 2 the command was mistyped; 3 the
service does not run; 4 another change is at work.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serving import predict
from serving.client import InferenceClient, ServiceError, Unreachable
from serving.deployment import Busy, Canary, DeploymentError, History
from serving.doctor import examination as doctor
from serving.edge import process as edge
from serving.edge.keys import MAY, KeyFile, KeyFileError
from serving.edge.settings import keys_path
from serving.rollout.changes import NotRunning, Refused, Rollout
from serving.rollout.readiness import Report
from serving.settings import Settings, SettingsError
from serving.supervisor import service as supervisor
from serving.torchserve.process import StartError
from serving.torchserve.tokens import KINDS, TokenError, Tokens, renew, write_header

FAILED, NOT_RUNNING, BUSY = 1, 3, 4
# How much of a key's hash tells it from others.
KEY_DIGITS = 12
NOTHING_RUNS = "The service does not run: start it with `make run`."

# What was asked for goes to standard output, what happens meanwhile to standard error.
# Nothing is markup: a path in brackets would look like it.
# A pipe has no width that lines would have to keep.
output = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
progress = Console(stderr=True, highlight=False, markup=False)


class Group(click.Group):
    """Commands in the order in which they are written, with one sentence for each failure."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (NotRunning, Unreachable, TokenError) as error:
            say = str(error) if isinstance(error, NotRunning) else NOTHING_RUNS
            _fail(say, NOT_RUNNING)
        except Busy as error:
            _fail(str(error), BUSY)
        except (
            Refused,
            ServiceError,
            StartError,
            SettingsError,
            DeploymentError,
            KeyFileError,
        ) as error:
            _fail(str(error), FAILED)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Serve white blood cells, and roll versions of the model out and back.

    Ports and folders come from the environment (see the README).
    """
    context.obj = Settings.from_environment()


version_argument = click.argument("version")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
forced = click.option(
    "--force", is_flag=True, help="Don't wait for a version that is still asked: break off."
)


def changes(command: Callable[..., str]) -> Callable[..., None]:
    """Make a command that changes what is served, and says what was done."""

    @functools.wraps(command)
    def run(settings: Settings, **arguments: Any) -> None:
        with _rollout(settings) as rollout:
            done = command(rollout, **arguments)
        click.echo(done)

    return click.pass_obj(run)


@main.command()
@click.pass_obj
def run(settings: Settings) -> None:
    """Start TorchServe and the page, and watch over them.

    Ctrl-C stops them all.
    """
    supervisor.run(settings)


@main.command()
@click.pass_obj
def stop(settings: Settings) -> None:
    """Stop what `run` started elsewhere."""
    supervisor.stop(settings)


@main.command("edge")
@click.pass_obj
def run_edge(settings: Settings) -> None:
    """Open the running service to a network, by nginx.

    TLS, API keys, bounds; Ctrl-C closes it when what is in flight is answered.
    """
    edge.run(settings)


@main.group("edge-key")
def edge_key() -> None:
    """Give programs keys for the edge, and take them back.

    The edge heeds a change at once.
    """


@edge_key.command("add")
@click.argument("client")
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(MAY),
    default=MAY,
    show_default=True,
    help="What it may ask; can be given twice.",
)
@click.pass_obj
def add_key(settings: Settings, client: str, allow: tuple[str, ...]) -> None:
    """Make a key for CLIENT, and print it, this once."""
    click.echo(KeyFile(keys_path(settings)).add(client, allow))


@edge_key.command("revoke")
@click.argument("which")
@click.pass_obj
def revoke_key(settings: Settings, which: str) -> None:
    """Revoke keys.

    WHICH is a client, or how a key is called in the list.
    """
    found = KeyFile(keys_path(settings)).revoke(which)
    click.echo("revoked " + ", ".join(hashed[:KEY_DIGITS] for hashed in found))


@edge_key.command("list")
@click.pass_obj
def list_keys(settings: Settings) -> None:
    """List the keys: whose they are, what they may ask."""
    table = _table("key", "client", "may", "revoked")
    for hashed, key in KeyFile(keys_path(settings)).read().items():
        table.add_row(hashed[:KEY_DIGITS], key.client, ", ".join(key.allow), key.revoked or "")
    output.print(table)


@main.command()
@as_json
@click.pass_obj
def status(settings: Settings, as_json: bool) -> None:
    """Tell which versions serve, and how they fare.

    Exit code 1 if anything is not as deployment.yaml wants it.
    """
    with _rollout(settings) as rollout:
        found = rollout.status()
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_status(found)
    if found["differences"] or not found["ready"]:
        sys.exit(FAILED)


@main.command()
@version_argument
@click.option("--workers", default=1, show_default=True, help="Processes that serve it.")
@click.option(
    "--archive",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Take this archive, not the one that `make mar` built.",
)
@click.option("--sha256", help="What its SHA-256 must be; else ARCHIVE.sha256 says it.")
@changes
def deploy(
    rollout: Rollout, version: str, workers: int, archive: Path | None, sha256: str | None
) -> str:
    """Let VERSION serve beside the others.

    It gets no client before it was seen to answer rightly; if it does not, nothing of it is left.
    """
    rollout.deploy(version, workers, archive, sha256)
    return (
        f"version {version} serves beside the others: try it on some by `canary {version}`, "
        f"or let it answer by default by `promote {version}`"
    )


@main.command()
@version_argument
@changes
def promote(rollout: Rollout, version: str) -> str:
    """Let VERSION answer by default."""
    rollout.promote(version)
    return f"version {version} answers by default; `rollback` undoes that"


@main.command()
@version_argument
@click.option(
    "--percent", type=float, default=10.0, show_default=True, help="Share of the clients."
)
@click.option(
    "--max-errors",
    type=float,
    default=Canary.max_errors,
    show_default=True,
    help="Percent of its requests that may fail, above the default version's.",
)
@click.option(
    "--max-p95",
    type=float,
    default=Canary.max_p95,
    show_default=True,
    help="Milliseconds within which 19 in 20 of its answers must come.",
)
@changes
def canary(
    rollout: Rollout, version: str, percent: float, max_errors: float, max_p95: float
) -> str:
    """Let VERSION answer a share of the clients.

    If it breaks its bounds, it goes back by itself. Again, with another percentage, it goes on.
    """
    rollout.canary(Canary(version, percent, max_errors, max_p95))
    return f"version {version} answers {percent:g} % of the clients; `promote {version}` goes on"


@main.command()
@changes
def rollback(rollout: Rollout) -> str:
    """End the canary, or undo the last promotion."""
    return f"version {rollout.rollback()} answers"


@main.command()
@version_argument
@click.option("--workers", type=int, required=True, help="Processes that are to serve it.")
@forced
@changes
def scale(rollout: Rollout, version: str, workers: int, force: bool) -> str:
    """Give VERSION more workers, or fewer."""
    rollout.scale(version, workers, force)
    return f"version {version} has {workers} worker{'' if workers == 1 else 's'}"


@main.command()
@version_argument
@forced
@changes
def retire(rollout: Rollout, version: str, force: bool) -> str:
    """Take VERSION out of service.

    Once it is at rest: nothing that is in flight is lost.
    """
    rollout.retire(version, force)
    return f"version {version} is retired; `deploy {version}` brings it back"


@main.command()
@forced
@changes
def apply(rollout: Rollout, force: bool) -> str:
    """Bring the service to deployment.yaml.

    As after editing it.
    """
    return "\n".join(rollout.apply(force) or ["nothing to do"])


@main.command("predict")
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(predict.FORMATS)),
    default="table",
    show_default=True,
    help="A table for people, CSV for spreadsheets, JSON for programs.",
)
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file, not to standard output.",
)
@click.option("--version", help="Ask this version, not the one that answers by default.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Images that are asked at a time.",
)
@click.pass_obj
def predict_images(
    settings: Settings,
    images: tuple[Path, ...],
    form: str,
    target: Path | None,
    version: str | None,
    jobs: int,
) -> None:
    """Tell what images show.

    IMAGE is a file, or a folder with images anywhere in it.
    """
    files = predict.find_images(images)
    if not files:
        raise click.UsageError("There is no image in what was named.")
    if supervisor.running(settings.run_dir) is None:
        raise NotRunning(NOTHING_RUNS)
    client = InferenceClient(settings, pool_size=jobs)
    try:
        with _opened(target) as stream:
            # Lines that appear on the terminal tell how far it is by themselves.
            bar = progress.is_terminal and not (form != "table" and stream.isatty())
            failed = predict.run(
                client,
                files,
                predict.FORMATS[form],
                stream,
                version=version,
                jobs=jobs,
                console=progress if bar else None,
            )
    finally:
        client.close()
    if failed:
        _fail(f"{failed} of {len(files)} images got no answer.", FAILED)


@main.command()
@as_json
@click.pass_obj
def history(settings: Settings, as_json: bool) -> None:
    """Tell who changed what when, and what came of it."""
    entries = History(settings.deployment).entries()
    if as_json:
        click.echo(json.dumps(entries, indent=2))
        return
    table = _table("time", "who", "what", "outcome", "seconds", "archive", "why")
    for entry in entries:
        table.add_row(
            entry["time"].replace("+00:00", "Z"),
            entry["who"],
            " ".join(filter(None, (entry["action"], entry["version"]))),
            entry["outcome"],
            f"{entry['seconds']:.1f}",
            entry.get("sha256", "")[:12],
            entry.get("why", ""),
        )
    output.print(table)


@main.command("doctor")
@as_json
@click.pass_obj
def examine(settings: Settings, as_json: bool) -> None:
    """Look at everything that can be wrong.

    Tells what to do; exit code 1 if anything is wrong.
    """
    with progress.status("looking"):
        findings = doctor.examine(settings)
    problems = sum(finding.state == doctor.PROBLEM for finding in findings)
    if as_json:
        checks = [finding.to_document() for finding in findings]
        click.echo(json.dumps({"problems": problems, "checks": checks}, indent=2))
    else:
        _print_findings(findings)
    if problems:
        _fail(f"{problems} of {len(findings)} findings are problems.", FAILED)


@main.command("renew-tokens")
@click.pass_obj
def renew_tokens(settings: Settings) -> None:
    """Replace the tokens now.

    As when one was seen by others; no request is lost.
    """
    tokens = Tokens(settings.run_dir)
    try:
        for kind in KINDS:
            renew(settings, tokens, kind)
    except OSError as error:
        # requests' errors are of this kind, too.
        raise Unreachable(str(error)) from error
    write_header(settings.run_dir, tokens)
    click.echo("the tokens are new; the one for inference is in inference.header, as before")


@contextmanager
def _rollout(settings: Settings) -> Iterator[Rollout]:
    """Yield the changes to the service, while a line on the terminal tells what is waited for."""
    # As Ctrl-C does: a change that is broken off undoes what it did.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with progress.status("asking the service") as line:
        report: Report = line.update
        rollout = Rollout(settings, report)
        try:
            yield rollout
        finally:
            rollout.close()


def _opened(target: Path | None) -> AbstractContextManager[TextIO]:
    """Open where results go; what is not given is standard output."""
    if target is None:
        return nullcontext(sys.stdout)
    try:
        return target.open("w", encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(target), error.strerror) from error


def _print_status(found: dict[str, Any]) -> None:
    table = _table("version", "clients", "workers", "queue", "TEST accuracy", "archive")
    for each in found["versions"]:
        notes = " (another build lies in the model store)" if each["other_build"] else ""
        table.add_row(
            each["version"],
            _clients(each, found),
            f"{each['ready']} of {each['workers']}",
            str(each["queue"]),
            _accuracy(each["test_accuracy"]),
            (each["sha256"] or "lost")[:12] + notes,
        )
    output.print(table)
    if not found["ready"]:
        output.print("The service is not ready: it starts, or is being started again.")
    for difference in found["differences"]:
        output.print(f"not as wanted: {difference}")
    if found["differences"]:
        output.print("`apply` brings the service to deployment.yaml.")
    if last := found["last_change"]:
        what = " ".join(filter(None, (last["action"], last["version"])))
        output.print(f"last change: {what}, {last['outcome']}, {last['time']}, by {last['who']}")


def _print_findings(findings: list[doctor.Finding]) -> None:
    table = _table("check", "state", "found")
    colours = {doctor.OK: "green", doctor.NOTE: "yellow", doctor.PROBLEM: "bold red"}
    before = None
    for each in findings:
        advice = f"\n-> {each.advice}" if each.advice else ""
        table.add_row(
            "" if each.check == before else each.check,
            Text(each.state, style=colours.get(each.state, "")),
            # As Text: a path may look like rich's markup.
            Text(each.what + advice),
        )
        before = each.check
    output.print(table)


def _clients(version: dict[str, Any], found: dict[str, Any]) -> str:
    percent = f"{version['clients_percent']:g} %"
    if version["version"] == found["default"]:
        return f"{percent}, default"
    if found["canary"] and found["canary"]["version"] == version["version"]:
        return f"{percent}, canary"
    return percent


def _accuracy(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "not measured"
    low, high = measured["interval"]
    return f"{measured['value']:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)

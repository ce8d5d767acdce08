"""Commands that report on the service, as tables or as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click
from rich.text import Text

from serving import doctor as checks
from serving.cli.console import FAILED, as_json, fail, output, progress, table
from serving.cli.versions import open_rollout
from serving.deployment import History
from serving.settings import Settings

STATE_COLOURS = {checks.OK: "green", checks.WARNING: "yellow", checks.PROBLEM: "bold red"}


@click.command()
@as_json
@click.pass_obj
def status(settings: Settings, as_json: bool) -> None:
    """Show the versions, their traffic and workers.

    The exit code is 1 if the service is not ready or differs from deployment.yaml.
    """
    with open_rollout(settings) as rollout:
        found = rollout.status()
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_status(found)
    if found["differences"] or not found["ready"]:
        sys.exit(FAILED)


@click.command()
@as_json
@click.pass_obj
def history(settings: Settings, as_json: bool) -> None:
    """Show past changes, who made them, and their outcome."""
    entries = History(settings.deployment).entries()
    if as_json:
        click.echo(json.dumps(entries, indent=2))
        return
    rows = table("time", "user", "change", "outcome", "seconds", "archive", "reason")
    for entry in entries:
        rows.add_row(
            entry["time"].replace("+00:00", "Z"),
            entry["who"],
            _action(entry),
            entry["outcome"],
            f"{entry['seconds']:.1f}",
            entry.get("sha256", "")[:12],
            entry.get("why", ""),
        )
    output.print(rows)


@click.command()
@as_json
@click.pass_obj
def doctor(settings: Settings, as_json: bool) -> None:
    """Check the machine, the configuration and the service.

    Each problem comes with advice. The exit code is 1 if there is any.
    """
    with progress.status("checking"):
        findings = checks.examine(settings)
    problems = sum(finding.state == checks.PROBLEM for finding in findings)
    if as_json:
        document = {"problems": problems, "checks": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(document, indent=2))
    else:
        _print_findings(findings)
    if problems:
        fail(f"problems found: {problems}")


def _print_status(found: dict[str, Any]) -> None:
    rows = table("version", "clients", "workers", "queue", "TEST accuracy", "archive")
    for each in found["versions"]:
        notes = " (the model store holds another build)" if each["other_build"] else ""
        rows.add_row(
            each["version"],
            _clients(each, found),
            f"{each['ready']} of {each['workers']}",
            str(each["queue"]),
            _accuracy(each["test_accuracy"]),
            (each["sha256"] or "missing")[:12] + notes,
        )
    output.print(rows)
    if not found["ready"]:
        output.print("The service is not ready: it is starting or restarting.")
    for difference in found["differences"]:
        output.print(f"not in sync: {difference}")
    if found["differences"]:
        output.print("`apply` applies deployment.yaml to the service.")
    if last := found["last_change"]:
        output.print(
            f"last change: {_action(last)}, {last['outcome']}, {last['time']}, by {last['who']}"
        )


def _print_findings(findings: list[checks.Finding]) -> None:
    rows = table("check", "state", "found")
    previous = None
    for each in findings:
        advice = f"\n-> {each.advice}" if each.advice else ""
        rows.add_row(
            "" if each.check == previous else each.check,
            Text(each.state, style=STATE_COLOURS.get(each.state, "")),
            # As Text: a path may look like rich's markup.
            Text(each.found + advice),
        )
        previous = each.check
    output.print(rows)


def _action(entry: dict[str, Any]) -> str:
    return " ".join(filter(None, (entry["action"], entry["version"])))


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

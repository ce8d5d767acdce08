"""The history of the changes to deployment.yaml, and the lock that allows one at a time."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.deployment.spec import DeploymentError, VersionSpec, from_document, load, to_document
from serving.files import Locked, lock
from serving.settings import Settings

LOCK = "change.lock"


class Busy(Exception):
    """Another change is running; the message says which."""


class History:
    """A line of JSON for each change: who made it, when, and its outcome."""

    def __init__(self, deployment: Path) -> None:
        self.path = deployment.with_name(f"{deployment.stem}.history.jsonl")

    def add(self, entry: dict[str, Any]) -> None:
        with self.path.open("a+b") as file:
            if size := file.seek(0, os.SEEK_END):
                file.seek(size - 1)
                # A full disk may have truncated the last line.
                if file.read() != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")

    def entries(self) -> list[dict[str, Any]]:
        """Return all entries, oldest first, without truncated lines."""
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return entries

    def defaults(self, now: str) -> list[str]:
        """Return the default versions up to the present one, without those rolled back.

        Each entry has the state before and after it, since the file may also be edited.
        """
        found: list[str] = []
        for entry in self.entries():
            if entry["outcome"] != "done":
                continue
            _append_new(found, entry["before"]["default"])
            if entry["action"] == "rollback" and found[-2:-1] == [entry["after"]["default"]]:
                found.pop()
            _append_new(found, entry["after"]["default"])
        _append_new(found, now)
        return found

    def last_seen(self, version: str) -> VersionSpec | None:
        """Return the last spec of a version, or None."""
        for entry in reversed(self.entries()):
            for moment in ("after", "before"):
                if version in entry[moment]["versions"]:
                    return from_document(entry[moment]).versions[version]
        return None


def _append_new(names: list[str], name: str) -> None:
    if names[-1:] != [name]:
        names.append(name)


@contextlib.contextmanager
def change(settings: Settings, action: str, version: str | None = None) -> Iterator[dict[str, Any]]:
    """Hold the lock of changes and add an entry to the history; raise Busy.

    Yields the entry, so that the change can add to it.
    """
    entry: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": _user(),
        "action": action,
        "version": version,
    }
    started = time.monotonic()
    note = f"`{action}{f' {version}' if version else ''}` by process {os.getpid()}"
    try:
        with lock(settings.run_dir / LOCK, note):
            before = load(settings.deployment)
            try:
                yield entry
                entry["outcome"] = "done"
            except BaseException as error:
                entry["outcome"], entry["why"] = "failed", str(error) or type(error).__name__
                raise
            finally:
                entry["seconds"] = round(time.monotonic() - started, 2)
                entry["before"] = to_document(before)
                _record(settings.deployment, entry)
    except Locked as error:
        raise Busy(f"Another change is running: {error}. Try again when it is done.") from error


def _record(deployment: Path, entry: dict[str, Any]) -> None:
    """Add an entry with the present state. A failure is logged, because the change is done."""
    try:
        entry["after"] = to_document(load(deployment))
        History(deployment).add(entry)
    except (DeploymentError, OSError) as error:
        logging.getLogger(__name__).warning("The history lacks this change: %s", error)


def _user() -> str:
    """Return who runs this process: the user's name, or the uid where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())

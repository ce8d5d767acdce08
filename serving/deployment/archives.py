"""The archives: built in the model store, checked, and copied to where TorchServe loads from.

What serves is a copy in RUN_DIR/archives, taken when the version was deployed: an archive that is
built anew meanwhile changes nothing, and a restart brings back the very bytes that served before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

from serving.settings import MODEL, Settings

# What reading a damaged zip file may raise.
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


class BadArchive(Exception):
    """An archive can't be used; the message is one sentence that says why and what to do."""


def built(settings: Settings, version: str) -> Path:
    """Return where `make mar` puts the archive of a version."""
    return settings.model_store / f"{MODEL}-{version}.mar"


def deployed(settings: Settings, version: str) -> Path:
    """Return where the archive lies from which TorchServe serves a version."""
    return settings.archives / f"{MODEL}-{version}.mar"


def digest(archive: Path) -> str:
    """Return the SHA-256 of a file in hex; raise OSError."""
    # hashlib.file_digest came with Python 3.11.
    with archive.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def noted_digest(archive: Path) -> str | None:
    """Return the SHA-256 that stands beside an archive (NAME.mar.sha256), or None."""
    try:
        words = archive.with_name(f"{archive.name}.sha256").read_text().split()
    except OSError:
        return None
    return words[0] if words else None


def check(archive: Path, version: str, sha256: str | None = None) -> str:
    """Return the SHA-256 of the archive of a version; raise BadArchive if it is not that.

    It must be whole, say that it is this version, and have this SHA-256 if one is given.
    """
    if not archive.is_file():
        raise BadArchive(f"The archive {archive} is missing: run `make mar`.")
    found = digest(archive)
    if sha256 and found != sha256.lower():
        raise BadArchive(
            f"The archive {archive} is not the one that is meant: its SHA-256 begins with "
            f"{found[:12]}, not {sha256[:12].lower()}. Build it anew, or fetch the right one."
        )
    says = _manifest(archive)
    if (says["modelName"], says["modelVersion"]) != (MODEL, version):
        raise BadArchive(
            f"The archive {archive} says that it is {says['modelName']} {says['modelVersion']}, "
            f"not {MODEL} {version}."
        )
    return found


def take(settings: Settings, archive: Path, version: str, sha256: str | None = None) -> str:
    """Copy a checked archive to where it is served from; return its SHA-256.

    Raises BadArchive, and then leaves what lay there before.
    """
    found = check(archive, version, sha256)
    target = deployed(settings, version)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        shutil.copyfile(archive, partial)
        # It may have changed between the check and the copy.
        if digest(partial) != found:
            raise BadArchive(f"The archive {archive} changes while it is copied: try again.")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return found


class Former:
    """The archive of a version as it lies where it is served from, to be put back."""

    def __init__(self, settings: Settings, version: str) -> None:
        self._path = deployed(settings, version)
        self._content = self._path.read_bytes() if self._path.exists() else None

    def put_back(self) -> None:
        """Let it lie there again, or nothing if nothing did."""
        if self._content is None:
            self._path.unlink(missing_ok=True)
        else:
            self._path.write_bytes(self._content)


def provide(settings: Settings, version: str, sha256: str | None) -> str:
    """Have the archive of a version where it is served from; return its SHA-256.

    With a SHA-256 that is the very archive; without, the one that is built. Raises BadArchive.
    """
    present = deployed(settings, version)
    if sha256 and present.is_file() and digest(present) == sha256.lower():
        return sha256.lower()
    source = built(settings, version)
    return take(settings, source, version, sha256 or noted_digest(source))


def read_json(archive: Path, name: str) -> Any:
    """Return a JSON document of an archive; raise BadArchive."""
    try:
        with zipfile.ZipFile(archive) as file:
            return json.loads(file.read(name))
    except (*DAMAGED, KeyError) as error:
        # The former also looks like the latter: cut off, it may end in the zip file of its weights.
        raise BadArchive(
            f"The archive {archive} is damaged, or holds no {name}: run `make mar`."
        ) from error


def _manifest(archive: Path) -> dict[str, str]:
    try:
        with zipfile.ZipFile(archive) as file:
            if broken := file.testzip():
                raise BadArchive(f"The archive {archive} is damaged (in {broken}): run `make mar`.")
    except DAMAGED as error:
        raise BadArchive(f"The archive {archive} is damaged: run `make mar`.") from error
    try:
        model = read_json(archive, "MAR-INF/MANIFEST.json")["model"]
        return {key: str(model[key]) for key in ("modelName", "modelVersion")}
    except (KeyError, TypeError) as error:
        raise BadArchive(
            f"The archive {archive} does not say what it is: run `make mar`."
        ) from error

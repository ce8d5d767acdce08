"""Model archives: checked in the model store, and copied to the folder that TorchServe loads from.

TorchServe serves a copy in RUN_DIR/archives, made when the version is deployed. A later build of
the archive changes nothing, and a restart serves the same bytes as before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

from serving.files import atomic_write
from serving.settings import MODEL, Settings

# Errors that a damaged zip file raises.
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


class BadArchive(Exception):
    """An archive can't be used; the message explains why and what to do."""


def built(settings: Settings, version: str) -> Path:
    """Return the path of the archive that `make mar` builds."""
    return settings.model_store / f"{MODEL}-{version}.mar"


def deployed(settings: Settings, version: str) -> Path:
    """Return the path of the archive that TorchServe loads."""
    return settings.archives / f"{MODEL}-{version}.mar"


def digest(archive: Path) -> str:
    """Return the SHA-256 of an archive; raise OSError."""
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def noted_digest(archive: Path) -> str | None:
    """Return the SHA-256 in the file beside an archive (NAME.mar.sha256), or None."""
    try:
        words = archive.with_name(f"{archive.name}.sha256").read_text().split()
    except OSError:
        return None
    return words[0] if words else None


def check(archive: Path, version: str, sha256: str | None = None) -> str:
    """Check that an archive is intact and holds this version; return its SHA-256.

    Raises BadArchive, also if a SHA-256 is given and differs.
    """
    if not archive.is_file():
        raise BadArchive(f"The archive {archive} is missing: run `make mar`.")
    found = digest(archive)
    if sha256 and found != sha256.lower():
        raise BadArchive(
            f"The archive {archive} is not the expected one: its SHA-256 begins with "
            f"{found[:12]}, not {sha256[:12].lower()}. Build it again, or fetch the right one."
        )
    model = _manifest(archive)
    if model != (MODEL, version):
        raise BadArchive(f"The archive {archive} holds {' '.join(model)}, not {MODEL} {version}.")
    return found


def install(settings: Settings, archive: Path, version: str, sha256: str | None = None) -> str:
    """Check an archive and copy it to RUN_DIR/archives; return its SHA-256.

    Raises BadArchive, and then keeps the archive that is there.
    """
    found = check(archive, version, sha256)
    target = deployed(settings, version)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with archive.open("rb") as source, atomic_write(target) as copy:
        shutil.copyfileobj(source, copy)
        copy.seek(0)
        # It may have changed between the check and the copy.
        if hashlib.file_digest(copy, "sha256").hexdigest() != found:
            raise BadArchive(f"The archive {archive} changed while it was copied: try again.")
    return found


def provide(settings: Settings, version: str, sha256: str | None) -> str:
    """Make sure that the archive of a version is in RUN_DIR/archives; return its SHA-256.

    With a SHA-256, it is the archive that has it, else the one in the model store.
    Raises BadArchive.
    """
    present = deployed(settings, version)
    if sha256 and present.is_file() and digest(present) == sha256.lower():
        return sha256.lower()
    source = built(settings, version)
    return install(settings, source, version, sha256 or noted_digest(source))


def read_json(archive: Path, name: str) -> Any:
    """Return a JSON document from an archive; raise BadArchive."""
    try:
        with zipfile.ZipFile(archive) as file:
            return json.loads(file.read(name))
    except (*DAMAGED, KeyError) as error:
        raise BadArchive(
            f"The archive {archive} is damaged or has no {name}: run `make mar`."
        ) from error


def _manifest(archive: Path) -> tuple[str, str]:
    """Return the model's name and version; raise BadArchive unless the whole archive is intact."""
    try:
        with zipfile.ZipFile(archive) as file:
            if broken := file.testzip():
                raise BadArchive(f"The archive {archive} is damaged (in {broken}): run `make mar`.")
    except DAMAGED as error:
        raise BadArchive(f"The archive {archive} is damaged: run `make mar`.") from error
    try:
        model = read_json(archive, "MAR-INF/MANIFEST.json")["model"]
        return str(model["modelName"]), str(model["modelVersion"])
    except (KeyError, TypeError) as error:
        raise BadArchive(
            f"The manifest of {archive} names no model and version: run `make mar`."
        ) from error

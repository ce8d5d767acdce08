"""Known images and the answers that a version is known to give to them.

The images (`samples/`) are drawn by the project. The answers were written when the version was
evaluated, and lie in its archive: whoever holds an archive can tell whether it answers rightly.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from serving.settings import MODEL, Settings

SAMPLES = Path(__file__).parent / "samples"
# Other processors round differently; another network or preprocessing differs by far more.
TOLERANCE = 1e-3

Probabilities = dict[str, float]


class UnknownAnswers(Exception):
    """An archive does not tell what its version should answer."""


def archive_of(settings: Settings, version: str) -> Path:
    """Return where the archive of a version lies."""
    return settings.model_store / f"{MODEL}-{version}.mar"


def answers(archive: Path) -> dict[str, Probabilities]:
    """Return a version's answers by the name of the image; raise UnknownAnswers."""
    try:
        with zipfile.ZipFile(archive) as file:
            known: dict[str, Probabilities] = json.loads(file.read("golden.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UnknownAnswers(f"{archive.name} holds no known answers: run `make mar`.") from error
    if missing := [name for name in known if not (SAMPLES / name).is_file()]:
        raise UnknownAnswers(f"{archive.name} knows images that are not there: {missing}.")
    return known


def agree(probabilities: Probabilities, known: Probabilities) -> bool:
    """Tell whether an answer is the known one."""
    return probabilities.keys() == known.keys() and all(
        abs(probabilities[name] - known[name]) <= TOLERANCE for name in known
    )

"""Known images and the answers that a version is known to give to them.

The images (`samples/`) are drawn by the project. The answers were written when the version was
evaluated, and lie in its archive: whoever holds an archive can tell whether it answers rightly.
"""

from __future__ import annotations

from pathlib import Path

from serving.deployment.archives import BadArchive, read_json
from serving.settings import ROOT

SAMPLES = ROOT / "serving" / "samples"
# Other processors round differently; another network or preprocessing differs by far more.
TOLERANCE = 1e-4

Probabilities = dict[str, float]


def answers(archive: Path) -> dict[str, Probabilities]:
    """Return a version's answers by the name of the image; raise BadArchive."""
    known: dict[str, Probabilities] = read_json(archive, "golden.json")
    if missing := [name for name in known if not (SAMPLES / name).is_file()]:
        raise BadArchive(f"The archive {archive} knows images that are not there: {missing}.")
    return known


def agree(probabilities: Probabilities, known: Probabilities) -> bool:
    """Tell whether an answer is the known one."""
    return probabilities.keys() == known.keys() and all(
        abs(probabilities[name] - known[name]) <= TOLERANCE for name in known
    )

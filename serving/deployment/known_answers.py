"""Known images, and the answers that each version must give to them.

The images (`samples/`) are drawn by the project. An archive holds the answers that its version gave
when it was evaluated.
"""

from __future__ import annotations

from pathlib import Path

from serving.deployment.archives import BadArchive, read_json
from serving.settings import ROOT

SAMPLES = ROOT / "serving" / "samples"
# Processors round differently. Another network or preprocessing differs far more.
TOLERANCE = 1e-4

Probabilities = dict[str, float]


def answers(archive: Path) -> dict[str, Probabilities]:
    """Return a version's answers by the name of the image; raise BadArchive."""
    known: dict[str, Probabilities] = read_json(archive, "golden.json")
    if missing := [name for name in known if not (SAMPLES / name).is_file()]:
        raise BadArchive(f"The archive {archive} has answers to missing images: {missing}.")
    return known


def agree(probabilities: Probabilities, known: Probabilities) -> bool:
    """Return whether an answer is the known one."""
    return probabilities.keys() == known.keys() and all(
        abs(probabilities[name] - known[name]) <= TOLERANCE for name in known
    )

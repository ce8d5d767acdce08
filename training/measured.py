"""The measured versions, read from the JSON files of their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import version_files
from training.data import DataError

Json = dict[str, Any]
# The sets of cells that macro recall is measured on, and their keys in metrics.json.
ALONE = "one_laboratory_from_the_other"
CELLS = {
    "TEST": ("test",),
    "cross-validation, all photographs": ("cross_validation",),
    "PBC, as uploaded": ("pbc", "as_uploaded"),
    "PBC, scale matched": ("pbc", "scale_matched"),
    "PBC, trained on photographs alone": (ALONE, "pbc from photographs"),
    "photographs, trained on PBC alone": (ALONE, "photographs from pbc"),
}


@dataclass(frozen=True)
class Measured:
    """The files of a version."""

    folder: Path
    card: Json
    metrics: Json
    history: Json
    golden: Json
    sweep: Json | None
    served: Json | None
    adaptation: Json | None

    @property
    def name(self) -> str:
        return str(self.metrics["version"])

    @property
    def finds_cells(self) -> bool:
        return bool(self.card.get("finds_cells"))

    @property
    def weights_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.card["sha256"])

    @property
    def recalls(self) -> dict[str, Json]:
        """Return the measurements on each set of cells."""
        found = {label: find(self.metrics, *path) for label, path in CELLS.items()}
        return {label: part for label, part in found.items() if part}


def read(version: str) -> Measured:
    """Read a version's files; raise DataError if it was not measured on TEST."""
    folder = version_files.folder(version)
    names = ("card", "metrics", "history", "golden", "sweep", "served", "adaptation")
    parts = {name: _read(folder / f"{name}.json") for name in names}
    if any(parts[name] is None for name in names[:4]) or "test" not in parts["metrics"]:
        raise DataError(
            f"Version {version} is not measured.\nRun `make evaluate VERSION={version}` first."
        )
    return Measured(folder, **parts)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def all_measured() -> list[Measured]:
    """Read every version that was measured on TEST, oldest first."""
    known = [
        read(path.parent.name)
        for path in version_files.folder("").glob("*/metrics.json")
        if "test" in _read(path)
    ]
    # By length first: 10.0 comes after 9.0.
    return sorted(known, key=lambda each: [(len(part), part) for part in each.name.split(".")])


def find(document: Mapping[str, Any], *path: str) -> Any:
    """Return the value at a path of keys, or None."""
    here: Any = document
    for key in path:
        here = here.get(key) if here else None
    return here

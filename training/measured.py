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
REQUIRED = ("card", "metrics", "history", "golden")
OPTIONAL = ("sweep", "served", "few_cells", "adaptation", "ablation")


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
    few_cells: Json | None
    adaptation: Json | None
    ablation: Json | None

    @property
    def name(self) -> str:
        return str(self.metrics["version"])

    @property
    def finds_cells(self) -> bool:
        return bool(self.card.get("finds_cells"))

    @property
    def weights_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.card["sha256"])


def read(version: str) -> Measured:
    """Read a version's files; raise DataError if it was not measured on TEST."""
    folder = version_files.folder(version)
    parts = {name: _read(folder / f"{name}.json") for name in (*REQUIRED, *OPTIONAL)}
    if any(parts[name] is None for name in REQUIRED) or "test" not in parts["metrics"]:
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
    return sorted(known, key=lambda each: age(each.name))


def age(version: str) -> list[int]:
    """Return a key that sorts versions by age: 10.0 comes after 9.0."""
    return [int(part) for part in version.split(".")]


def find(document: Mapping[str, Any], *path: str) -> Any:
    """Return the value at a path of keys, or None."""
    here: Any = document
    for key in path:
        here = here.get(key) if here else None
    return here

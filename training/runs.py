"""The training runs of a version: which cells each may see.

The shipped networks see all but TEST. The networks that measure a laboratory see neither its cells
nor TEST. The networks of a fold of the photographs see everything but that fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from training import data
from training.laboratories import PHOTOGRAPHS, laboratories
from training.protocol import FOLDS


@dataclass(frozen=True)
class Run:
    """Networks trained without a laboratory or a fold of the photographs, or to be shipped."""

    name: str
    laboratory: str | None = None
    fold: int | None = None

    def sees(self, parts: np.ndarray) -> np.ndarray:
        """Return which of these parts it may see."""
        if self.fold is not None:
            hidden = np.char.startswith(parts, f"{PHOTOGRAPHS} fold {self.fold} ")
        else:
            hidden = np.char.endswith(parts, " TEST")
            if self.laboratory:
                own = np.char.startswith(parts, f"{self.laboratory} ")
                hidden |= own | (parts == self.laboratory)
        return ~hidden


SHIPPED = Run("shipped")


def all_runs() -> list[Run]:
    """Return the runs of a version, in the order in which they train."""
    left_out = [
        Run(f"without-{each.name}", laboratory=each.name)
        for each in laboratories().values()
        if each.is_measured
    ]
    return [SHIPPED, *left_out, *(Run(f"fold-{fold}", fold=fold) for fold in range(FOLDS))]


def select(names: Sequence[str]) -> list[Run]:
    """Return the runs of these names, or all if there are none; raise DataError."""
    runs = all_runs()
    if unknown := sorted(set(names) - {run.name for run in runs}):
        known = ", ".join(run.name for run in runs)
        raise data.DataError(f"Unknown runs: {', '.join(unknown)}. Known: {known}.")
    return [run for run in runs if not names or run.name in names]


def parts_of(laboratory_names: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return the part of each cell: its laboratory, and of a photograph its fold and its split."""
    parts = _photograph_parts()
    return np.array(
        [
            parts[Path(name).stem] if laboratory == PHOTOGRAPHS else laboratory
            for laboratory, name in zip(laboratory_names, names, strict=True)
        ]
    )


@cache
def _photograph_parts() -> dict[str, str]:
    # Photographs without a label have no fold, unless they overlap one that has.
    folds: dict[str, object] = {}
    samples = data.photographs(data.data_root(), "TRAIN", "TEST")
    for fold, (_train, held_out) in enumerate(data.grouped_folds(samples, FOLDS, 0)):
        folds |= {samples[index].group: fold for index in held_out}
    return {
        name: f"{PHOTOGRAPHS} fold {folds.get(group, 'none')} {split}"
        for name, _label, split, group in data.listed_photographs()
    }

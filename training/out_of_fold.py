"""Out-of-fold predictions: what networks predict of images that they never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from training import version_files
from training.data import DataError, Sample
from training.table import Table


@dataclass
class OutOfFold(Table):
    """N images, and the logits of the most certain cell in each.

    `found` is false where no cell was found; the logits are then zeros. `folds` holds the fold
    whose networks predicted, or -1 for networks that saw another laboratory only.
    """

    names: np.ndarray
    laboratories: np.ndarray
    kinds: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    found: np.ndarray
    logits: np.ndarray

    @property
    def runs(self) -> np.ndarray:
        """Return the laboratory and the fold of each row: what one run predicted."""
        return np.char.add(np.char.add(self.laboratories, " "), self.folds.astype(str))

    def updated(self, new: Self) -> Self:
        """Return these rows, but those of the runs of `new` from `new`."""
        return self.join([self.take(~np.isin(self.runs, new.runs)), new])

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **vars(self))

    @classmethod
    def of_samples(
        cls,
        samples: Sequence[Sample],
        laboratory: str,
        folds: np.ndarray,
        found: np.ndarray,
        logits: np.ndarray,
    ) -> Self:
        """Describe the predictions of a laboratory's samples."""
        return cls(
            np.array([sample.path.name for sample in samples]),
            np.full(len(samples), laboratory),
            np.array([sample.kind for sample in samples]),
            np.array([sample.label for sample in samples]),
            np.array([sample.group for sample in samples]),
            folds,
            found,
            logits,
        )

    @classmethod
    def of(cls, version: str) -> Self:
        """Read a version's predictions; raise DataError if it was not cross-validated."""
        try:
            with np.load(version_files.folder(version) / "out_of_fold.npz") as file:
                return cls(**file)
        except OSError as error:
            raise DataError(f"{error}\nRun `make train VERSION={version}` first.") from error

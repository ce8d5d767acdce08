"""Out-of-fold predictions: what networks predict of images that they never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from training import version_files
from training.data import DataError
from training.protocol import CLASSES
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
    def predicted(self) -> np.ndarray:
        """Return the most probable class."""
        classes: np.ndarray = self.logits[:, : len(CLASSES)].argmax(1)
        return classes

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **vars(self))

    @classmethod
    def of(cls, version: str) -> Self:
        """Read a version's predictions; raise DataError if it was not cross-validated."""
        try:
            with np.load(version_files.folder(version) / "out_of_fold.npz") as file:
                return cls(**file)
        except OSError as error:
            raise DataError(f"{error}\nRun `make train VERSION={version}` first.") from error

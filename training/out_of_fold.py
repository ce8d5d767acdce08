"""Out-of-fold predictions: what networks predict of images that they never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from handler.verdict import Cell, certainty, judge
from training import version_files
from training.data import DataError, Sample
from training.table import Table


@dataclass
class OutOfFold(Table):
    """N cells that the labels of images may be about, and their logits.

    An image without a drawn box has a row for each cell, one after the other; the `first` of each
    image is marked. `found` is false where no cell was found; the logits are then zeros. `folds`
    holds the fold whose networks predicted, or -1 for networks that saw another laboratory only.
    """

    names: np.ndarray
    laboratories: np.ndarray
    kinds: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    found: np.ndarray
    logits: np.ndarray
    first: np.ndarray

    @property
    def runs(self) -> np.ndarray:
        """Return the laboratory and the fold of each row: what one run predicted."""
        return np.char.add(np.char.add(self.laboratories, " "), self.folds.astype(str))

    def updated(self, new: Self) -> Self:
        """Return these rows, but those of the runs of `new` from `new`."""
        return self.join([self.take(~np.isin(self.runs, new.runs)), new])

    def leading(self, card: Mapping[str, Any]) -> Self:
        """Return a row for each image: the cell that the service answers about."""
        return self.take(self.leaders(card))

    def leaders(self, card: Mapping[str, Any]) -> np.ndarray:
        """Return the indices of these rows."""
        certainties = [certainty(judge(card, Cell(logits))) for logits in self.logits.tolist()]
        ends = [*np.flatnonzero(self.first).tolist(), len(certainties)]
        leaders = [max(range(*image), key=certainties.__getitem__) for image in pairwise(ends)]
        return np.array(leaders, int)

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
        first: np.ndarray,
    ) -> Self:
        """Describe the predictions of a laboratory's samples, each as often as it has rows."""
        return cls(
            np.array([sample.path.name for sample in samples]),
            np.full(len(samples), laboratory),
            np.array([sample.kind for sample in samples]),
            np.array([sample.label for sample in samples]),
            np.array([sample.group for sample in samples]),
            folds,
            found,
            logits,
            first,
        )

    @classmethod
    def of(cls, version: str) -> Self:
        """Read a version's predictions; raise DataError if it was not cross-validated."""
        try:
            with np.load(version_files.folder(version) / "out_of_fold.npz") as file:
                # Older files have a single cell of each image.
                return cls(**{"first": np.full(len(file["labels"]), True), **file})
        except OSError as error:
            raise DataError(f"{error}\nRun `make train VERSION={version}` first.") from error

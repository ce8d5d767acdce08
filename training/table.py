"""Rows of training data or measurements, kept as one array for each column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np


@dataclass
class Table:
    """N rows: the base of dataclasses whose fields are arrays (N, ...)."""

    def take(self, where: np.ndarray) -> Self:
        """Return the rows at these indices, or where this mask is true."""
        return replace(self, **{name: column[where] for name, column in vars(self).items()})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts, in order."""
        columns = {
            name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])
        }
        return replace(parts[0], **columns)

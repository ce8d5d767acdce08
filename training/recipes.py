"""How each network is built and trained: all settings of a run except data and seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FieldRecipe:
    """A network that classifies the whole field."""

    channels: tuple[int, int] = (16, 32)
    pools: tuple[int, int] = (2, 4)
    hidden: int = 64
    dropout: tuple[float, float] = (0.1, 0.3)
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05

    def network(self) -> dict[str, Any]:
        """Return the arguments of BloodCellNet."""
        return {
            "channels": list(self.channels),
            "pools": list(self.pools),
            "hidden": self.hidden,
            "dropout": list(self.dropout),
        }


@dataclass(frozen=True)
class LocatorRecipe:
    """A locator: views of the photographs in which a cell takes this share of the canvas."""

    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    cell_sizes: tuple[float, float] = (0.1, 0.9)


@dataclass(frozen=True)
class CellRecipe:
    """A network that classifies single cells."""

    channels: tuple[int, ...] = (16, 32, 64, 96)
    dropout: float = 0.2
    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    # The decay of the weights' running mean, and the share of the steps after which it starts.
    decay: float = 0.995
    mean_from: float = 0.3


LOCATOR = LocatorRecipe()
RECIPES: dict[str, FieldRecipe | CellRecipe] = {"1.0": FieldRecipe(), "2.0": CellRecipe()}

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
class Fit:
    """How a network learns: AdamW on a one-cycle schedule, and the running mean of its weights."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    # The decay of the mean, and the share of the steps after which it starts.
    decay: float
    mean_from: float
    max_norm: float = 5.0


@dataclass(frozen=True)
class LocatorRecipe:
    """A locator, trained on this many canvases."""

    fit: Fit = Fit(3000, 64, 3e-3, 0.02, decay=0.995, mean_from=0.5)
    canvases: int = 32_000
    # The share of the canvas that a cell takes, on a canvas of one field and in a mosaic's tile.
    cell_sizes: tuple[float, float] = (0.09, 0.95)
    tile_sizes: tuple[float, float] = (0.25, 0.7)
    # In 8 bits its small convolutions would be slower.
    quantized: bool = False


# Finds the cells that the other locators learn, where no boxes are drawn.
FIRST_LOCATOR = LocatorRecipe(Fit(2500, 24, 3e-3, 0.02, decay=0.99, mean_from=0.5), 10_000)


@dataclass(frozen=True)
class CellRecipe:
    """The networks that find and classify single cells."""

    channels: tuple[int, ...] = (32, 64, 128, 128)
    dropout: float = 0.2
    fit: Fit = Fit(8000, 64, 3e-3, 0.05, decay=0.995, mean_from=0.3)
    label_smoothing: float = 0.05
    views: int = 72_000
    quantized: bool = True
    locator: LocatorRecipe = LocatorRecipe()

    def network(self) -> dict[str, Any]:
        """Return the arguments of CellNet."""
        return {"channels": list(self.channels), "dropout": self.dropout}


RECIPES: dict[str, FieldRecipe | CellRecipe] = {"1.0": FieldRecipe(), "3.0": CellRecipe()}

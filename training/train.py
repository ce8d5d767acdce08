"""Train a version: weights.pt, card.json, history.json and the ONNX graphs.

TEST is never opened. An interrupted training continues: checkpoints are in .train/.
"""

from __future__ import annotations

from training import data, version_files
from training.cells import train_cell_by_cell
from training.fields import train_fields
from training.recipes import RECIPES, FieldRecipe


def train(version: str) -> None:
    """Train a version."""
    root, recipe, scratch = data.data_root(), RECIPES[version], version_files.scratch(version)
    if isinstance(recipe, FieldRecipe):
        trained = train_fields(root, recipe, scratch)
    else:
        trained = train_cell_by_cell(root, recipe, scratch)
    version_files.write(version, trained)

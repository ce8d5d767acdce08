"""Train a version: `python -m training.train --version 2.0`.

Writes weights.pt, card.json and history.json to models/<version>/; TEST is never opened.
Interrupted, it goes on where it was: checkpoints lie in .train/. How far to trust the version is
settled next, by training.crossvalidate and training.calibrate (`make train` runs all three).
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import sys
from collections.abc import Sequence

from training import data, version_files
from training.cells import CellRecipe, train_cell_by_cell
from training.fields import FieldRecipe, train_fields

RECIPES: dict[str, FieldRecipe | CellRecipe] = {"1.0": FieldRecipe(), "2.0": CellRecipe()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one version; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.train")
    parser.add_argument("--version", choices=RECIPES, required=True)
    version = parser.parse_args(arguments).version
    recipe, scratch = RECIPES[version], version_files.SCRATCH / version
    keep_memory()
    try:
        root = data.data_root()
        if isinstance(recipe, FieldRecipe):
            trained = train_fields(root, recipe, scratch)
        else:
            trained = train_cell_by_cell(root, recipe, scratch)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    version_files.write(version, trained)
    print(f"wrote {version_files.folder(version)}")
    return 0


def keep_memory() -> None:
    """Have the allocator keep what is freed: getting it anew cost two thirds of a step."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


if __name__ == "__main__":
    sys.exit(main())

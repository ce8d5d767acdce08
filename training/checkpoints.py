"""What a training run has reached, on disk: interrupted runs continue, changed ones start anew.

Runs are the same if their description (data, recipe, seed) and their code are.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.files import atomic_write
from serving.settings import ROOT
from training import workers

State = dict[str, Any]
# The shape and the type of a row of each column.
Columns = Mapping[str, tuple[tuple[int, ...], str]]
# Returns the rows from a number to another.
Compute = Callable[[int, int], Mapping[str, np.ndarray]]
# Rows that are computed together.
BLOCK = 256


def identity(run: object, code: Sequence[str]) -> str:
    """Return a digest of a run's description and of the code that it runs."""
    digest = hashlib.sha256(repr(run).encode())
    for name in code:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


class Checkpoint:
    """The state of a training run, in a file that only the same run reads."""

    def __init__(self, path: Path, run: object, code: Sequence[str]) -> None:
        self.path, self.identity = path, identity(run, code)

    def load(self) -> State | None:
        """Return the state that was saved, or None if this run has saved none."""
        if self.path.exists():
            state: State = torch.load(self.path, map_location="cpu", weights_only=True)
            if state.pop("identity") == self.identity:
                return state
        return None

    def save(self, state: State) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as file:
            torch.save({"identity": self.identity, **state}, file)


def columns(
    folder: Path, run: object, code: Sequence[str], rows: int, kinds: Columns, compute: Compute
) -> dict[str, np.ndarray]:
    """Return arrays (rows, ...) that all processes share, from files in a folder.

    They are computed in parallel, block by block.
    """
    mark, wanted = folder / "identity", identity((run, rows, kinds), code)
    if not mark.exists() or mark.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, (shape, kind) in kinds.items():
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, (rows, *shape))
        np.save(folder / "done.npy", np.zeros(-(-rows // BLOCK), bool))
        mark.write_text(wanted)
    done = np.lib.format.open_memmap(folder / "done.npy", "r+")
    work = partial(_compute_block, folder, list(kinds), rows, compute)
    for block, _ in workers.each(work, np.flatnonzero(~done).tolist(), folder.name):
        done[block] = True
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in kinds}


def _compute_block(
    folder: Path, names: Sequence[str], rows: int, compute: Compute, block: int
) -> None:
    start, stop = block * BLOCK, min((block + 1) * BLOCK, rows)
    computed = compute(start, stop)
    for name in names:
        np.lib.format.open_memmap(folder / f"{name}.npy", "r+")[start:stop] = computed[name]

"""Checkpoints: an interrupted run continues where it stopped, a changed one starts again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from serving.files import atomic_write
from serving.settings import ROOT

State = dict[str, Any]


class Checkpoint:
    """The state of a training run, in a file that only the same run reads.

    Runs are the same if their description (data, recipe, seed) and their code are.
    """

    def __init__(self, path: Path, run: object, code: Sequence[str]) -> None:
        digest = hashlib.sha256(repr(run).encode())
        for name in code:
            digest.update((ROOT / name).read_bytes())
        self.path, self.identity = path, digest.hexdigest()

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

    def once(self, train: Callable[[], State]) -> State:
        """Return the state that `train` returns, which runs only if none was saved."""
        if (state := self.load()) is None:
            state = train()
            self.save(state)
        return state

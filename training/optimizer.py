"""One training step, the same for every network: AdamW on a one-cycle schedule."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

# A network, or a part of it, and its highest learning rate.
Part = tuple[nn.Module, float]


class Optimizer:
    """Updates the weights of a network's parts, over a known number of steps."""

    def __init__(
        self, parts: Sequence[Part], weight_decay: float, steps: int, max_norm: float | None = None
    ) -> None:
        keep_memory()
        groups = [list(part.parameters()) for part, _ in parts]
        rates = [rate for _, rate in parts]
        self.parameters, self.max_norm = [each for group in groups for each in group], max_norm
        self.adam = torch.optim.AdamW(
            [{"params": group, "lr": rate} for group, rate in zip(groups, rates, strict=True)],
            weight_decay=weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.adam, rates, total_steps=steps, pct_start=0.1
        )

    def step(self, loss: torch.Tensor) -> None:
        self.adam.zero_grad()
        loss.backward()
        if self.max_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.adam.step()
        self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.schedule.load_state_dict(state["schedule"])


def keep_memory() -> None:
    """Make glibc keep freed memory: returning it to the system takes two thirds of a step."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)

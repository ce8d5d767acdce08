"""One training step, the same for every network: AdamW on a one-cycle schedule."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import torch
from torch import nn


class Optimizer:
    """Updates the weights of a network, over a known number of steps.

    The learning rate is the highest; gradients are clipped to `max_norm`, if there is one.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        weight_decay: float,
        steps: int,
        max_norm: float | None = None,
    ) -> None:
        keep_memory()
        self.parameters, self.max_norm = list(network.parameters()), max_norm
        # Otherwise each parameter's count of steps would be read back from a GPU.
        fused = self.parameters[0].is_cuda
        self.adam = torch.optim.AdamW(
            self.parameters, learning_rate, weight_decay=weight_decay, fused=fused
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.adam, learning_rate, total_steps=steps, pct_start=0.1
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

"""The training loop of the locators and the classifiers of cells.

The result is the running mean of the weights, which does better on unknown laboratories (as in Cha
et al. 2021). A step depends only on the weights, the seed and its number, so an interrupted run
gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from training.checkpoints import Checkpoint
from training.optimizer import Optimizer
from training.recipes import Fit
from training.workers import DEVICE, on_device

# Steps for each row of the history, and between checkpoints.
ROW = 100

History = list[dict[str, float]]
# Returns the loss of a step on these rows, and more figures for the history. It may draw from the
# generator and from torch's global one.
Loss = Callable[[np.ndarray, np.random.Generator], tuple[torch.Tensor, Mapping[str, float]]]


@on_device()
def fit(
    network: nn.Module,
    recipe: Fit,
    rows: np.ndarray,
    loss: Loss,
    seed: int,
    title: str,
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train a network in place on batches of these rows; return the means of ROW steps each.

    On a GPU if there is one: new tensors in `loss` are on the DEVICE, too.
    """
    network.to(DEVICE).train()
    optimizer = Optimizer(
        network, recipe.learning_rate, recipe.weight_decay, recipe.steps, recipe.max_norm
    )
    mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.decay), use_buffers=True)
    learned: dict[str, Any] = {"network": network, "mean": mean, "optimizer": optimizer}
    history: History = []
    state = checkpoint and checkpoint.load()
    if state:
        history = state["history"]
        for name, part in learned.items():
            part.load_state_dict(state[name])
    figures: list[dict[str, float]] = []
    start = len(history) * ROW
    steps = range(start, recipe.steps)
    for step in tqdm(steps, title, recipe.steps, initial=start, unit="step", mininterval=5):
        torch.manual_seed(seed * recipe.steps + step)
        random = np.random.default_rng((seed, step))
        batch = _batch(rows, recipe.batch_size, seed, step)
        found, more = loss(batch, random)
        optimizer.step(found)
        if step >= recipe.mean_from * recipe.steps:
            mean.update_parameters(network)
        figures.append({"train_loss": found.item(), **more})
        if len(figures) == ROW:
            history.append(
                {
                    name: round(float(np.mean([each[name] for each in figures])), 4)
                    for name in figures[0]
                }
            )
            figures = []
            if checkpoint:
                states = {name: part.state_dict() for name, part in learned.items()}
                checkpoint.save({"history": history, **states})
    network.load_state_dict(mean.module.state_dict())
    network.cpu().eval()
    return history


def forward(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return the output of a network (N, ...) for a training step, as float32.

    On GPUs, and on CPUs with AMX, it is computed in bfloat16, which is several times as fast.
    """
    device = inputs.device.type
    fast = device == "cuda" or torch.cpu.get_capabilities().get("amx_bf16", False)
    with torch.autocast(device, torch.bfloat16, enabled=fast):
        output: torch.Tensor = network(inputs)
    return output.float()


def _batch(rows: np.ndarray, size: int, seed: int, step: int) -> np.ndarray:
    """Return the rows of a step: all come once before any comes again."""
    epoch, place = divmod(step, max(1, len(rows) // size))
    order = np.random.default_rng((seed, epoch, len(rows))).permutation(len(rows))
    batch: np.ndarray = rows[np.resize(order, max(size, len(rows)))[place * size :][:size]]
    return batch

"""Train the network that classifies single cells, on views of them (training/views.py)."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from handler.engine import Network
from handler.preprocessing import Pixels
from training.checkpoints import Checkpoint
from training.crops import CellSet, windows
from training.fitting import History, fit, forward
from training.networks import CellNet
from training.protocol import CLASSES
from training.recipes import CellRecipe
from training.views import nudge

# Cells that are predicted together.
PARALLEL = 128
CODE = (
    "training/cells.py",
    "training/views.py",
    "training/augment.py",
    "training/fitting.py",
    "training/optimizer.py",
    "training/networks.py",
)


def train_cells(
    views: Pixels,
    labels: np.ndarray,
    rows: np.ndarray,
    recipe: CellRecipe,
    seed: int,
    title: str,
    start: CellNet | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[CellNet, History]:
    """Train a network on these rows of views and labels, from a seed or a copy of `start`."""
    torch.manual_seed(seed)
    network = CellNet(len(CLASSES), recipe.channels, recipe.dropout)
    if start is not None:
        network.load_state_dict(start.state_dict())
    # Faster convolutions.
    network = convert_conv2d_weight_memory_format(network, torch.channels_last)

    def loss(
        batch: np.ndarray, _random: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        windows = nudge(views[batch]).contiguous(memory_format=torch.channels_last)
        logits, truth = forward(network, windows), torch.as_tensor(labels[batch])
        right = {"train_accuracy": (logits.argmax(1) == truth).double().mean().item()}
        return F.cross_entropy(logits, truth, label_smoothing=recipe.label_smoothing), right

    return network, fit(network, recipe.fit, rows, loss, seed, title, checkpoint)


def predict_cells(network: Network, cells: CellSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits and the embeddings of cells, from a network as it is served."""
    parts = [
        network(windows(cells.patches[at : at + PARALLEL]))
        for at in range(0, len(cells.labels), PARALLEL)
    ]
    rows, count = np.concatenate(parts), len(CLASSES) + 1
    return rows[:, :count], rows[:, count:]

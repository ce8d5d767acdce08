"""Train the network that classifies single cells, on views of them (training/views.py).

It learns the labels, and the answers of a teacher if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from handler.preprocessing import Pixels
from training.checkpoints import Checkpoint
from training.crops import CellSet, windows
from training.export import as_served
from training.fitting import History, fit
from training.networks import CellNet
from training.protocol import CLASSES
from training.recipes import CellRecipe
from training.views import nudge

# All classes are drawn equally often. Blood has few basophils: the network answers as if they were
# drawn this share as often (a correction of the prior: Menon et al. 2021).
RARE = {"BASOPHIL": 0.2}
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
    taught: np.ndarray | None = None,
    start: CellNet | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[CellNet, History]:
    """Train a network on these rows of views and labels, from a seed or a copy of `start`.

    `taught` are the logits (N, classes + 1) of a teacher for all views.
    """
    torch.manual_seed(seed)
    network = CellNet(len(CLASSES), recipe.channels, recipe.dropout)
    if start is not None:
        network.load_state_dict(start.state_dict())
        _expect(network, {name: 1 / share for name, share in RARE.items()})
    # Faster convolutions.
    network = convert_conv2d_weight_memory_format(network, torch.channels_last)

    def loss(
        batch: np.ndarray, _random: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        windows = nudge(views[batch]).contiguous(memory_format=torch.channels_last)
        logits, truth = network(windows), torch.from_numpy(labels[batch])
        right = {"train_accuracy": (logits.argmax(1) == truth).double().mean().item()}
        learned = F.cross_entropy(logits, truth, label_smoothing=recipe.label_smoothing)
        if taught is None:
            return learned, right
        distilled = distillation(logits, torch.from_numpy(taught[batch]), recipe.temperature)
        return torch.lerp(learned, distilled, recipe.distill), right

    history = fit(network, recipe.fit, rows, loss, seed, title, checkpoint)
    _expect(network, RARE)
    return network, history


def distillation(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return how far logits are from a teacher's (Hinton et al. 2015)."""
    own, others = F.log_softmax(logits / temperature, 1), F.softmax(taught / temperature, 1)
    return temperature**2 * F.kl_div(own, others, reduction="batchmean")


@torch.no_grad()
def _expect(network: CellNet, shares: Mapping[str, float]) -> None:
    """Make a network answer as if classes were this many times as common."""
    for name, share in shares.items():
        network.classifier.bias[CLASSES.index(name)] += math.log(share)


def predict_cells(network: CellNet, cells: CellSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits and the embeddings of cells, as the service computes them."""
    reader, count = as_served(network), len(CLASSES) + 1
    parts: Sequence[np.ndarray] = [
        reader(windows(cells.patches[at : at + 128])) for at in range(0, len(cells.labels), 128)
    ]
    rows = np.concatenate(parts)
    return rows[:, :count], rows[:, count:]

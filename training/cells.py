"""Train version 2.0: a locator, and the network that classifies the cells it finds.

Each step draws the same number of cells of each laboratory and class, turns, cuts off, blurs and
restains them. The result is the running mean of the weights, which does better on unknown
laboratories (as in Cha et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from handler.cells import ZOOM, Cutout, to_amounts
from handler.preprocessing import HEIGHT, WIDTH, Box, Pixels
from handler.stains import amounts
from training.augment import cut_off, misjudge, refocus, restain, turns, warp
from training.cell_set import MARGIN, CellSet, collect, halved, middle, read_field, surest
from training.checkpoints import Checkpoint
from training.data import Sample, located_photographs, photographs
from training.export import in_torch
from training.laboratories import pbc
from training.locate import Field, train_locator
from training.metrics import balanced
from training.networks import CellNet, Locator, to_input
from training.optimizer import Optimizer
from training.protocol import CLASSES
from training.recipes import LOCATOR, CellRecipe
from training.version_files import Trained

# Where this code changes, the locator or the network is trained again.
LOCATOR_CODE = (
    "training/augment.py",
    "training/cell_set.py",
    "training/locate.py",
    "training/optimizer.py",
    "handler/locator.py",
    "training/networks.py",
    "handler/preprocessing.py",
)
CODE = (*LOCATOR_CODE, "training/cells.py", "handler/cells.py", "handler/stains.py")
# Steps for each row of the history.
ROW = 100

History = list[dict[str, float]]


def train_cells(
    cells: CellSet, recipe: CellRecipe, seed: int, title: str, start: CellNet | None = None
) -> tuple[CellNet, History]:
    """Train a network from a seed, or from a copy of `start`."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = CellNet(len(CLASSES), recipe.channels, recipe.dropout)
    if start is not None:
        network.load_state_dict(start.state_dict())
    # Faster convolutions.
    network = convert_conv2d_weight_memory_format(network, torch.channels_last).train()
    optimizer = Optimizer(network, recipe, recipe.steps, max_norm=2.0)
    mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.decay))
    share = balanced(cells.laboratories, cells.labels)
    stains = torch.from_numpy(np.stack([cutout.stains for cutout in cells.cutouts]))
    labels = torch.from_numpy(cells.labels)
    history: History = []
    losses, hits = [], []
    with tqdm(total=recipe.steps, desc=title, unit="step", mininterval=1) as bar:
        for step in range(recipe.steps):
            chosen = random.choice(len(cells.labels), recipe.batch_size, p=share)
            dyes = augment(cells.patches[chosen], stains[chosen])
            logits = network(dyes.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=recipe.label_smoothing)
            optimizer.step(loss)
            if step >= recipe.mean_from * recipe.steps:
                mean.update_parameters(network)
            losses.append(loss.item())
            hits.append((logits.argmax(1) == labels[chosen]).double().mean().item())
            bar.update()
            if len(losses) == ROW:
                row = {"train_loss": np.mean(losses), "train_accuracy": np.mean(hits)}
                history.append({name: round(float(value), 4) for name, value in row.items()})
                bar.set_postfix(history[-1])
                losses, hits = [], []
    network.load_state_dict(mean.module.state_dict())
    return network.eval(), history


def augment(patches: Pixels, stains: torch.Tensor) -> torch.Tensor:
    """Draw what the network might see of patches (N, 160, 160, 3): amounts (N, 3, 60, 80)."""
    images = to_input(patches)
    # From differences within a laboratory to those between laboratories.
    strength = torch.rand(len(images))
    linear, shift = turns(strength)
    share = torch.tensor([WIDTH / HEIGHT, 1.0]) / MARGIN
    maps = torch.cat([linear * share, (shift * 2 / MARGIN / ZOOM)[:, :, None]], 2)
    views = warp(images, maps, (HEIGHT, WIDTH), torch.zeros(1))
    dyes = torch.from_numpy(amounts(cut_off(views).numpy(), misjudge(stains, strength).numpy()))
    return refocus(restain(dyes, strength), strength, blurred=0.8, reach=2.6, noise=0.1)


def predict_cells(network: CellNet, cutouts: Sequence[Cutout]) -> torch.Tensor:
    """Return the logits of cutouts (N, 5), as the service computes them."""
    parts = [cutouts[start : start + 128] for start in range(0, len(cutouts), 128)]
    reader = in_torch(network)
    return torch.from_numpy(np.concatenate([reader(to_amounts(part)) for part in parts]))


def train_cell_by_cell(root: Path, recipe: CellRecipe, scratch: Path) -> Trained:
    """Train the networks that are shipped."""
    locator, network, rows = train_shipped(root, recipe, scratch)
    return Trained(
        networks={"locator": locator, "network": network},
        card={
            "input": f"{WIDTH}x{HEIGHT} amounts of dye, of each cell found",
            "finds_cells": True,
            "network": {"channels": list(recipe.channels), "dropout": recipe.dropout},
        },
        history={
            "recipe": asdict(recipe),
            "locator_steps": LOCATOR.steps,
            "steps_a_row": ROW,
            "rows": rows,
        },
    )


def train_shipped(
    root: Path, recipe: CellRecipe, scratch: Path
) -> tuple[Locator, CellNet, History]:
    """Train on TRAIN's photographs and PBC's training images."""
    return train_both(
        [each for each in located_photographs(root) if each[1] != "TEST"],
        photographs(root, "TRAIN"),
        pbc("train"),
        recipe,
        0,
        scratch / "final.pt",
    )


def train_both(
    located: Sequence[tuple[Path, str, str, Sequence[Box]]],
    known: Sequence[Sample],
    others: Sequence[Sample],
    recipe: CellRecipe,
    seed: int,
    checkpoint: Path,
) -> tuple[Locator, CellNet, History]:
    """Train a locator on photographs with boxes, then a network on the cells that it finds."""

    def train() -> dict[str, object]:
        fields = [
            Field(read_field(path), [halved(box) for box in boxes])
            for path, _split, _group, boxes in located
        ]
        trained = train_locator(fields, LOCATOR, seed, f"locator {checkpoint.stem}")
        return {"locator": trained.state_dict()}

    run = LOCATOR, seed, [path.name for path, *_ in located]
    state = Checkpoint(checkpoint.with_suffix(".locator.pt"), run, LOCATOR_CODE).once(train)
    locator = Locator()
    locator.load_state_dict(state["locator"])
    return locator.eval(), *train_network(locator.eval(), known, others, recipe, seed, checkpoint)


def train_network(
    locator: Locator,
    known: Sequence[Sample],
    others: Sequence[Sample],
    recipe: CellRecipe,
    seed: int,
    checkpoint: Path,
) -> tuple[CellNet, History]:
    """Train a network on the cells that a locator finds, unless the checkpoint holds it.

    `known` are photographs with one cell, `others` images of PBC, whose cell is in the middle.
    """

    def train() -> dict[str, object]:
        parts = ((known, "photographs", surest), (others, "pbc", middle))
        cells = CellSet.join([collect(part, name, locator, by) for part, name, by in parts if part])
        network, history = train_cells(cells, recipe, seed, f"network {checkpoint.stem}")
        return {"network": network.state_dict(), "history": history}

    samples = [sample.path.name for sample in (*known, *others)]
    weights = [parameter.sum().item() for parameter in locator.parameters()]
    state = Checkpoint(checkpoint, (recipe, seed, samples, weights), CODE).once(train)
    network = CellNet(len(CLASSES), recipe.channels, recipe.dropout)
    network.load_state_dict(state["network"])
    return network.eval(), state["history"]

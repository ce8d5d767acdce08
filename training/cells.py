"""Train the network that tells cells apart, on cells that a locator has cut out.

Each step draws as many cells of each laboratory and class, turns, cuts off, blurs and restains
them. What is kept is the running mean of the weights (as in Cha et al. 2021, it does better on
laboratories never seen).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format
from tqdm import tqdm

from handler.cells import ZOOM, Cutout, cut_out, to_amounts, window
from handler.locator import Located, locate
from handler.networks import CellNet, Locator, to_input
from handler.preprocessing import (
    HEIGHT,
    WIDTH,
    Box,
    InputError,
    Pixels,
    cut,
    decode,
    within_field,
)
from handler.stains import amounts
from serving.files import atomic_write
from training.augment import cut_off, misjudge, refocus, restain, turns, warp
from training.data import DataError, Sample, located_photographs, photographs
from training.export import in_torch
from training.laboratories import pbc
from training.locate import STEPS, Field, train_locator
from training.metrics import balanced
from training.version_files import Trained

# What is kept of a cell for training: a square so much larger than the window's height.
MARGIN, PATCH = 1.8, 160
# The code that a locator and a network come of; where it changes, they are trained anew.
FINDING = (
    "training/augment.py",
    "training/locate.py",
    "handler/locator.py",
    "handler/networks.py",
    "handler/preprocessing.py",
)
TELLING = ("training/cells.py", "handler/cells.py", "handler/stains.py")
# Steps that share a row of the history.
ROW = 100


@dataclass(frozen=True)
class CellRecipe:
    """Everything that decides a training run but the data and the seed."""

    channels: tuple[int, ...] = (16, 32, 64, 96)
    dropout: float = 0.2
    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    # Of the weights' running mean, and from which share of the steps on it runs.
    decay: float = 0.995
    mean_from: float = 0.3


@dataclass
class CellSet:
    """N labelled cells: as the service cuts them out, and wider, to be turned in training.

    `found` tells in which images a cell was found; of the rest nothing is kept.
    """

    cutouts: list[Cutout]
    patches: Pixels
    labels: np.ndarray
    groups: np.ndarray
    laboratories: np.ndarray
    found: np.ndarray

    def take(self, where: np.ndarray) -> CellSet:
        """Return the cells at these indices, or where this is true."""
        where = np.flatnonzero(where) if where.dtype == bool else where
        return CellSet(
            [self.cutouts[index] for index in where],
            self.patches[where],
            self.labels[where],
            self.groups[where],
            self.laboratories[where],
            self.found,
        )


def join(parts: Sequence[CellSet]) -> CellSet:
    """Return the cells of all parts."""
    return CellSet(
        [cutout for part in parts for cutout in part.cutouts],
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("patches", "labels", "groups", "laboratories", "found")
        ),
    )


def read_field(path: Path) -> Pixels:
    """Decode an image to a field, as the service does; raise DataError if that can't be done."""
    try:
        return decode(path.read_bytes(), within_field).pixels
    except (InputError, OSError) as error:
        raise DataError(f"{path} can't be read: {error}") from error


def collect(
    samples: Sequence[Sample],
    laboratory: str,
    locator: Locator,
    choose: Callable[[Sequence[Located], Pixels], Located | None],
) -> CellSet:
    """Find the labelled cell of each picture and cut it out; `choose` tells which it is."""
    cutouts, patches, found = [], [], []
    finder = in_torch(locator)
    bar = tqdm(range(0, len(samples), 16), desc=f"cutting out {laboratory}", mininterval=1)
    for start in bar:
        part = [read_field(sample.path) for sample in samples[start : start + 16]]
        for field, cells in zip(part, locate(finder, part), strict=True):
            cell = choose(cells, field)
            found.append(cell is not None)
            if cell is not None:
                cutouts.append(cut_out(field, cells)[cells.index(cell)])
                square = window(cell.box, ZOOM * MARGIN, 1)
                patches.append(cut(field, square, (PATCH, PATCH)))
    if not cutouts:
        raise DataError(f"No white cell was found in any of the {len(samples)} images.")
    kept = np.array(found)
    return CellSet(
        cutouts,
        np.stack(patches),
        np.array([sample.label for sample in samples])[kept],
        np.array([sample.group for sample in samples])[kept],
        np.full(kept.sum(), laboratory),
        kept,
    )


def surest(cells: Sequence[Located], _field: Pixels) -> Located | None:
    """Choose the cell that the locator is surest of."""
    return cells[0] if cells else None


def middle(cells: Sequence[Located], field: Pixels) -> Located | None:
    """Choose the cell in the middle, where laboratories' pictures of one cell have it."""
    y, x = (side / 2 for side in field.shape[:2])
    covering = [
        cell
        for cell in cells
        if cell.box[0] <= x <= cell.box[2] and cell.box[1] <= y <= cell.box[3]
    ]
    return surest(covering or cells, field)


def train_cells(
    cells: CellSet, recipe: CellRecipe, seed: int, title: str, start: CellNet | None = None
) -> tuple[CellNet, list[dict[str, float]]]:
    """Train a network from a seed, or on from a copy of `start`; return its history, too."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = CellNet(recipe.channels, recipe.dropout)
    if start is not None:
        network.load_state_dict(start.state_dict())
    # The convolutions are faster so.
    network = convert_conv2d_weight_memory_format(network, torch.channels_last)
    optimizer = torch.optim.AdamW(
        network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    mean = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.decay)
    )
    share = balanced(cells.laboratories, cells.labels)
    stains = torch.from_numpy(np.stack([cutout.stains for cutout in cells.cutouts]))
    labels = torch.from_numpy(cells.labels)
    history: list[dict[str, float]] = []
    losses, hits = [], []
    network.train()
    with tqdm(total=recipe.steps, desc=title, unit="step", mininterval=1) as bar:
        for step in range(recipe.steps):
            chosen = random.choice(len(cells.labels), recipe.batch_size, p=share)
            dyes = augment(cells.patches[chosen], stains[chosen])
            logits = network(dyes.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimizer.step()
            schedule.step()
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
    # From how cells differ within a laboratory to how they differ between laboratories.
    strength = torch.rand(len(images))
    linear, shift = turns(strength)
    share = torch.tensor([WIDTH / HEIGHT, 1.0]) / MARGIN
    maps = torch.cat([linear * share, (shift * 2 / MARGIN / ZOOM)[:, :, None]], 2)
    views = warp(images, maps, (HEIGHT, WIDTH), torch.zeros(1))
    dyes = torch.from_numpy(amounts(cut_off(views).numpy(), misjudge(stains, strength).numpy()))
    return refocus(restain(dyes, strength), strength, blurred=0.8, reach=2.6, noise=0.1)


def predict_cells(network: CellNet, cutouts: Sequence[Cutout]) -> torch.Tensor:
    """Return the logits of cutouts as the service has them: (N, 5)."""
    parts = [cutouts[start : start + 128] for start in range(0, len(cutouts), 128)]
    reader = in_torch(network)
    return torch.from_numpy(np.concatenate([reader(to_amounts(part)) for part in parts]))


def train_cell_by_cell(root: Path, recipe: CellRecipe, scratch: Path) -> Trained:
    """Train the networks to be shipped."""
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
            "locator_steps": STEPS,
            "steps_a_row": ROW,
            "rows": rows,
        },
    )


def train_shipped(
    root: Path, recipe: CellRecipe, scratch: Path
) -> tuple[Locator, CellNet, list[dict[str, float]]]:
    """Train on TRAIN's photographs and on those of PBC's images that may train."""
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
) -> tuple[Locator, CellNet, list[dict[str, float]]]:
    """Train a locator on photographs with boxes, then a network on the cells that it finds."""
    names = [path.name for path, *_ in located]
    locator = Locator()
    state = _resume(checkpoint.with_suffix(".locator.pt"), (seed, names), FINDING)
    if "locator" not in state:
        fields = [
            Field(read_field(path), [halved(box) for box in boxes])
            for path, _split, _group, boxes in located
        ]
        state["locator"] = train_locator(fields, seed, f"locator {checkpoint.stem}").state_dict()
        _save(state, checkpoint.with_suffix(".locator.pt"))
    locator.load_state_dict(state["locator"])
    return locator.eval(), *train_network(locator.eval(), known, others, recipe, seed, checkpoint)


def train_network(
    locator: Locator,
    known: Sequence[Sample],
    others: Sequence[Sample],
    recipe: CellRecipe,
    seed: int,
    checkpoint: Path,
) -> tuple[CellNet, list[dict[str, float]]]:
    """Train a network on the cells that a locator finds; return its history, too.

    The cells are those of photographs with one cell, and of another laboratory, whose images have
    theirs in the middle. A network that was trained before is taken from the checkpoint.
    """
    samples = [sample.path.name for sample in (*known, *others)]
    weights = [parameter.sum().item() for parameter in locator.parameters()]
    state = _resume(checkpoint, (recipe, seed, samples, weights), FINDING + TELLING)
    network = CellNet(recipe.channels, recipe.dropout)
    if "network" not in state:
        parts = ((known, "photographs", surest), (others, "pbc", middle))
        cells = join([collect(part, name, locator, choose) for part, name, choose in parts if part])
        network, history = train_cells(cells, recipe, seed, f"network {checkpoint.stem}")
        state |= {"network": network.state_dict(), "history": history}
        _save(state, checkpoint)
    network.load_state_dict(state["network"])
    return network.eval(), state["history"]


def halved(box: Box) -> Box:
    """Return a photograph's box, of 640 pixels, in those of its field, of 320."""
    return box[0] / 2, box[1] / 2, box[2] / 2, box[3] / 2


def _identity(what: object, code: Sequence[str]) -> str:
    """Return what tells a training run from every other: its data, recipe and code."""
    digest = hashlib.sha256(repr(what).encode())
    for name in code:
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    return digest.hexdigest()


def _resume(checkpoint: Path, what: object, code: Sequence[str]) -> dict[str, Any]:
    identity = _identity(what, code)
    if checkpoint.exists():
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        if state["identity"] == identity:
            return state
    return {"identity": identity}


def _save(state: dict[str, Any], checkpoint: Path) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(checkpoint) as file:
        torch.save(state, file)

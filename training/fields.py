"""Train version 1.0, the network that looks at the whole field.

The channels and pooling were chosen by grouped cross-validation within TRAIN (training/sweep.py).
Here several seeds train on two thirds of TRAIN's photograph groups, the third tells which seed is
best (by its loss), and with that seed the network is trained once more, on all of TRAIN: that one
is shipped. TEST is never opened.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from handler import networks
from handler.networks import BloodCellNet, scale, to_planes
from handler.preprocessing import HEIGHT, WIDTH, Pixels
from serving.files import atomic_write
from training import data
from training.torchvision_cpu import v2
from training.version_files import Trained

SEEDS = range(3)
FOLDS = 3
# Images that share one draw of the augmentation: several times as fast as a draw for each.
SHARED_DRAW = 8


@dataclass(frozen=True)
class FieldRecipe:
    """Everything that decides a training run but the data and the seed."""

    channels: tuple[int, int] = (16, 32)
    pools: tuple[int, int] = (2, 4)
    hidden: int = 64
    dropout: tuple[float, float] = (0.1, 0.3)
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05

    def network(self) -> dict[str, Any]:
        """Return the arguments of BloodCellNet."""
        return {
            "channels": list(self.channels),
            "pools": list(self.pools),
            "hidden": self.hidden,
            "dropout": list(self.dropout),
        }


@dataclass
class Batch:
    """Images (N, 3, 60, 80) uint8 and labels (N,), on the device that trains."""

    images: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, pixels: Pixels, labels: np.ndarray, device: torch.device) -> Batch:
        return cls(to_planes(pixels).to(device), torch.from_numpy(labels).to(device))

    def take(self, indices: np.ndarray) -> Batch:
        where = torch.from_numpy(indices).to(self.labels.device)
        return Batch(self.images[where], self.labels[where])


def augmentation() -> v2.Transform:
    """Return what a microscope's field may undergo: any turn, flips, shift, scale, lamp, stain."""
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomAffine(
                degrees=180,
                translate=(0.15, 0.15),
                scale=(0.8, 1.25),
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03),
        ]
    )


class Run:
    """One training run, from a seed to a network; it can be stopped and taken up again."""

    def __init__(
        self, recipe: FieldRecipe, train: Batch, held_out: Batch | None, seed: int, checkpoint: Path
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.checkpoint = recipe, checkpoint
        self.train, self.held_out = train, held_out
        self.network = BloodCellNet(**recipe.network()).to(train.labels.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.steps = len(train.labels) // recipe.batch_size
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            recipe.learning_rate,
            total_steps=self.steps * recipe.epochs,
            pct_start=0.1,
        )
        self.augment = augmentation()
        self.history: list[dict[str, float]] = []
        self.identity = _identity(recipe, seed, train)

    def fit(self, title: str) -> BloodCellNet:
        """Train to the end of the recipe; return the network, ready for use."""
        self._resume()
        epochs = range(len(self.history), self.recipe.epochs)
        with tqdm(total=len(epochs) * self.steps, desc=title, unit="step", mininterval=1) as bar:
            for _ in epochs:
                self.history.append(self._epoch(bar))
                bar.set_postfix(self.history[-1])
                self._save()
        return self.network.eval()

    def _epoch(self, bar: tqdm[Any]) -> dict[str, float]:
        self.network.train()
        order = torch.randperm(len(self.train.labels)).numpy()
        loss_sum, right = 0.0, 0
        for step in range(self.steps):
            batch = self.train.take(
                order[step * self.recipe.batch_size :][: self.recipe.batch_size]
            )
            images = scale(batch.images).split(SHARED_DRAW)
            logits = self.network(torch.cat([self.augment(few) for few in images]))
            loss = F.cross_entropy(
                logits, batch.labels, label_smoothing=self.recipe.label_smoothing
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            loss_sum += loss.item()
            right += int((logits.argmax(1) == batch.labels).sum())
            bar.update()
        row = {
            "train_loss": loss_sum / self.steps,
            "train_accuracy": right / self.steps / self.recipe.batch_size,
        }
        if self.held_out:
            logits = predict(self.network, self.held_out.images)
            labels = self.held_out.labels.cpu()
            row["validation_loss"] = F.cross_entropy(logits, labels).item()
            row["validation_accuracy"] = (logits.argmax(1) == labels).double().mean().item()
        return {name: round(value, 4) for name, value in row.items()}

    def _save(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self.identity,
            "history": self.history,
            "random": _random_states(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        with atomic_write(self.checkpoint) as file:
            torch.save(state, file)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            return
        self.history = state["history"]
        torch.set_rng_state(state["random"][0])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random"][1:])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def _identity(recipe: FieldRecipe, seed: int, train: Batch) -> str:
    """Return what tells a run from every other: its recipe, seed, images and code."""
    digest = hashlib.sha256(repr((recipe, seed)).encode())
    digest.update(train.images.cpu().contiguous().numpy().tobytes())
    for path in (__file__, networks.__file__):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def _random_states() -> list[torch.Tensor]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]


@torch.inference_mode()
def predict(network: BloodCellNet, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Map images (N, 3, 60, 80) uint8 to logits (N, 4), on the CPU."""
    network.eval()
    parts = images.split(batch_size)
    return torch.cat([network(scale(part)).cpu() for part in parts])


def train_fields(root: Path, recipe: FieldRecipe, scratch: Path) -> Trained:
    """Train every seed, choose one, and train it on all of TRAIN."""
    images = data.list_images(root, "TRAIN")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    everything = Batch.of(*data.load(images, "TRAIN"), device)
    train, held_out = (everything.take(part) for part in data.grouped_folds(images, FOLDS, 0)[0])
    runs = []
    for seed in SEEDS:
        run = Run(recipe, train, held_out, seed, scratch / f"seed-{seed}.pt")
        run.fit(f"seed {seed}")
        runs.append(run)
    best = min(SEEDS, key=lambda seed: runs[seed].history[-1]["validation_loss"])
    print(f"seed {best} has the lowest validation loss; it now trains on all of TRAIN")
    final = Run(recipe, everything, None, best, scratch / f"final-{best}.pt")
    network = final.fit(f"seed {best}, all").cpu()
    return Trained(
        networks={"network": network},
        card={
            "input": f"{WIDTH}x{HEIGHT} RGB, the whole field",
            "finds_cells": False,
            "network": recipe.network(),
        },
        history={
            "recipe": asdict(recipe),
            "chosen_seed": best,
            "seeds": {str(seed): runs[seed].history for seed in SEEDS},
            "all_of_train": final.history,
        },
    )

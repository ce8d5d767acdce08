"""Train version 1.0, the network that classifies the whole field.

Its layout was chosen by training/sweep.py. Several seeds train on two thirds of TRAIN's groups; the
one with the lowest loss on the last third then trains on all of TRAIN, and is shipped.
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

from handler.preprocessing import HEIGHT, WIDTH, Pixels
from training import data
from training.checkpoints import Checkpoint
from training.networks import BloodCellNet, scale, to_planes
from training.optimizer import Optimizer
from training.protocol import FIELD_CLASSES, INNER_FOLDS
from training.recipes import FieldRecipe
from training.torchvision_cpu import v2
from training.version_files import Trained

SEEDS = range(3)
# Images that share one draw of the augmentation: several times as fast as a draw for each.
SHARED_DRAW = 8
CODE = ("training/fields.py", "training/optimizer.py", "training/networks.py")


@dataclass
class Batch:
    """Images (N, 3, 60, 80) uint8 and labels (N,), on the device that trains."""

    images: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, pixels: Pixels, labels: np.ndarray) -> Batch:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(to_planes(pixels).to(device), torch.from_numpy(labels).to(device))

    def take(self, indices: np.ndarray) -> Batch:
        where = torch.from_numpy(indices).to(self.labels.device)
        return Batch(self.images[where], self.labels[where])


def augmentation() -> v2.Transform:
    """Return the changes that training draws: turns, flips, shifts, scale, lamp and stain."""
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
    """One training run, from a seed to a network; an interrupted one continues."""

    def __init__(
        self, recipe: FieldRecipe, train: Batch, held_out: Batch | None, seed: int, path: Path
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.train, self.held_out = recipe, train, held_out
        self.network = BloodCellNet(len(FIELD_CLASSES), **recipe.network()).to(train.labels.device)
        self.steps = len(train.labels) // recipe.batch_size
        self.optimizer = Optimizer(
            self.network, recipe.learning_rate, recipe.weight_decay, self.steps * recipe.epochs
        )
        self.augment = augmentation()
        self.history: list[dict[str, float]] = []
        pixels = hashlib.sha256(train.images.cpu().contiguous().numpy().tobytes()).hexdigest()
        self.checkpoint = Checkpoint(path, (recipe, seed, pixels), CODE)

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
        recipe = self.recipe
        order = torch.randperm(len(self.train.labels)).numpy()
        loss_sum, right = 0.0, 0
        for step in range(self.steps):
            batch = self.train.take(order[step * recipe.batch_size :][: recipe.batch_size])
            images = scale(batch.images).split(SHARED_DRAW)
            logits = self.network(torch.cat([self.augment(few) for few in images]))
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
            self.optimizer.step(loss)
            loss_sum += loss.item()
            right += int((logits.argmax(1) == batch.labels).sum())
            bar.update()
        row = {
            "train_loss": loss_sum / self.steps,
            "train_accuracy": right / self.steps / recipe.batch_size,
        }
        if self.held_out:
            logits = predict(self.network, self.held_out.images)
            labels = self.held_out.labels.cpu()
            row["validation_loss"] = F.cross_entropy(logits, labels).item()
            row["validation_accuracy"] = (logits.argmax(1) == labels).double().mean().item()
        return {name: round(value, 4) for name, value in row.items()}

    def _save(self) -> None:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self.checkpoint.save(
            {
                "history": self.history,
                "random": [torch.get_rng_state(), *cuda],
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )

    def _resume(self) -> None:
        if state := self.checkpoint.load():
            self.history = state["history"]
            torch.set_rng_state(state["random"][0])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state_all(state["random"][1:])
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])


@torch.inference_mode()
def predict(network: BloodCellNet, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Map images (N, 3, 60, 80) uint8 to logits (N, 4), on the CPU."""
    network.eval()
    return torch.cat([network(scale(part)).cpu() for part in images.split(batch_size)])


def cross_predict(
    recipe: FieldRecipe, everything: Batch, folds: data.Folds, scratch: Path, title: str
) -> tuple[np.ndarray, BloodCellNet]:
    """Return each image's logits (N, classes) by the network of its fold, and the last network."""
    logits = np.zeros((len(everything.labels), len(FIELD_CLASSES)), np.float32)
    for fold, (train, held_out) in enumerate(folds):
        run = Run(recipe, everything.take(train), None, fold, scratch / f"fold-{fold}.pt")
        network = run.fit(f"{title}fold {fold}")
        logits[held_out] = predict(network, everything.take(held_out).images).numpy()
    return logits, network


def train_fields(root: Path, recipe: FieldRecipe, scratch: Path) -> Trained:
    """Train every seed, choose one, and train it on all of TRAIN."""
    images = data.list_images(root, "TRAIN")
    everything = Batch.of(*data.load(images, "TRAIN"))
    folds = data.grouped_folds(images, INNER_FOLDS, 0)
    train, held_out = (everything.take(part) for part in folds[0])
    runs = []
    for seed in SEEDS:
        run = Run(recipe, train, held_out, seed, scratch / f"seed-{seed}.pt")
        run.fit(f"seed {seed}")
        runs.append(run)
    best = min(SEEDS, key=lambda seed: runs[seed].history[-1]["validation_loss"])
    print(f"seed {best} has the lowest validation loss; training it on all of TRAIN")
    final = Run(recipe, everything, None, best, scratch / f"final-{best}.pt")
    network = final.fit(f"seed {best}, all").cpu()
    return Trained(
        networks={"network": network},
        card={
            "classes": list(FIELD_CLASSES),
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

"""Train and measure the locator, on the boxes that BCCD draws around white cells.

Each step sees photographs turned, scaled, shifted and recoloured, and learns the centres and sizes
of the boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from handler.locator import CANVAS, STRIDE, UNIT, Located, overlap
from handler.preprocessing import Box, Pixels
from training.augment import recolour, refocus, warp
from training.networks import Locator, to_input
from training.optimizer import Optimizer
from training.recipes import LocatorRecipe

# A cell of which less is visible is neither expected nor an error.
LEAST_VISIBLE = 0.35
# The least overlap of a correct box with the drawn one (intersection over union).
RIGHT_OVERLAP = 0.5
_CELLS = CANVAS // STRIDE


@dataclass
class Field:
    """A photograph (H, W, 3) and the boxes of its white cells, in its pixels."""

    pixels: Pixels
    boxes: Sequence[Box]


def train_locator(fields: Sequence[Field], recipe: LocatorRecipe, seed: int, title: str) -> Locator:
    """Train a locator on fields of one size."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    locator = Locator().train()
    optimizer = Optimizer(locator, recipe, recipe.steps, max_norm=5.0)
    for _ in tqdm(range(recipe.steps), desc=title, unit="step", mininterval=1):
        indices = random.integers(len(fields), size=recipe.batch_size)
        canvases, boxes = _view([fields[index] for index in indices], recipe.cell_sizes, random)
        optimizer.step(_loss(locator(canvases), *_targets(boxes)))
    return locator.eval()


def measure_locator(
    found: Sequence[Sequence[Located]], drawn: Sequence[Sequence[Box]]
) -> dict[str, float | int]:
    """Return recall and the share of false boxes, at an intersection over union of 0.5."""
    right = false = 0
    for cells, boxes in zip(found, drawn, strict=True):
        left = list(boxes)
        for cell in cells:
            match = max(left, key=lambda box: overlap(cell.box, box), default=None)
            if match and overlap(cell.box, match) >= RIGHT_OVERLAP:
                left.remove(match)
                right += 1
            else:
                false += 1
    all_boxes = sum(map(len, drawn))
    return {
        "boxes": all_boxes,
        "found": right,
        "recall": round(right / max(all_boxes, 1), 4),
        "false_boxes": false,
        "false_share": round(false / max(right + false, 1), 4),
    }


def _view(
    fields: Sequence[Field], cell_sizes: tuple[float, float], random: np.random.Generator
) -> tuple[torch.Tensor, list[list[tuple[Box, float]]]]:
    """Draw a view of each field: canvases (N, 3, 128, 128), and boxes with their visible share."""
    images = to_input(field.pixels for field in fields)
    height, width = images.shape[2:]
    maps, boxes = [], []
    for field in fields:
        turn, onto, centre = _draw_map(field, cell_sizes, random)
        boxes.append([_turned(box, turn, onto, centre) for box in field.boxes])
        back = np.linalg.inv(turn)
        # From the canvas's coordinates to the field's, both -1 to 1.
        to_unit = np.array([2 / width, 2 / height])
        shift = back @ (np.full(2, CANVAS / 2) - onto) + centre
        linear = to_unit[:, None] * back * (CANVAS / 2)
        maps.append(np.concatenate([linear, (to_unit * shift - 1)[:, None]], 1))
    finer = int(random.integers(1, 3))
    some = torch.rand(len(fields), 3, 1, 1) * (torch.rand(len(fields), 1, 1, 1) < 0.5)
    light = images[:, :, ::8, ::8].flatten(2).quantile(0.9, dim=2)[:, :, None, None]
    fill = torch.where(torch.rand(len(fields), 1, 1, 1) < 0.25, light, some)
    side = CANVAS * finer
    views = warp(images, torch.tensor(np.stack(maps)).float(), (side, side), fill)
    views = F.avg_pool2d(views, finer) if finer > 1 else views
    views = recolour(views)
    views = refocus(views, torch.ones(len(views)), blurred=0.3, reach=1.0, noise=0.02)
    return views.clamp(0, 1), boxes


def _draw_map(
    field: Field, cell_sizes: tuple[float, float], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the map `turn @ (point - centre) + onto`, from the field to the canvas, of one cell."""
    longer = max(field.pixels.shape)
    box = field.boxes[int(random.integers(len(field.boxes)))]
    centre = np.array([box[0] + box[2], box[1] + box[3]]) / 2
    low, high = cell_sizes if random.random() < 0.6 else (0.25, 0.5)
    target = CANVAS * math.exp(random.uniform(math.log(low), math.log(high)))
    scale = target / max(box[2] - box[0], box[3] - box[1])
    # No smaller than the whole field with a margin.
    scale = max(scale, CANVAS / longer / 1.6)
    onto = random.uniform(0, CANVAS, 2) if random.random() < 0.7 else _near_middle(random)
    angle, mirror = random.uniform(0, 2 * math.pi), random.choice([-1, 1])
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = scale * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([mirror, 1])
    return turn, onto, centre


def _near_middle(random: np.random.Generator) -> np.ndarray:
    return CANVAS * (0.5 + random.uniform(-0.1, 0.1, 2))


def _turned(box: Box, turn: np.ndarray, onto: np.ndarray, centre: np.ndarray) -> tuple[Box, float]:
    """Return the box on the canvas of the ellipse in a box, and its visible share."""
    halves = np.array([box[2] - box[0], box[3] - box[1]]) / 2
    middle = turn @ (np.array([box[0] + box[2], box[1] + box[3]]) / 2 - centre) + onto
    reach = np.sqrt(((turn * halves) ** 2).sum(1))
    low, high = (np.clip(middle + side * reach, 0, CANVAS) for side in (-1, 1))
    visible = float((high - low).prod() / (4 * reach.prod()))
    return (low[0], low[1], high[0], high[1]), visible


def _targets(
    boxes: Sequence[Sequence[tuple[Box, float]]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the locator should output: heat and shapes, and the weights of both."""
    count = len(boxes)
    heat, near = torch.zeros(2, count, _CELLS, _CELLS)
    shapes = torch.zeros(count, 4, _CELLS, _CELLS)
    counts = torch.ones(count, _CELLS, _CELLS)
    down, across = torch.meshgrid(*[torch.arange(_CELLS) + 0.5] * 2, indexing="ij")
    for row, cells in enumerate(boxes):
        for box, visible in cells:
            left, top, right, bottom = (side / STRIDE for side in box)
            x, y, width, height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
            if visible < LEAST_VISIBLE or min(width, height) < 1:
                inside = (across > left) & (across < right) & (down > top) & (down < bottom)
                counts[row][inside] = 0
                continue
            bell = torch.exp(
                -((across - x) ** 2) / (2 * max(width / 7, 0.6) ** 2)
                - (down - y) ** 2 / (2 * max(height / 7, 0.6) ** 2)
            )
            bell[min(int(y), _CELLS - 1), min(int(x), _CELLS - 1)] = 1
            heat[row] = torch.maximum(heat[row], bell)
            core = bell > 0.6
            sizes = [math.log(side * STRIDE / UNIT) for side in (width, height)]
            wanted = [x - across, y - down, *(torch.full_like(across, size) for size in sizes)]
            shapes[row][:, core] = torch.stack(wanted)[:, core]
            near[row][core] = bell[core]
    return heat, shapes, near, counts


def _loss(
    output: torch.Tensor,
    heat: torch.Tensor,
    shapes: torch.Tensor,
    near: torch.Tensor,
    counts: torch.Tensor,
) -> torch.Tensor:
    """Return CenterNet's focal loss of the centres plus the error of the boxes around them."""
    score = output[:, 0].sigmoid().clamp(1e-4, 1 - 1e-4)
    centre = heat == 1
    missed = -((1 - score) ** 2 * score.log())[centre].sum()
    alarm = -(score**2 * (1 - score).log() * (1 - heat) ** 4 * counts)[~centre].sum()
    errors = F.smooth_l1_loss(output[:, 1:], shapes, reduction="none", beta=0.3).sum(1)
    centres = (missed + alarm) / centre.sum().clamp_min(1)
    return centres + (errors * near).sum() / near.sum().clamp_min(1)

"""Train and measure the locator, on boxes of white cells in the fields of several laboratories.

It learns from canvases that are drawn once and shared by all runs: one field, or a mosaic of 2x2 or
3x3, turned, scaled, shifted and recoloured. All fields of a canvas are of one part of the data
(training/runs.py) or without any cell, so that a run uses the canvases of the parts it may see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from handler.locator import CANVAS, STRIDE, UNIT, Located, area, intersection
from handler.preprocessing import Box, Pixels, Size
from training import data
from training.augment import recolour, recolour_slightly, refocus, warp
from training.checkpoints import Checkpoint, columns
from training.crops import in_pixels, read
from training.data import DataError, Sample
from training.fitting import History, fit, forward
from training.laboratories import PHOTOGRAPHS, laboratories
from training.networks import Locator, scale, to_planes
from training.recipes import LocatorRecipe
from training.runs import parts_of

# A cell of which less is visible is neither expected nor an error.
LEAST_VISIBLE = 0.35
# The least overlap of a correct box with the drawn one (intersection over union).
RIGHT_OVERLAP = 0.5
# The longest side of a whole field, and of one that is cut out around its only labelled cell, with
# a margin in shares of the cell.
WHOLE, AROUND, CELL_MARGIN = 384, 192, 0.35
# Cells of each kind of a laboratory that has no drawn boxes. Platelets are not white cells.
CELLS_A_KIND, NOT_WHITE = 60, "platelet"
# Mosaics of so many fields a side, and how often each; the shares of black and of empty tiles.
GRIDS, GRID_SHARES = (1, 2, 3), (0.6, 0.25, 0.15)
BLACK_TILES, EMPTY_TILES = 0.12, 0.15
# A laboratory of n fields gives a canvas n^BALANCE times as often, with drawn boxes twice that.
BALANCE = 0.3
MOST_BOXES = 64
# Where the shares of the frame's width that cells take are divided, for the measurement, and the
# fields a side of its frames.
SHARES = (0.0, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 1.01)
FRAMES, FRAME_SIZE = (1, 2, 3, 5, 7), (640, 480)
MOST_FRAMES = 60
CODE = (
    "training/locate.py",
    "training/augment.py",
    "training/fitting.py",
    "training/optimizer.py",
    "training/networks.py",
    "handler/locator.py",
)
_CELLS = CANVAS // STRIDE

# Boxes on a canvas, and the visible share of each cell.
Visible = list[tuple[Box, float]]


@dataclass(frozen=True)
class Source:
    """A field: its file, the boxes of its white cells in shares of its sides, and its part.

    Of a field that is not whole only its cell is labelled; it is cut out around that.
    """

    path: Path
    boxes: tuple[Box, ...]
    laboratory: str
    part: str
    whole: bool = True


@dataclass
class Field:
    """A field at falling resolutions (1, 3, H, W) uint8, and its boxes in pixels of the first."""

    levels: Sequence[torch.Tensor]
    boxes: Sequence[Box]
    whole: bool


@dataclass
class Canvases:
    """N canvases (N, 128, 128, 3), their boxes (N, 64, 5) with visible shares, and their parts.

    Rows beyond a canvas's boxes are NaN.
    """

    pixels: Pixels
    boxes: np.ndarray
    parts: np.ndarray


def whole_sources() -> list[Source]:
    """List the fields of which all white cells have boxes, or that show none."""
    root, (width, height) = data.data_root(), data.PHOTOGRAPH
    sources = []
    for path, _split, _group, boxes in data.located_photographs(root):
        shares = [(b[0] / width, b[1] / height, b[2] / width, b[3] / height) for b in boxes]
        sources.append(_source(PHOTOGRAPHS, path, shares))
    for laboratory in laboratories().values():
        if laboratory.name == PHOTOGRAPHS:
            continue
        drawn: dict[Path, list[Box]] = {}
        for sample in laboratory.samples():
            if sample.box:
                drawn.setdefault(sample.path, []).append(sample.box)
            elif laboratory.is_background:
                drawn[sample.path] = []
        sources += [_source(laboratory.name, path, boxes) for path, boxes in drawn.items()]
    return sources


def cell_sources(found: Sequence[tuple[str, Sample]]) -> list[Source]:
    """List some cells that a first locator found in the middle of images."""
    random = np.random.default_rng(0)
    kinds: dict[tuple[str, str], list[Sample]] = {}
    for name, sample in found:
        if sample.kind != NOT_WHITE:
            kinds.setdefault((name, sample.kind), []).append(sample)
    return [
        _source(name, samples[index].path, [samples[index].box], whole=False)
        for (name, _kind), samples in kinds.items()
        for index in random.permutation(len(samples))[:CELLS_A_KIND]
    ]


def draw_canvases(sources: Sequence[Source], recipe: LocatorRecipe, folder: Path) -> Canvases:
    """Draw the canvases that locators learn from, once, and keep them in a folder."""
    sources = tuple(sources)
    kinds = {
        "pixels": ((CANVAS, CANVAS, 3), "u1"),
        "boxes": ((MOST_BOXES, 5), "f4"),
        "parts": ((), "i4"),
    }
    settings = recipe.canvases, recipe.cell_sizes, recipe.tile_sizes, sources
    draw = partial(_draw_rows, sources, recipe)
    drawn = columns(folder, settings, CODE, recipe.canvases, kinds, draw)
    return Canvases(drawn["pixels"], drawn["boxes"], np.array(_parts(sources))[drawn["parts"]])


def train_locator(
    canvases: Canvases,
    rows: np.ndarray,
    recipe: LocatorRecipe,
    seed: int,
    title: str,
    checkpoint: Checkpoint | None = None,
) -> tuple[Locator, History]:
    """Train a locator on these rows of the canvases."""
    torch.manual_seed(seed)
    locator = convert_conv2d_weight_memory_format(Locator(), torch.channels_last)

    def loss(
        batch: np.ndarray, random: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, boxes = turned(canvases.pixels[batch], canvases.boxes[batch], random)
        boxes = boxes[:, : np.isfinite(boxes[..., 0]).sum(1).max()]
        images = recolour_slightly(scale(to_planes(pixels)))
        output = forward(locator, images.contiguous(memory_format=torch.channels_last))
        return _loss(output, *_targets(torch.as_tensor(boxes))), {}

    return locator, fit(locator, recipe.fit, rows, loss, seed, title, checkpoint)


def turned(
    pixels: Pixels, boxes: np.ndarray, random: np.random.Generator
) -> tuple[Pixels, np.ndarray]:
    """Draw one of the eight symmetries of a square, for canvases and their boxes."""
    boxes = boxes.copy()
    for axis in (0, 1):
        if random.random() < 0.5:
            pixels = np.flip(pixels, 2 - axis)
            boxes[..., [axis, axis + 2]] = CANVAS - boxes[..., [axis + 2, axis]]
    if random.random() < 0.5:
        pixels, boxes = pixels.swapaxes(1, 2), boxes[..., [1, 0, 3, 2, 4]]
    return np.ascontiguousarray(pixels), boxes


def frames(sources: Sequence[Source], grid: int) -> list[tuple[Pixels, list[Box]]]:
    """Make fields in which cells are smaller, as mosaics, with boxes in pixels."""
    own = [source for source in sources if source.whole and source.boxes]
    order = np.random.default_rng(grid).permutation(len(own))
    if grid == 1:
        return [_resized(own[index], FRAME_SIZE) for index in order]
    made = []
    width, height = FRAME_SIZE[0] // grid, FRAME_SIZE[1] // grid
    for start in range(0, min(len(own), MOST_FRAMES * grid**2) - grid**2 + 1, grid**2):
        frame = np.zeros((height * grid, width * grid, 3), np.uint8)
        boxes: list[Box] = []
        for place, index in enumerate(order[start : start + grid**2]):
            top, left = place // grid * height, place % grid * width
            pixels, drawn = _resized(own[index], (width, height))
            frame[top : top + height, left : left + width] = pixels
            boxes += [(b[0] + left, b[1] + top, b[2] + left, b[3] + top) for b in drawn]
        made.append((frame, boxes))
    return made


def measure_locator(
    found: Sequence[Sequence[Located]], drawn: Sequence[Sequence[Box]], widths: Sequence[int]
) -> dict[str, Any]:
    """Return recall and the share of false boxes, at an intersection over union of 0.5.

    Also by the share of the frame's width that a box takes.
    """
    right, false, every = [], [], []
    for cells, boxes, width in zip(found, drawn, widths, strict=True):
        left = list(boxes)
        for cell in cells:
            match = max(left, key=lambda box: overlap(cell.box, box), default=None)
            if match and overlap(cell.box, match) >= RIGHT_OVERLAP:
                left.remove(match)
                right.append((match[2] - match[0]) / width)
            else:
                false.append((cell.box[2] - cell.box[0]) / width)
        every += [(box[2] - box[0]) / width for box in boxes]
    counts = [np.histogram(shares, SHARES)[0].tolist() for shares in (every, right, false)]
    return {
        **_summary(len(every), len(right), len(false)),
        "by_share": [
            {"from": low, "to": min(high, 1.0), **_summary(*row)}
            for low, high, *row in zip(SHARES, SHARES[1:], *counts, strict=False)
        ],
    }


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over the union of two boxes."""
    both = intersection(one, other)
    return float(both / (area(one) + area(other) - both))


def _summary(boxes: int, right: int, false: int) -> dict[str, float | int]:
    return {
        "boxes": boxes,
        "found": right,
        "recall": round(right / max(boxes, 1), 4),
        "false_boxes": false,
        "false_share": round(false / max(right + false, 1), 4),
    }


def _source(laboratory: str, path: Path, boxes: Sequence[Box | None], whole: bool = True) -> Source:
    [part] = parts_of([laboratory], [path.name]).tolist()
    return Source(path, tuple(box for box in boxes if box), laboratory, part, whole)


def _parts(sources: Sequence[Source]) -> list[str]:
    """Return the parts that have cells."""
    parts = sorted({source.part for source in sources if source.boxes})
    if not parts:
        raise DataError("No laboratory has boxes of white cells.")
    return parts


@cache
def _load(sources: tuple[Source, ...]) -> list[Field]:
    return [_field(source) for source in sources]


def _field(source: Source) -> Field:
    pixels = read(source.path).pixels
    image = Image.fromarray(pixels)
    boxes = [in_pixels(box, pixels) for box in source.boxes]
    if not source.whole:
        left, top, right, bottom = boxes[0]
        margin = CELL_MARGIN * max(right - left, bottom - top)
        low = max(0, round(left - margin)), max(0, round(top - margin))
        high = min(image.width, round(right + margin)), min(image.height, round(bottom + margin))
        image = image.crop((*low, *high))
        boxes = [(left - low[0], top - low[1], right - low[0], bottom - low[1])]
    scale = min(1.0, (WHOLE if source.whole else AROUND) / max(image.size))
    if scale < 1:
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.BOX)
    levels = [to_planes(np.array(image)[None])]
    while len(levels) < 4:
        half = F.avg_pool2d(levels[-1].float(), 2, ceil_mode=True, count_include_pad=False)
        levels.append(half.round().byte())
    return Field(levels, [_scaled(box, scale, scale) for box in boxes], source.whole)


def _resized(source: Source, size: Size) -> tuple[Pixels, list[Box]]:
    pixels = read(source.path).pixels
    scaled = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    return scaled, [in_pixels(box, scaled) for box in source.boxes]


def _draw_rows(
    sources: tuple[Source, ...], recipe: LocatorRecipe, start: int, stop: int
) -> dict[str, np.ndarray]:
    torch.manual_seed(start)
    random = np.random.default_rng((1, start))
    parts, fields = _parts(sources), _load(sources)
    shares = _part_shares(sources, parts)
    empty = [field for field in fields if not field.boxes]
    made, boxes, chosen = [], np.full((stop - start, MOST_BOXES, 5), np.nan, np.float32), []
    for row in range(stop - start):
        part = int(random.choice(len(parts), p=shares))
        own = [
            field
            for field, source in zip(fields, sources, strict=True)
            if source.part == parts[part]
        ]
        canvas, drawn = _draw_canvas(own, empty, recipe, random)
        for place, (box, visible) in enumerate(drawn[:MOST_BOXES]):
            boxes[row, place] = *box, visible
        made.append(canvas)
        chosen.append(part)
    images = refocus(recolour(torch.cat(made), grey=0.1), reach=1.3)
    pixels = images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return {"pixels": pixels, "boxes": boxes, "parts": np.array(chosen)}


def _part_shares(sources: Sequence[Source], parts: Sequence[str]) -> np.ndarray:
    """Return how often canvases are of each part."""
    names = [source.laboratory for source in sources]
    counts = {name: names.count(name) for name in set(names)}
    shares = dict.fromkeys(parts, 0.0)
    for source in sources:
        if source.part in shares:
            weight = 2 if source.whole else 1
            shares[source.part] += weight * counts[source.laboratory] ** (BALANCE - 1)
    total = sum(shares.values())
    return np.array([shares[part] / total for part in parts])


def _draw_canvas(
    own: Sequence[Field], empty: Sequence[Field], recipe: LocatorRecipe, random: np.random.Generator
) -> tuple[torch.Tensor, Visible]:
    """Draw a canvas (1, 3, 128, 128) of one field, or a mosaic."""
    grid = int(random.choice(GRIDS, p=GRID_SHARES))
    if grid == 1:
        fields = empty if empty and random.random() < EMPTY_TILES else own
        return _draw_field(_any(fields, random), CANVAS, recipe.cell_sizes, random)
    side = CANVAS // grid
    canvas, boxes = torch.zeros(1, 3, CANVAS, CANVAS), []
    for place in range(grid**2):
        kind = random.random()
        if kind < BLACK_TILES:
            continue
        fields = empty if empty and kind < BLACK_TILES + EMPTY_TILES else own
        tile, drawn = _draw_field(_any(fields, random), side, recipe.tile_sizes, random)
        top, left = place // grid * side, place % grid * side
        canvas[:, :, top : top + side, left : left + side] = tile
        boxes += [
            ((b[0] + left, b[1] + top, b[2] + left, b[3] + top), visible) for b, visible in drawn
        ]
    return canvas, boxes


def _any(fields: Sequence[Field], random: np.random.Generator) -> Field:
    return fields[int(random.integers(len(fields)))]


def _draw_field(
    field: Field, side: int, sizes: tuple[float, float], random: np.random.Generator
) -> tuple[torch.Tensor, Visible]:
    """Draw a square (1, 3, side, side) of a field, one of whose cells takes a share of the side."""
    turn, onto, centre = _draw_map(field, side, sizes, random)
    boxes = [_turned(box, turn, onto, centre, side) for box in field.boxes]
    # The level whose pixels are at most as large as those of the square, or the last.
    zoom = math.sqrt(abs(np.linalg.det(turn)))
    level = min(max(0, math.floor(-math.log2(zoom))), len(field.levels) - 1)
    image = scale(field.levels[level])
    height, width = field.levels[0].shape[2:]
    back, to_unit = np.linalg.inv(turn), np.array([2 / width, 2 / height])
    shift = back @ (np.full(2, side / 2) - onto) + centre
    # From the square's coordinates to the field's, both -1 to 1.
    linear = to_unit[:, None] * back * (side / 2)
    maps = torch.tensor(np.concatenate([linear, (to_unit * shift - 1)[:, None]], 1))[None].float()
    kind = random.random()
    fill = torch.rand(1, 3, 1, 1) if kind < 0.3 else torch.zeros(1, 3, 1, 1)
    if kind > 0.6:
        light = field.levels[-1].float().flatten(2).quantile(0.9, dim=2) / 255
        fill = light[:, :, None, None]
    return warp(image, maps, (side, side), fill), boxes


def _draw_map(
    field: Field, side: int, sizes: tuple[float, float], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the map `turn @ (point - centre) + onto`, from the field to the square, of one cell."""
    height, width = field.levels[0].shape[2:]
    if field.boxes:
        left, top, right, bottom = field.boxes[int(random.integers(len(field.boxes)))]
        centre = np.array([left + right, top + bottom]) / 2
        size = max(right - left, bottom - top)
    else:
        centre, size = random.uniform(0.2, 0.8, 2) * (width, height), 0.15 * width
    low, high = sizes
    scale = side * math.exp(random.uniform(math.log(low), math.log(high))) / size
    if field.whole:
        # No smaller than the whole field with a margin.
        scale = max(scale, side / max(height, width) / 1.6)
    near = side * (0.5 + random.uniform(-0.2, 0.2, 2))
    onto = random.uniform(0, side, 2) if random.random() < 0.5 else near
    angle, mirror = random.uniform(0, 2 * math.pi), random.choice([-1, 1])
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = scale * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([mirror, 1])
    return turn, onto, centre


def _turned(
    box: Box, turn: np.ndarray, onto: np.ndarray, centre: np.ndarray, side: int = CANVAS
) -> tuple[Box, float]:
    """Return the box in the square of the ellipse in a box, and its visible share."""
    halves = np.array([box[2] - box[0], box[3] - box[1]]) / 2
    middle = turn @ (np.array([box[0] + box[2], box[1] + box[3]]) / 2 - centre) + onto
    reach = np.sqrt(((turn * halves) ** 2).sum(1))
    low, high = (np.clip(middle + way * reach, 0, side) for way in (-1, 1))
    visible = float((high - low).prod() / (4 * reach.prod()))
    return (low[0], low[1], high[0], high[1]), visible


def _scaled(box: Box, across: float, down: float) -> Box:
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _targets(
    boxes: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the locator should output for boxes (N, B, 5), and the weights of both.

    Each place learns the shape of the box whose bell is the highest there.
    """
    visible = boxes[..., 4].nan_to_num()
    left, top, right, bottom = (boxes[..., :4].nan_to_num() / STRIDE).unbind(2)
    x, y, width, height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    seen = (visible >= LEAST_VISIBLE) & (torch.minimum(width, height) >= 1)
    places = torch.arange(_CELLS) + 0.5
    bells = [
        torch.exp(-((places - middle[..., None]) ** 2) / (2 * spread[..., None] ** 2))
        for middle, spread in ((y, (height / 7).clamp_min(0.6)), (x, (width / 7).clamp_min(0.6)))
    ]
    middles = [places.floor() == each.floor().clamp(max=_CELLS - 1)[..., None] for each in (y, x)]
    bell = torch.where(_crossed(*middles), 1.0, _crossed(*bells)) * seen[..., None, None]
    heat, owner = bell.max(1)
    x, y, width, height = (
        each.gather(1, owner.flatten(1)).view_as(heat) for each in (x, y, width, height)
    )
    sizes = [torch.log(side.clamp_min(1) * STRIDE / UNIT) for side in (width, height)]
    shapes = torch.stack([x - places, y - places[:, None], *sizes], 1)
    inside = [
        (places > low[..., None]) & (places < high[..., None])
        for low, high in ((top, bottom), (left, right))
    ]
    hidden = _crossed(*inside) & ((visible > 0) & ~seen)[..., None, None]
    return heat, shapes, torch.where(heat > 0.6, heat, 0.0), 1.0 - hidden.any(1).float()


def _crossed(down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """Return the products (..., H, W) of values down (..., H) and across (..., W)."""
    return down[..., None] * across[..., None, :]


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

"""What a version does with pictures: 1.0 reads the whole field, 2.0 finds the cells and reads each.

Both are asked the same: to what size to decode, what is in these pictures, and where they looked.
A version's card tells which of them it is (`finds_cells`) and how its networks are built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from handler.cells import CellNet, cut_out, tell, to_amounts, window
from handler.explanation import Heat, canvas_size, heat_maps, place
from handler.gate import stain
from handler.locator import Locator, locate
from handler.network import CLASSES, BloodCellNet
from handler.preprocessing import (
    HEIGHT,
    WIDTH,
    Box,
    Picture,
    Size,
    squashed,
    to_input,
    within_field,
)
from handler.verdict import Cell, Examination

T = TypeVar("T")


class Version(Protocol):
    """A version's networks, ready to be asked."""

    def fit(self, size: Size, /) -> Size:
        """Return the size to which an upload of this size is decoded."""

    def examine(self, pictures: Sequence[Picture]) -> list[Examination]:
        """Tell what is in each picture."""

    def explain(self, picture: Picture) -> tuple[Examination, Heat]:
        """Tell what is in a picture and where the network looked: heat (h, w) in [0, 1]."""

    def warm_up(self) -> None:
        """Run once at every batch size, so that no request waits for that."""


def load(folder: Path, card: Mapping[str, Any], device: torch.device, batch_size: int) -> Version:
    """Load a version's weights as its card describes them; raise RuntimeError if they differ."""
    data = (folder / "weights.pt").read_bytes()
    if hashlib.sha256(data).hexdigest() != card["weights_sha256"]:
        raise RuntimeError("weights.pt is not the file that card.json names: build it anew.")
    weights = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    if card["finds_cells"]:
        locator, network = Locator(), CellNet(**card["network"])
        locator.load_state_dict(weights["locator"])
        network.load_state_dict(weights["network"])
        return CellByCell(_ready(locator, device), _ready(network, device), device, batch_size)
    field_network = BloodCellNet(**card["network"])
    field_network.load_state_dict(weights)
    return WholeField(_ready(field_network, device), device, batch_size)


class WholeField:
    """Reads the field as one: the network of the seed."""

    fit = staticmethod(squashed)

    def __init__(self, network: BloodCellNet, device: torch.device, batch_size: int) -> None:
        self.network, self.device, self.batch_size = network, device, batch_size

    def examine(self, pictures: Sequence[Picture]) -> list[Examination]:
        return [
            Examination(stain(picture.pixels), [Cell(logits)])
            for part in _parts(pictures, self.batch_size)
            for picture, logits in zip(part, self._logits(part), strict=True)
        ]

    def explain(self, picture: Picture) -> tuple[Examination, Heat]:
        [examination] = self.examine([picture])
        size = (picture.width, picture.height)
        inputs = to_input([picture.pixels]).to(self.device)
        [heat] = heat_maps(
            self.network, self.network.last_convolution, inputs, _labels(examination.cells)
        )
        return examination, place(heat.cpu().numpy(), (0, 0, *size), size)

    def warm_up(self) -> None:
        blank = Picture(np.zeros((HEIGHT, WIDTH, 3), np.uint8), WIDTH, HEIGHT)
        for size in range(1, self.batch_size + 1):
            self._logits([blank] * size)

    @torch.inference_mode()
    def _logits(self, pictures: Sequence[Picture]) -> list[list[float]]:
        inputs = to_input(picture.pixels for picture in pictures)
        logits: list[list[float]] = self.network(inputs.to(self.device)).tolist()
        return logits


class CellByCell:
    """Finds the white cells, cuts each out, measures its stain, and reads it."""

    fit = staticmethod(within_field)

    def __init__(
        self, locator: Locator, network: CellNet, device: torch.device, batch_size: int
    ) -> None:
        self.locator, self.network = locator, network
        self.device, self.batch_size = device, batch_size

    def examine(self, pictures: Sequence[Picture]) -> list[Examination]:
        return [examination for examination, _dyes in self._read(pictures)]

    def explain(self, picture: Picture) -> tuple[Examination, Heat]:
        [(examination, dyes)] = self._read([picture])
        size = (picture.width, picture.height)
        heat = np.zeros(canvas_size(size)[::-1], np.float32)
        for part, cells in zip(
            dyes.split(self.batch_size), _parts(examination.cells, self.batch_size), strict=False
        ):
            for cell, each in zip(cells, self._maps(part, _labels(cells)), strict=True):
                assert cell.box
                heat = np.maximum(heat, place(each, window(cell.box), size))
        return examination, heat

    def warm_up(self) -> None:
        for size in range(1, self.batch_size + 1):
            blank = np.full((size, 48, 64, 3), 255, np.uint8)
            locate(self.locator, list(blank), self.device)
            self._logits(torch.zeros(size, 3, HEIGHT, WIDTH))

    def _read(self, pictures: Sequence[Picture]) -> list[tuple[Examination, torch.Tensor]]:
        """Return what is in each picture, and the dyes (cells, 3, 60, 80) that tell it."""
        if not pictures:
            return []
        fields = [picture.pixels for picture in pictures]
        located = [
            cells
            for part in _parts(fields, self.batch_size)
            for cells in locate(self.locator, part, self.device)
        ]
        dyes = [
            to_amounts(cut_out(field, cells)) if cells else torch.zeros(0, 3, HEIGHT, WIDTH)
            for field, cells in zip(fields, located, strict=True)
        ]
        logits = iter(
            row for part in torch.cat(dyes).split(self.batch_size) for row in self._logits(part)
        )
        return [
            (
                Examination(
                    stain(picture.pixels),
                    [
                        Cell(row, _upload_box(cell.box, picture))
                        for cell, row in zip(cells, islice(logits, len(cells)), strict=True)
                    ],
                ),
                amounts,
            )
            for picture, cells, amounts in zip(pictures, located, dyes, strict=True)
        ]

    def _maps(self, dyes: torch.Tensor, labels: torch.Tensor) -> Heat:
        """Return what spoke for each cell's label (N, 60, 80), in both ways that it is seen."""
        seen = torch.cat([dyes, dyes.flip(2, 3)]).to(self.device)
        maps = heat_maps(self.network, self.network.last_convolution, seen, labels.repeat(2))
        upright, turned = maps.cpu().chunk(2)
        heat: Heat = ((upright + turned.flip(1, 2)) / 2).numpy()
        return heat

    @torch.inference_mode()
    def _logits(self, dyes: torch.Tensor) -> list[list[float]]:
        logits: list[list[float]] = tell(self.network, dyes.to(self.device)).tolist()
        return logits


def _ready(network: nn.Module, device: torch.device) -> Any:
    # Images come channels last, too; the convolutions are faster so.
    network = network.eval().requires_grad_(False).to(device)
    return convert_conv2d_weight_memory_format(network, torch.channels_last)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield batches of the sizes that the networks are warm for."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _labels(cells: Sequence[Cell]) -> torch.Tensor:
    """Return the class that each cell looks like most, whatever is then said of it."""
    logits = torch.tensor([cell.logits for cell in cells])
    return logits[:, : len(CLASSES)].argmax(1)


def _upload_box(box: Box, picture: Picture) -> Box:
    height, width = picture.pixels.shape[:2]
    right, down = picture.width / width, picture.height / height
    return box[0] * right, box[1] * down, box[2] * right, box[3] * down

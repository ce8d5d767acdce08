"""What a version does with pictures: 1.0 reads the whole field, 2.0 finds the cells and reads each.

Both are asked the same: to what size to decode, what is in these pictures, and where they looked.
A version's card tells which of them it is (`finds_cells`) and how its networks are built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from handler.cells import cut_out, to_amounts, window
from handler.checked import read_checked
from handler.contract import CLASSES
from handler.engine import Engine, Network
from handler.explanation import canvas_size, place
from handler.gate import SIZE, shrink
from handler.locator import CANVAS, locate
from handler.preprocessing import (
    HEIGHT,
    WIDTH,
    Box,
    Floats,
    Picture,
    Pixels,
    Size,
    normalized,
    squashed,
    within_field,
)
from handler.verdict import Cell, Examination

if TYPE_CHECKING:
    from handler.networks import BloodCellNet, CellNet

T = TypeVar("T")


class Pipeline(Protocol):
    """A version's networks, ready to be asked."""

    def fit(self, size: Size, /) -> Size:
        """Return the size to which an upload of this size is decoded."""

    def examine(self, pictures: Sequence[Picture]) -> list[Examination]:
        """Tell what is in each picture."""

    def explain(self, picture: Picture) -> tuple[Examination, Floats]:
        """Tell what is in a picture and where the network looked: heat (h, w) in [0, 1]."""

    def warm_up(self) -> None:
        """Run once at every batch size, so that no request waits for that."""


def load(
    folder: Path,
    card: Mapping[str, Any],
    batch_size: int,
    threads: int = 1,
    gpu: int | None = None,
) -> Pipeline:
    """Load a version as its card describes it; raise RuntimeError if its files are not the card's.

    The threads are those of each network, which run one after the other.
    """

    def engine(name: str) -> Engine:
        return Engine(read_checked(folder, card, name), threads, gpu, batch_size)

    @cache
    def torch_network() -> BloodCellNet | CellNet:
        # Some seconds and 250 MB, which only those who want an explanation should pay.
        import torch

        from handler.networks import load_networks

        torch.set_num_threads(threads)
        network: BloodCellNet | CellNet = load_networks(folder, card)["network"]
        # Torch may be a build for the CPU, also where ONNX Runtime has a GPU.
        return network.to("cpu" if gpu is None or not torch.cuda.is_available() else f"cuda:{gpu}")

    read_checked(folder, card, "weights.pt")
    if card["finds_cells"]:
        engines = engine("gate.onnx"), engine("locator.onnx"), engine("network.onnx")
        return CellByCell(*engines, torch_network, batch_size)
    return WholeField(engine("gate.onnx"), engine("network.onnx"), torch_network, batch_size)


class WholeField:
    """Reads the field as one: the network of the seed."""

    fit = staticmethod(squashed)

    def __init__(
        self,
        gate: Network,
        network: Network,
        torch_network: Callable[[], BloodCellNet | CellNet],
        batch_size: int,
    ) -> None:
        """Look by `gate`, from pixels (N, 60, 80, 3) to stains (N,), and read by `network`.

        That goes from the same pixels to logits (N, 4); the one in torch explains.
        """
        self.gate, self.network, self.torch_network = gate, network, torch_network
        self.batch_size = batch_size

    def examine(self, pictures: Sequence[Picture]) -> list[Examination]:
        return [
            Examination(stain, [Cell(logits)])
            for part in _parts([picture.pixels for picture in pictures], self.batch_size)
            for stain, logits in self._see(np.stack(part))
        ]

    def explain(self, picture: Picture) -> tuple[Examination, Floats]:
        [examination] = self.examine([picture])
        size = (picture.width, picture.height)
        inputs = normalized(picture.pixels[None])
        [heat] = _attribute(self.torch_network(), inputs, _labels(examination.cells))
        return examination, place(heat, (0, 0, *size), size)

    def warm_up(self) -> None:
        for size in range(1, self.batch_size + 1):
            self._see(np.zeros((size, HEIGHT, WIDTH, 3), np.uint8))

    def _see(self, pixels: Pixels) -> Iterator[tuple[float, list[float]]]:
        """Return the stain and the logits of each picture."""
        return zip(self.gate(pixels).tolist(), self.network(pixels).tolist(), strict=True)


class CellByCell:
    """Finds the white cells, cuts each out, measures its stain, and reads it."""

    fit = staticmethod(within_field)

    def __init__(
        self,
        gate: Network,
        locator: Network,
        network: Network,
        torch_network: Callable[[], BloodCellNet | CellNet],
        batch_size: int,
    ) -> None:
        """Look by `gate`: from pixels (N, 30, 40, 3) to stains (N,).

        Find by `locator`: from canvases (N, 128, 128, 3) to what handler.locator reads. Read by
        `network`: from amounts of dye (N, 3, 60, 80) to logits (N, 5); the one in torch explains.
        """
        self.gate, self.locator, self.network = gate, locator, network
        self.torch_network, self.batch_size = torch_network, batch_size

    def examine(self, pictures: Sequence[Picture]) -> list[Examination]:
        return [examination for examination, _dyes in self._read(pictures)]

    def explain(self, picture: Picture) -> tuple[Examination, Floats]:
        [(examination, dyes)] = self._read([picture])
        size = (picture.width, picture.height)
        heat = np.zeros(canvas_size(size)[::-1], np.float32)
        pairs = list(zip(examination.cells, dyes, strict=True))
        for part in _parts(pairs, self.batch_size):
            cells = [cell for cell, _ in part]
            maps = self._maps(np.stack([amounts for _, amounts in part]), _labels(cells))
            for cell, each in zip(cells, maps, strict=True):
                assert cell.box
                heat = np.maximum(heat, place(each, window(cell.box), size))
        return examination, heat

    def warm_up(self) -> None:
        for size in range(1, self.batch_size + 1):
            self.gate(np.zeros((size, *SIZE[::-1], 3), np.uint8))
            self.locator(np.zeros((size, CANVAS, CANVAS, 3), np.uint8))
            self.network(np.zeros((size, 3, HEIGHT, WIDTH), np.float32))

    def _read(self, pictures: Sequence[Picture]) -> list[tuple[Examination, Floats]]:
        """Return what is in each picture, and the dyes (cells, 3, 60, 80) that tell it."""
        fields = [picture.pixels for picture in pictures]
        stains = [
            stain
            for part in _parts(fields, self.batch_size)
            for stain in self.gate(np.stack([shrink(field) for field in part])).tolist()
        ]
        located = [
            cells
            for part in _parts(fields, self.batch_size)
            for cells in locate(self.locator, part)
        ]
        dyes = [
            to_amounts(cut_out(field, cells)) if cells else np.zeros((0, 3, HEIGHT, WIDTH), "f4")
            for field, cells in zip(fields, located, strict=True)
        ]
        every = [each for amounts in dyes for each in amounts]
        logits = iter(
            row
            for part in _parts(every, self.batch_size)
            for row in self.network(np.stack(part)).tolist()
        )
        return [
            (
                Examination(
                    stain,
                    [
                        Cell(row, _upload_box(cell.box, picture))
                        for cell, row in zip(cells, islice(logits, len(cells)), strict=True)
                    ],
                ),
                amounts,
            )
            for picture, stain, cells, amounts in zip(pictures, stains, located, dyes, strict=True)
        ]

    def _maps(self, dyes: Floats, labels: Sequence[int]) -> Floats:
        """Return what spoke for each cell's label (N, 60, 80), in both ways that it is seen."""
        both = np.concatenate([dyes, np.flip(dyes, (2, 3))])
        upright, turned = np.split(_attribute(self.torch_network(), both, [*labels, *labels]), 2)
        heat: Floats = (upright + np.flip(turned, (1, 2))) / np.float32(2)
        return heat


def _attribute(network: BloodCellNet | CellNet, inputs: Floats, labels: Sequence[int]) -> Floats:
    # Brings torch and captum: seconds and memory that only those who explain should pay.
    from handler.attribution import attribute

    return attribute(network, inputs, labels)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield batches of the sizes that the networks are warm for."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _labels(cells: Sequence[Cell]) -> list[int]:
    """Return the class that each cell looks like most, whatever is then said of it."""
    return [int(np.argmax(cell.logits[: len(CLASSES)])) for cell in cells]


def _upload_box(box: Box, picture: Picture) -> Box:
    height, width = picture.pixels.shape[:2]
    right, down = picture.width / width, picture.height / height
    return box[0] * right, box[1] * down, box[2] * right, box[3] * down

"""The pipelines: 1.0 classifies the whole field, 2.0 finds the cells and classifies each.

A version's card selects the pipeline (`finds_cells`) and configures its networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from handler.attribution import attribute
from handler.cells import cut_out, to_amounts, window
from handler.checked import read_checked
from handler.engine import Engine, Network
from handler.explanation import canvas_size, place
from handler.gate import SIZE, shrink
from handler.locator import CANVAS, locate
from handler.preprocessing import (
    HEIGHT,
    WIDTH,
    Box,
    DecodedImage,
    Floats,
    Pixels,
    Size,
    squashed,
    within_field,
)
from handler.verdict import Cell, Prediction

T = TypeVar("T")


class Pipeline(Protocol):
    """A version's networks, loaded."""

    def fit(self, size: Size, /) -> Size:
        """Return the size to which an upload of this size is decoded."""

    def predict(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        """Return the networks' output for each image."""

    def explain(self, image: DecodedImage) -> tuple[Prediction, Floats]:
        """Return the output for an image, and a heat map (h, w) in [0, 1] of its evidence."""

    def warm_up(self) -> None:
        """Run once at every batch size, which is slow the first time."""


def load(
    folder: Path,
    card: Mapping[str, Any],
    batch_size: int,
    threads: int = 1,
    gpu: int | None = None,
) -> Pipeline:
    """Load a version; raise RuntimeError if a file does not match its hash in the card.

    `threads` is for each network; the networks run one after the other.
    """

    def engine(name: str) -> Engine:
        return Engine(read_checked(folder, card, name), threads, gpu, batch_size)

    classes = len(card["classes"])
    if card["finds_cells"]:
        engines = engine("gate.onnx"), engine("locator.onnx"), engine("network.onnx")
        return CellByCell(*engines, batch_size, classes)
    return WholeField(engine("gate.onnx"), engine("network.onnx"), batch_size, classes)


class WholeField:
    """Classifies the field as a whole, with the original project's network."""

    fit = staticmethod(squashed)

    def __init__(self, gate: Network, network: Network, batch_size: int, classes: int) -> None:
        """Take a gate, from pixels (N, 60, 80, 3) to stains (N,), and a network, to logits.

        The first `classes` logits are of the classes.
        """
        self.gate, self.network = gate, network
        self.batch_size, self.classes = batch_size, classes

    def predict(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        return [
            Prediction(stain, [Cell(logits)])
            for part in _parts([image.pixels for image in images], self.batch_size)
            for stain, logits in self._run(np.stack(part))
        ]

    def explain(self, image: DecodedImage) -> tuple[Prediction, Floats]:
        [prediction] = self.predict([image])
        [cell] = prediction.cells
        label = _label(cell, self.classes)
        heat = attribute(self.network, image.pixels, label, self.batch_size)
        size = (image.width, image.height)
        return prediction, place(heat, (0, 0, *size), size)

    def warm_up(self) -> None:
        for size in range(1, self.batch_size + 1):
            self._run(np.zeros((size, HEIGHT, WIDTH, 3), np.uint8))

    def _run(self, pixels: Pixels) -> Iterator[tuple[float, list[float]]]:
        """Yield the stain and the logits of each image."""
        return zip(self.gate(pixels).tolist(), self.network(pixels).tolist(), strict=True)


class CellByCell:
    """Finds the white cells, cuts each out, converts it to amounts of dye and classifies it."""

    fit = staticmethod(within_field)

    def __init__(
        self, gate: Network, locator: Network, network: Network, batch_size: int, classes: int
    ) -> None:
        """Take a gate, from pixels (N, 30, 40, 3) to stains (N,), a locator and a network.

        The locator maps canvases (N, 128, 128, 3) to what handler.locator decodes, the network
        amounts of dye (N, 3, 60, 80) to logits, the first `classes` of them of the classes.
        """
        self.gate, self.locator, self.network = gate, locator, network
        self.batch_size, self.classes = batch_size, classes

    def predict(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        return [prediction for prediction, _dyes in self._read(images)]

    def explain(self, image: DecodedImage) -> tuple[Prediction, Floats]:
        [(prediction, dyes)] = self._read([image])
        size = (image.width, image.height)
        heat = np.zeros(canvas_size(size)[::-1], np.float32)
        for cell, amounts in zip(prediction.cells, dyes, strict=True):
            assert cell.box
            label = _label(cell, self.classes)
            own = attribute(self.network, amounts, label, self.batch_size)
            heat = np.maximum(heat, place(own, window(cell.box), size))
        return prediction, heat

    def warm_up(self) -> None:
        for size in range(1, self.batch_size + 1):
            self.gate(np.zeros((size, *SIZE[::-1], 3), np.uint8))
            self.locator(np.zeros((size, CANVAS, CANVAS, 3), np.uint8))
            self.network(np.zeros((size, 3, HEIGHT, WIDTH), np.float32))

    def _read(self, images: Sequence[DecodedImage]) -> list[tuple[Prediction, Floats]]:
        """Return the output for each image, and its cells' amounts of dye (cells, 3, 60, 80)."""
        fields = [image.pixels for image in images]
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
                Prediction(
                    stain,
                    [
                        Cell(row, _upload_box(cell.box, image))
                        for cell, row in zip(cells, islice(logits, len(cells)), strict=True)
                    ],
                ),
                amounts,
            )
            for image, stain, cells, amounts in zip(images, stains, located, dyes, strict=True)
        ]


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield batches of at most the size that the networks are warm for."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _label(cell: Cell, classes: int) -> int:
    """Return a cell's most probable class, even if it is rejected."""
    return int(np.argmax(cell.logits[:classes]))


def _upload_box(box: Box, image: DecodedImage) -> Box:
    height, width = image.pixels.shape[:2]
    right, down = image.width / width, image.height / height
    return box[0] * right, box[1] * down, box[2] * right, box[3] * down

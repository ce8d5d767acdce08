"""The pipelines: 1.0 classifies the whole field, 3.0 finds the cells and classifies each.

A version's card selects the pipeline (`finds_cells`) and configures its networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from handler.attribution import attribute
from handler.cells import cut_out, window
from handler.checked import read_checked
from handler.engine import Engine, Network
from handler.explanation import canvas_size, place
from handler.locator import CANVAS, MAX_TILES, Located, locate
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
        return CellByCell(engine("locator.onnx"), engine("network.onnx"), batch_size, classes)
    return WholeField(engine("network.onnx"), batch_size, classes)


class WholeField:
    """Classifies the field as a whole, with the original project's network."""

    fit = staticmethod(squashed)

    def __init__(self, network: Network, batch_size: int, classes: int) -> None:
        """Take a network, from pixels (N, 60, 80, 3) to logits: first those of the classes."""
        self.network = network
        self.batch_size, self.classes = batch_size, classes

    def predict(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        return [
            Prediction([Cell(logits)])
            for part in _parts([image.pixels for image in images], self.batch_size)
            for logits in self.network(np.stack(part)).tolist()
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
            self.network(np.zeros((size, HEIGHT, WIDTH, 3), np.uint8))


class CellByCell:
    """Finds the white cells, cuts each out and classifies it."""

    fit = staticmethod(within_field)

    def __init__(self, locator: Network, network: Network, batch_size: int, classes: int) -> None:
        """Take a locator and a network.

        The locator maps canvases (N, 128, 128, 3) to what handler.locator decodes. The network maps
        pixels (N, 60, 80, 3) to the logits of the classes, the logit of other cells, and the
        embedding.
        """
        self.locator, self.network = locator, network
        self.batch_size, self.classes = batch_size, classes

    def predict(self, images: Sequence[DecodedImage]) -> list[Prediction]:
        return [prediction for prediction, _cutouts in self._read(images)]

    def explain(self, image: DecodedImage) -> tuple[Prediction, Floats]:
        [(prediction, cutouts)] = self._read([image])
        size = (image.width, image.height)
        heat = np.zeros(canvas_size(size)[::-1], np.float32)
        for cell, pixels in zip(prediction.cells, cutouts, strict=True):
            assert cell.box
            label = _label(cell, self.classes)
            own = attribute(self.network, pixels, label, self.batch_size)
            heat = np.maximum(heat, place(own, window(cell.box), size))
        return prediction, heat

    def warm_up(self) -> None:
        for size in range(1, max(self.batch_size, MAX_TILES) + 1):
            self.locator(np.zeros((size, CANVAS, CANVAS, 3), np.uint8))
        for size in range(1, self.batch_size + 1):
            self.network(np.zeros((size, HEIGHT, WIDTH, 3), np.uint8))

    def _read(self, images: Sequence[DecodedImage]) -> list[tuple[Prediction, list[Pixels]]]:
        """Return the output for each image, and the pixels of its cells."""
        fields = [image.pixels for image in images]
        located = [
            cells
            for part in _parts(fields, self.batch_size)
            for cells in locate(self.locator, part)
        ]
        cutouts = [cut_out(field, cells) for field, cells in zip(fields, located, strict=True)]
        every = [pixels for each in cutouts for pixels in each]
        rows = iter(
            row for part in _parts(every, self.batch_size) for row in self.network(np.stack(part))
        )
        return [
            (Prediction([self._cell(next(rows), cell, image) for cell in cells]), pixels)
            for image, cells, pixels in zip(images, located, cutouts, strict=True)
        ]

    def _cell(self, row: Floats, located: Located, image: DecodedImage) -> Cell:
        logits = self.classes + 1
        return Cell(row[:logits].tolist(), _upload_box(located.box, image), row[logits:])


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

"""Measure how a version classifies cells in images that are cropped close to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from handler.cells import window
from handler.engine import Network
from handler.pipelines import Pipeline
from handler.preprocessing import Box, DecodedImage, Pixels
from handler.verdict import Prediction
from training.crops import in_pixels, middle_box, read
from training.data import Sample
from training.metrics import NOT_FOUND, confusion_by_photograph, summarize
from training.protocol import CLASSES, FIELD_CLASSES

# The shares of the cropped image's sides that the longer side of the cell takes.
SHARES = (0.6, 0.75, 0.95)


def measure_cropped(
    version: Pipeline, locator: Network, samples: Sequence[Sample]
) -> list[dict[str, Any]]:
    """Return the macro recall of cells of the four classes, and how many are found, by share.

    A cell is in its drawn box, or where the locator finds it in the middle of the whole image. The
    answer is about the cell with the highest score. Without cells, the list is empty.
    """
    cells, predicted = [], []
    for sample in tqdm(samples, "cropping", mininterval=1):
        if sample.label >= len(FIELD_CLASSES):
            continue
        if box := sample.box or middle_box(sample.path, locator):
            images = crops(read(sample.path).pixels, box)
            cells.append(sample)
            predicted.append([_most_probable(each) for each in version.predict(images)])
    if not cells:
        return []
    labels, groups = np.array([each.label for each in cells]), [each.group for each in cells]
    return [
        {
            "share": share,
            "cells": len(cells),
            "found": round(float((answers != NOT_FOUND).mean()), 4),
            "macro_recall": summarize(confusion_by_photograph(labels, answers, groups))[
                "macro_recall"
            ],
        }
        for share, answers in zip(SHARES, np.array(predicted).T, strict=True)
    ]


def crops(pixels: Pixels, box: Box) -> list[DecodedImage]:
    """Crop an image (H, W, 3) to squares around a box, in shares of its sides."""
    height, width = pixels.shape[:2]
    images = []
    for share in SHARES:
        left, top, right, bottom = map(round, window(in_pixels(box, pixels), 1 / share, 1))
        part = pixels[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
        images.append(DecodedImage(part, part.shape[1], part.shape[0]))
    return images


def _most_probable(prediction: Prediction) -> int:
    if not prediction.cells:
        return NOT_FOUND
    return int(np.argmax(prediction.cells[0].logits[: len(CLASSES)]))

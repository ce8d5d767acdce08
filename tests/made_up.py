"""Versions with made-up weights, and a stand-in for what TorchServe passes to their handler."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from handler.locator import CANVAS, STRIDE
from handler.preprocessing import HEIGHT, WIDTH


class Network(nn.Module):
    """Map pixels (N, 60, 80, 3) to logits (N, outputs), and the embedding if it has one."""

    size = HEIGHT, WIDTH

    def __init__(self, outputs: int, embedding: int = 0) -> None:
        super().__init__()
        self.shows_embedding = embedding > 0
        width = embedding or 16
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 9, 8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(width), nn.ReLU()
        )
        self.classifier = nn.Linear(width, outputs)
        self(torch.zeros(1, *self.size, 3, dtype=torch.uint8))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.features(pixels.permute(0, 3, 1, 2) / 255 - 0.5)
        logits: torch.Tensor = self.classifier(features)
        return torch.cat([logits, features], 1) if self.shows_embedding else logits


class Locator(nn.Module):
    """Map canvases (N, 128, 128, 3) to what handler.locator decodes."""

    size = CANVAS, CANVAS

    def __init__(self) -> None:
        super().__init__()
        self.heat = nn.Conv2d(3, 5, STRIDE, STRIDE)

    def forward(self, canvases: torch.Tensor) -> torch.Tensor:
        located: torch.Tensor = self.heat(canvases.permute(0, 3, 1, 2) / 255)
        return located


def write(folder: Path, **networks: Network | Locator) -> Mapping[str, str]:
    """Write networks in ONNX; return the digests of their files."""
    digests = {}
    for name, network in networks.items():
        path = folder / f"{name}.onnx"
        with warnings.catch_warnings():
            # Torch recommends another exporter, which takes ten times as long.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network.eval(),
                (torch.zeros(2, *network.size, 3, dtype=torch.uint8),),
                path,
                dynamo=False,
                input_names=["inputs"],
                output_names=["outputs"],
                dynamic_axes={"inputs": {0: "N"}, "outputs": {0: "N"}},
                opset_version=18,
            )
        digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def write_version(
    folder: Path, classes: Sequence[str], finds_cells: bool, embedding: int = 0
) -> None:
    """Write a version whose answer is always the last of its classes."""
    torch.manual_seed(0)
    network = Network(len(classes) + finds_cells, embedding)
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.arange(len(network.classifier.bias)).float())
        # Other cells, if the version has that output.
        network.classifier.bias[len(classes) :] = 0.0
    parts = {"locator": Locator(), "network": network} if finds_cells else {"network": network}
    card = {
        "version": "9.0",
        "classes": list(classes),
        "finds_cells": finds_cells,
        "embedding": embedding,
        "temperature": 1.0,
        "thresholds": {"foreign": 0.5, "confident": 0.5},
        "sha256": write(folder, **parts),
    }
    (folder / "card.json").write_text(json.dumps(card))


class Context(SimpleNamespace):
    """What TorchServe passes to a handler; it keeps the statuses of the answers."""

    def __init__(self, folder: Path, batch_size: int = 1, **header: str) -> None:
        super().__init__(
            system_properties={"model_dir": str(folder), "batch_size": batch_size},
            manifest={"model": {"modelName": "bloodcells"}},
            model_yaml_config={"handler": {"threads": 1}},
            header=header,
            statuses={},
        )

    def get_all_request_header(self, _index: int) -> Mapping[str, str]:
        header: Mapping[str, str] = self.header
        return header

    def set_response_status(self, status: int, _phrase: str, index: int) -> None:
        self.statuses[index] = int(status)

    def set_response_header(self, *_: Any) -> None: ...

    set_response_content_type = set_response_header

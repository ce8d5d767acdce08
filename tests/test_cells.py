"""The network that classifies cells: how it is trained, and what is exported."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import painted
import pytest
import torch
from torch import nn

from handler.locator import CANVAS
from handler.preprocessing import HEIGHT, WIDTH
from training.cells import predict_cells, train_cells
from training.crops import windows
from training.data import OTHER
from training.export import Served, as_served, in_torch, is_quantized, to_onnx
from training.networks import BloodCellNet, CellNet, Locator, to_input
from training.protocol import CLASSES
from training.recipes import CellRecipe, Fit
from training.views import draw

SMALL = CellRecipe(
    channels=(8, 16), dropout=0.1, fit=Fit(4, 4, 3e-3, 0.05, decay=0.9, mean_from=0.3)
)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def shaken(network: Served) -> Served:
    """Give a network's normalisations statistics and weights of their own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_var, module.weight):
                values.data = torch.rand_like(values) + 0.5
            for values in (module.running_mean, module.bias):
                values.data = torch.randn_like(values) / 4
    return network.eval()


def cell_net(*channels: int) -> CellNet:
    return CellNet(len(CLASSES), channels or (8, 16), 0.5)


@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 16, 16, 24, 32)])
def test_a_cell_alone_and_in_a_batch_has_the_same_output(channels: tuple[int, ...]) -> None:
    """One logit for each class, one for other cells, and the embedding."""
    torch.manual_seed(0)
    network = shaken(cell_net(*channels))
    cells = painted.cells([*range(4)])
    served = as_served(network)
    logits, embeddings = predict_cells(served, cells)
    assert logits.shape == (4, len(CLASSES) + 1)
    assert embeddings.shape == (4, 2 * channels[-1])
    for at in range(4):
        alone = predict_cells(served, cells.take(np.array([at])))
        np.testing.assert_allclose(alone[0], logits[at : at + 1], atol=1e-4)
        np.testing.assert_allclose(alone[1], embeddings[at : at + 1], atol=1e-4)
    with torch.no_grad():
        expected = network(to_input(windows(cells.patches))).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    again = embeddings @ network.classifier.weight.detach().numpy().T
    np.testing.assert_allclose(again + network.classifier.bias.detach().numpy(), logits, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (cell_net(), (HEIGHT, WIDTH)),
        (Locator(), (CANVAS, CANVAS)),
        (BloodCellNet(4, [4, 4], [4, 4], 8, [0, 0]), (HEIGHT, WIDTH)),
    ],
    ids=["cells", "locator", "fields"],
)
def test_the_exported_graph_is_the_network(
    network: Served, size: tuple[int, int], tmp_path: Path
) -> None:
    """Without a normalisation of its own: that is part of the convolutions."""
    torch.manual_seed(0)
    shaken(network)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    served = as_served(network)(pixels)
    with torch.no_grad():
        logits = network(to_input(pixels)).numpy()
    np.testing.assert_allclose(served[:, : logits.shape[1]], logits, atol=2e-4)
    np.testing.assert_allclose(served, in_torch(network)(pixels), atol=2e-4)
    to_onnx(network, tmp_path / "network.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "network.onnx").graph.node)
    assert "BatchNormalization" not in kinds
    assert not {"Mul", "Div"} & set(kinds) or isinstance(network, BloodCellNet)


def test_in_8_bits_the_output_is_nearly_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = shaken(cell_net())
    pixels = windows(painted.cells([0, 1, 2, 3, 4, OTHER] * 3).patches)
    exact, rounded = as_served(network)(pixels), as_served(network, pixels)(pixels)
    assert 0 < abs(exact - rounded).max() < 0.05 * abs(exact).max() + 0.05
    for name, calibration in (("exact", None), ("rounded", pixels)):
        to_onnx(network, tmp_path / name, calibration)
    assert [is_quantized(tmp_path / name) for name in ("exact", "rounded")] == [False, True]


def test_training_learns() -> None:
    torch.manual_seed(0)
    cells = painted.cells([1, 2, OTHER] * 8)
    views, rows = draw(cells.patches, [None] * 24), np.arange(24)
    steps = Fit(60, 12, 1e-2, 0.05, decay=0.8, mean_from=0.3)
    network, _history = train_cells(
        views, cells.labels, rows, replace(SMALL, fit=steps), 0, "painted"
    )
    fresh = painted.cells([1, 2, OTHER] * 4, seed=1000)
    right = predict_cells(as_served(network), fresh)[0].argmax(1) == fresh.labels
    assert right.mean() > 0.8
    assert not network.training


def test_training_starts_from_a_seed_or_a_copy_of_given_weights() -> None:
    views = np.random.default_rng(0).integers(0, 256, (8, 84, 112, 3), dtype=np.uint8)
    labels, rows = np.arange(8) % 6, np.arange(8)
    torch.manual_seed(9)
    start = cell_net()
    before = {name: weight.clone() for name, weight in start.state_dict().items()}

    def train(seed: int, start: CellNet | None = None) -> CellNet:
        return train_cells(views, labels, rows, SMALL, seed, "", start=start)[0]

    moved, fresh, again, other = (
        train(seed, base) for seed, base in ((0, start), (0, None), (0, None), (4, None))
    )
    assert not same_weights(moved, start)
    assert not same_weights(moved, fresh)
    assert same_weights(fresh, again)
    assert not same_weights(fresh, other)
    assert all(torch.equal(weight, before[name]) for name, weight in start.state_dict().items())

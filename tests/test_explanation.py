"""Heat maps: properties of any network's, and agreement of version 1.0's with occlusion.

The reference is captum's Occlusion, which measures how covering a part of the image changes the
answer. The images are the drawn cells, cut so that the cell is at the lower right or the upper
left: if all cells were in the middle, any image's map would agree.
"""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from PIL import Image
from scipy.stats import spearmanr
from torch.nn import functional as F

from handler.attribution import heat_maps
from handler.contract import CLASSES
from handler.explanation import CANVAS, canvas_size, place, to_png
from handler.preprocessing import HEIGHT, WIDTH, Box, Size, decode
from serving.settings import ROOT
from training.networks import BloodCellNet, CellNet, to_input

# Corners of the cuts, 480x360 of 640x480, and where the cell's centre then is in 80x60.
CUTS = [(0, 0), (160, 120)]
CENTRES = [((320 - left) / 6, (240 - top) / 6) for left, top in CUTS]

FOLDER = ROOT / "models" / "1.0"

Network = BloodCellNet | CellNet


def untrained() -> BloodCellNet:
    torch.manual_seed(0)
    return BloodCellNet(**json.loads((FOLDER / "card.json").read_text())["network"]).eval()


@pytest.fixture(scope="module")
def shipped() -> BloodCellNet:
    network = untrained()
    network.load_state_dict(torch.load(FOLDER / "weights.pt", weights_only=True)["network"])
    return network


@pytest.fixture(params=["1.0", "2.0"])
def network(request: pytest.FixtureRequest, shipped: BloodCellNet) -> Network:
    """Return the network of 1.0 as shipped, that of 2.0 untrained: maps work for any weights."""
    if request.param == "1.0":
        return shipped
    torch.manual_seed(0)
    return CellNet((8, 16, 32), 0.1).eval()


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    """Return the drawn cells, class by class, in each cut."""
    cuts = []
    for name in CLASSES:
        with Image.open(ROOT / "serving" / "samples" / f"{name.lower()}.png") as picture:
            for left, top in CUTS:
                file = io.BytesIO()
                picture.crop((left, top, left + 480, top + 360)).save(file, "PNG")
                cuts.append(decode(file.getvalue()).pixels)
    return to_input(cuts)


@pytest.fixture(scope="module")
def targets(shipped: BloodCellNet, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return shipped(inputs).argmax(1)


def maps(network: Network, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return heat_maps(network, network.last_convolution, inputs, targets)


def test_a_map_is_the_same_alone_and_in_a_batch(network: Network, inputs: torch.Tensor) -> None:
    """Of the input's size, with a maximum of 1."""
    targets = torch.arange(4)
    heat = maps(network, inputs[:4], targets)
    assert (heat.shape, heat.dtype) == ((4, HEIGHT, WIDTH), torch.float32)
    assert heat.min() >= 0
    assert heat.amax((1, 2)).tolist() == pytest.approx([1] * 4)
    alone = [maps(network, inputs[[at]], targets[[at]]) for at in range(4)]
    torch.testing.assert_close(torch.cat(alone), heat, atol=1e-4, rtol=0)


@pytest.mark.parametrize("colour", [0.0, 1.0], ids=["black", "white"])
def test_nothing_is_marked_in_a_blank_picture(network: Network, colour: float) -> None:
    blank = torch.full((1, 3, HEIGHT, WIDTH), colour)
    blank[:, 0] *= 0.7
    assert not maps(network, blank, torch.tensor([0])).any()


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
def test_the_network_is_left_unchanged(
    network: Network, inputs: torch.Tensor, targets: torch.Tensor, frozen: bool
) -> None:
    """Also by an error, and in a service that takes no gradients."""
    given = inputs[:2].clone()
    weights = [parameter.clone() for parameter in network.parameters()]
    network.requires_grad_(not frozen)
    try:
        heat = maps(network, given, targets[:2])
        assert not heat.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(maps(network, given, targets[:2]), heat)
            assert not torch.is_grad_enabled()
        with pytest.raises(RuntimeError):
            maps(network, given[:, :2], targets[:2])
        assert not any(module._forward_hooks for module in network.modules())
        assert not any(module._forward_pre_hooks for module in network.modules())
        for before, after in zip(weights, network.parameters(), strict=True):
            assert after.grad is None
            assert after.requires_grad != frozen
            assert torch.equal(before, after)
        assert torch.equal(given, inputs[:2])
    finally:
        network.requires_grad_(True)


def grid(heat: torch.Tensor) -> np.ndarray:
    """Average over 4x4 pixels: (N, 300)."""
    return F.avg_pool2d(heat[:, None], 4).flatten(1).numpy()


@pytest.fixture(scope="module")
def heat(shipped: BloodCellNet, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return maps(shipped, inputs, targets)


@pytest.fixture(scope="module")
def occlusion(shipped: BloodCellNet, inputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Return by how much the logit falls where a picture's own mean colour covers 12x12 pixels."""
    with torch.no_grad():
        falls = [
            Occlusion(shipped).attribute(
                image[None],
                sliding_window_shapes=(3, 12, 12),
                strides=(3, 4, 4),
                baselines=image.mean((1, 2), keepdim=True).expand_as(image)[None],
                target=target,
                perturbations_per_eval=60,
            )
            for image, target in zip(inputs, targets.tolist(), strict=True)
        ]
    return grid(torch.cat(falls).mean(1).clamp(min=0))


def agreement(some: np.ndarray, others: np.ndarray) -> float:
    """Return the rank correlation of two maps, in the mean over pictures."""
    pairs = zip(some, others, strict=True)
    return float(np.mean([spearmanr(one, other).statistic for one, other in pairs]))


def test_a_map_agrees_with_occlusion(heat: torch.Tensor, occlusion: np.ndarray) -> None:
    found = agreement(grid(heat), occlusion)
    print(f"rank correlation {found:.2f}")
    assert found >= 0.35


def test_a_wrong_map_does_not(
    shipped: BloodCellNet, inputs: torch.Tensor, heat: torch.Tensor, occlusion: np.ndarray
) -> None:
    """That of another picture, turned, shuffled, or of the class that it is least."""
    right = grid(heat)
    shuffled = np.random.default_rng(0).permuted(right, axis=1)
    for wrong in (np.roll(right, 1, 0), right[:, ::-1], shuffled):
        assert agreement(wrong, occlusion) <= 0.2
    with torch.no_grad():
        least = shipped(inputs).argmin(1)
    assert agreement(grid(maps(shipped, inputs, least)), occlusion) <= 0


def test_the_hottest_place_is_in_the_cell(heat: torch.Tensor) -> None:
    """Within 18 pixels of its centre: the largest cell's radius, a fifth of the picture's area."""
    for each, (right, down) in zip(heat.flatten(1).argmax(1), CENTRES * len(CLASSES), strict=True):
        y, x = divmod(int(each), WIDTH)
        assert np.hypot(x + 0.5 - right, y + 0.5 - down) <= 18


ONES = np.ones((HEIGHT, WIDTH), np.float32)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((320, 240), (320, 240)),
        ((1280, 960), (640, 480)),
        ((3000, 1001), (640, 214)),
        ((1, 1), (1, 1)),
        ((20000, 3), (CANVAS, 1)),
    ],
)
def test_a_canvas_has_the_uploads_proportions(size: Size, expected: Size) -> None:
    assert canvas_size(size) == expected
    placed = place(ONES, (0, 0, *size), size)
    assert (placed.shape, placed.dtype) == (expected[::-1], np.float32)
    assert placed == pytest.approx(1)


@pytest.mark.parametrize("size", [(300, 900), (1600, 1200)])
@pytest.mark.parametrize(
    "share",
    [
        pytest.param((0.25, 0.25, 0.75, 0.75), id="inside"),
        pytest.param((-0.5, -0.25, 0.5, 0.25), id="over the left and the top"),
        pytest.param((0.75, 0.5, 1.25, 1.5), id="over the right and the bottom"),
        pytest.param((1.5, 0, 2, 1), id="outside"),
    ],
)
def test_a_map_covers_its_window_and_nothing_else(size: Size, share: Box) -> None:
    across, down = size
    window = (share[0] * across, share[1] * down, share[2] * across, share[3] * down)
    placed = place(ONES, window, size)
    width, height = canvas_size(size)
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    inside = (x > share[0]) & (x < share[2]) & (y > share[1]) & (y < share[3])
    # Its edge may fall on the middle of a pixel.
    assert (np.abs(placed - inside) > 0.01).mean() <= 0.02
    assert {placed.min().round(3), placed.max().round(3)} <= {0, 1}


def test_heat_decides_the_transparency() -> None:
    slope = np.tile(np.linspace(0, 1, 400, dtype=np.float32), (2, 1))
    image = Image.open(io.BytesIO(base64.b64decode(to_png(slope), validate=True)))
    assert (image.format, image.size) == ("PNG", (400, 2))
    alpha = np.asarray(image.convert("RGBA"))[0, :, 3].astype(int)
    assert alpha[0] == 0
    assert (np.diff(alpha) >= 0).all()
    assert np.diff(alpha).max() <= 10
    # The cell must still be seen under the hottest place.
    assert 150 <= alpha[-1] < 255


def test_a_png_is_small(heat: torch.Tensor) -> None:
    sizes = [
        len(to_png(place(each.numpy(), (0, 0, 640, 480), (640, 480)))) * 3 // 4 for each in heat
    ]
    print(f"at most {max(sizes)} bytes")
    assert max(sizes) <= 16_000

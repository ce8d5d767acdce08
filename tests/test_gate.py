"""The gate: a stained nucleus scores high in any photograph, other images score low."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handler import gate
from handler.preprocessing import Pixels, decode, squashed, within_field
from serving.settings import ROOT
from training import data, out_of_distribution
from training.export import in_torch
from training.gate import Gate
from training.out_of_distribution import far_images
from training.protocol import CLASSES

# Between the scores of nuclei and of nearly everything else; not a version's threshold.
BETWEEN = 0.65

Change = Callable[[Pixels], Pixels]


@pytest.fixture(scope="module", params=CLASSES)
def sample(request: pytest.FixtureRequest) -> Pixels:
    """Return the drawn sample of each class in turn, within 320x320."""
    path = ROOT / "serving" / "samples" / f"{request.param.lower()}.png"
    return decode(path.read_bytes(), within_field).pixels


@pytest.fixture(scope="module")
def far() -> dict[str, list[Pixels]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(out_of_distribution, "CROPS", 2)
        patch.setattr(out_of_distribution, "DRAWN", 40)
        return far_images(seed=0)


def lamp(*colour: float) -> Change:
    return lambda pixels: np.clip(pixels * np.array(colour), 0, 255).astype(np.uint8)


def stained(strength: float) -> Change:
    """Stain more or less: the same light, another optical density."""

    def change(pixels: Pixels) -> Pixels:
        clear = np.percentile(pixels, 90, axis=(0, 1))
        return np.clip(clear * (pixels / clear) ** strength, 0, 255).astype(np.uint8)

    return change


def scaled(width: int, height: int) -> Change:
    box = Image.Resampling.BOX
    return lambda pixels: np.asarray(Image.fromarray(pixels).resize((width, height), box))


LOOK = in_torch(Gate(gate.SIZE))


def stain(pixels: Pixels) -> float:
    [score] = LOOK(np.stack([gate.shrink(pixels)])).tolist()
    return float(score)


def turned(pixels: Pixels) -> Pixels:
    """Turn by 20 degrees, which leaves black wedges at the border."""
    return np.asarray(Image.fromarray(pixels).rotate(20, Image.Resampling.BILINEAR))


def through_an_eyepiece(pixels: Pixels) -> Pixels:
    """Darken towards a circle, black outside it."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[-0.75 : 0.75 : height * 1j, -1 : 1 : width * 1j]
    bright = np.clip((1 - np.hypot(x, y)) / 0.25, 0, 1)
    return (pixels * bright[..., None]).astype(np.uint8)


def noisy(pixels: Pixels) -> Pixels:
    noise = np.random.default_rng(0).normal(0, 15, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "by"),
    [
        pytest.param(lambda pixels: pixels[:, ::-1], 0.05, id="mirrored"),
        pytest.param(lambda pixels: pixels.transpose(1, 0, 2), 0.1, id="quarter turn"),
        pytest.param(turned, 0.1, id="black wedges"),
        pytest.param(lamp(0.4, 0.4, 0.4), 0.1, id="very dark"),
        pytest.param(lamp(1, 0.9, 0.75), 0.05, id="warm lamp"),
        pytest.param(lamp(1, 0.8, 0.95), 0.05, id="pink lamp"),
        pytest.param(stained(0.7), 0.1, id="pale stain"),
        pytest.param(stained(1.5), 0.1, id="deep stain"),
        pytest.param(scaled(80, 60), 0.02, id="80x60"),
        pytest.param(scaled(200, 200), 0.05, id="square"),
        pytest.param(noisy, 0.05, id="noisy"),
        pytest.param(through_an_eyepiece, 0.15, id="through an eyepiece"),
    ],
)
def test_a_nucleus_stays_a_nucleus(sample: Pixels, change: Change, by: float) -> None:
    score = stain(change(sample))
    assert score == pytest.approx(stain(sample), abs=by)
    assert score > BETWEEN


def test_images_without_a_smear_score_low(far: dict[str, list[Pixels]]) -> None:
    for kind, images in far.items():
        scores = np.array([stain(pixels) for pixels in images])
        assert (scores > BETWEEN).mean() <= 0.05, kind
        assert np.median(scores) < 0.1, kind


@pytest.mark.parametrize(
    "order", [(1, 0, 2), (0, 2, 1), (1, 1, 1)], ids=["green", "yellow", "grey"]
)
def test_the_colour_decides(sample: Pixels, order: tuple[int, ...]) -> None:
    """The same shapes in colours of no stain."""
    assert stain(sample[..., order]) < 0.2


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (114, 84, 178)])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (60, 80)])
def test_one_colour_is_no_nucleus(colour: tuple[int, ...], size: tuple[int, int]) -> None:
    """Not even that of a nucleus, which is then the background too."""
    assert 0 <= stain(np.full((*size, 3), colour, np.uint8)) < 0.2


@pytest.mark.data
@pytest.mark.parametrize("fit", [squashed, within_field])
def test_real_cells_score_high(blood_cells: Path, fit: Callable[..., tuple[int, int]]) -> None:
    """Except the few whose cell an augmentation has moved out of the image."""
    images = data.list_images(blood_cells, "TRAIN")[::100]
    scores = np.array([stain(decode(each.path.read_bytes(), fit).pixels) for each in images])
    assert (scores > BETWEEN).mean() >= 0.98

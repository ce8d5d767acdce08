"""Changes of an image: none at the neutral amount, the intended one at any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from training.robustness import CHANGES, blur, brightness, hue, rotation, scale

# The neutral amount of each change, and the mean difference that it may make.
NEUTRAL = {
    "blur": (0, 0.0),
    "JPEG quality": (95, 2.0),
    "brightness": (1, 0.0),
    "hue": (0, 2.0),
    "rotation": (0, 0.0),
    "scale": (1, 0.0),
}
LIGHT = (232, 225, 214)


def paint(width: int = 160, height: int = 120) -> Image.Image:
    """Paint a purple disc, off the middle, and a reddish one on light ground."""
    down, across = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), LIGHT, np.uint8)
    pixels[np.hypot(across - 0.4 * width, down - 0.4 * height) < 0.2 * height] = (95, 55, 140)
    pixels[np.hypot(across - 0.8 * width, down - 0.7 * height) < 0.1 * height] = (215, 150, 150)
    return Image.fromarray(pixels)


def levels(image: Image.Image) -> npt.NDArray[Any]:
    return np.asarray(image).astype(float)


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(levels(one) - levels(other)).mean())


@pytest.mark.parametrize("name", CHANGES)
def test_only_the_neutral_amount_changes_next_to_nothing(name: str) -> None:
    """A larger amount changes more, apart from a full turn; size and original stay."""
    _unit, amounts, change = CHANGES[name]
    neutral, most = NEUTRAL[name]
    assert list(amounts) == sorted(amounts, reverse=name == "JPEG quality")
    image = paint()
    changed = {amount: change(image, amount) for amount in amounts}
    assert {(each.size, each.mode) for each in changed.values()} == {((160, 120), "RGB")}
    assert (levels(image) == levels(paint())).all()
    differences = [difference(each, image) for each in changed.values()]
    assert differences[amounts.index(neutral)] <= most
    for amount in set(amounts) - {neutral}:
        assert difference(changed[amount], changed[neutral]) > 0.15
    if name != "rotation":
        above = differences[amounts.index(neutral) :]
        assert above == sorted(above)


def test_blur_is_a_share_of_the_width() -> None:
    """The same image, twice as large, is blurred equally."""
    small, large = (blur(paint(*size), 2) for size in ((160, 120), (320, 240)))
    assert difference(large.resize((160, 120), Image.Resampling.BOX), small) < 1


@pytest.mark.parametrize("amount", [0.5, 1.1, 1.6])
def test_brightness_multiplies_up_to_white(amount: float) -> None:
    expected = (levels(paint()) * amount).clip(max=255)
    assert np.abs(levels(brightness(paint(), amount)) - expected).max() <= 1


@pytest.mark.parametrize(("degrees", "expected"), [(120, (0, 200, 0)), (-120, (0, 0, 200))])
def test_hue_turns_around_the_circle(degrees: float, expected: tuple[int, int, int]) -> None:
    turned = levels(hue(Image.new("RGB", (4, 4), (200, 0, 0)), degrees))
    assert np.abs(turned - expected).max() <= 8


def test_rotation_is_anticlockwise_about_the_middle_and_leaves_black_corners() -> None:
    turned = levels(rotation(paint(), 45))
    assert (turned[0, 0] == 0).all()
    assert (turned[60, 80] == levels(paint())[60, 80]).all()
    assert difference(rotation(paint(), 180), paint().rotate(180)) == 0
    square = Image.new("RGB", (20, 20))
    square.paste((200, 0, 0), (8, 0, 12, 4))
    assert (levels(rotation(square, 90))[10, 1] == (200, 0, 0)).all()


def share(image: Image.Image) -> float:
    """Return the share of the picture that is purple."""
    return float((levels(image)[..., 1] < 100).mean())


@pytest.mark.parametrize("amount", [0.4, 0.6, 1.25])
def test_a_cell_grows_with_the_scale(amount: float) -> None:
    expected = share(paint()) * amount**2
    assert share(scale(paint(), amount)) == pytest.approx(expected, rel=0.1)


def test_a_zoomed_out_image_is_surrounded_by_its_own_light() -> None:
    corner = levels(scale(paint(), 0.4))[:20, :20]
    assert np.abs(corner - LIGHT).max() <= 1

"""Images without a blood smear, to measure whether a version rejects them.

The photographs are part of packages that development needs; the rest is drawn. Stained tissue from
the same packages is left out: it resembles a smear.
"""

from __future__ import annotations

import string
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont, ImageOps

from handler.preprocessing import Pixels

SIZES = ((320, 240), (240, 320), (360, 363), (400, 300))
# (package, path): ten in colour, eight in grey. They are few, and crops of one photograph are
# correct or wrong together, so the figures hardly generalise.
PHOTOGRAPHS = (
    ("sklearn.datasets", "images/china.jpg"),
    ("sklearn.datasets", "images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("skimage.data", "astronaut.png"),
    ("skimage.data", "chelsea.png"),
    ("skimage.data", "coffee.png"),
    ("skimage.data", "hubble_deep_field.jpg"),
    ("skimage.data", "motorcycle_left.png"),
    ("skimage.data", "retina.jpg"),
    ("skimage.data", "rocket.jpg"),
    ("skimage.data", "brick.png"),
    ("skimage.data", "camera.png"),
    ("skimage.data", "coins.png"),
    ("skimage.data", "grass.png"),
    ("skimage.data", "gravel.png"),
    ("skimage.data", "moon.png"),
    ("skimage.data", "page.png"),
    ("skimage.data", "text.png"),
)
CROPS = 14
# Images of each drawn kind.
DRAWN = 120

# Capitals and digits are rarer.
LETTERS = np.array(list(string.ascii_lowercase * 4 + string.ascii_uppercase + string.digits))

Colour = tuple[int, ...]


def far_images(seed: int) -> dict[str, list[Pixels]]:
    """Return images by kind: photograph, text, blank, noise; the same seed gives the same ones."""
    # A stream for each kind: more of one does not change the others.
    photograph, text, blank, noise = np.random.default_rng(seed).spawn(4)
    return {
        "photograph": [_crop(_photograph(*name), photograph) for name in PHOTOGRAPHS * CROPS],
        "text": [_text(text) for _ in range(DRAWN)],
        "blank": [_blank(blank) for _ in range(DRAWN)],
        "noise": [_noise(noise) for _ in range(DRAWN)],
    }


@cache
def _photograph(package: str, path: str) -> Image.Image:
    with files(package).joinpath(path).open("rb") as file:
        return Image.open(file).convert("RGB")


def _size(random: Generator) -> tuple[int, int]:
    width, height = random.choice(SIZES)
    return int(width), int(height)


def _crop(photograph: Image.Image, random: Generator) -> Pixels:
    """Cut out a window of an upload's shape, at least a third of the photograph wide."""
    width, height = _size(random)
    largest = min(photograph.width / width, photograph.height / height)
    scale = largest * random.uniform(1 / 3, 1)
    left = random.uniform(0, photograph.width - scale * width)
    top = random.uniform(0, photograph.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    # Rounding may exceed the edge.
    box = (*box[:2], min(box[2], photograph.width), min(box[3], photograph.height))
    crop = photograph.resize((width, height), Image.Resampling.BICUBIC, box)
    return np.asarray(ImageOps.mirror(crop) if random.integers(2) else crop)


def _colour(random: Generator, low: int = 0, high: int = 255) -> Colour:
    return tuple(random.integers(low, high, 3, endpoint=True).tolist())


def _text(random: Generator) -> Pixels:
    """Draw a page or a screen: a bar, lines of words in a few inks, some boxes."""
    width, height = _size(random)
    dark = random.random() < 0.3
    paper, ink = _colour(random, 225), _colour(random, 0, 80)
    if dark:
        paper, ink = ink, paper
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(int(random.integers(8, 28)))
    step = font.getbbox("Ag")[3] * random.uniform(1.1, 1.7)
    accent = _colour(random)
    y = step / 2
    if random.random() < 0.5:
        draw.rectangle((0, 0, width, step), fill=accent)
        y += step
    while y < height:
        if random.random() < 0.1:
            x = random.uniform(0, width / 2)
            box = (x, y, x + random.uniform(10, width / 2), y + step * random.uniform(1, 3))
            draw.rectangle(box, fill=_colour(random), outline=ink)
        # Some lines stay empty.
        if random.random() < 0.85:
            words = random.integers(2, 14)
            line = " ".join(_word(random) for _ in range(words))
            draw.text((step / 2, y), line, accent if random.random() < 0.15 else ink, font)
        y += step
    return np.asarray(image)


def _word(random: Generator) -> str:
    return "".join(random.choice(LETTERS, random.integers(1, 10)))


def _blank(random: Generator) -> Pixels:
    """Draw one colour or a gradient, half of them in the hues of stains."""
    width, height = _size(random)
    # A quarter plain, half across the field, a quarter radial.
    kind = random.integers(4)
    first, second = _plain_colour(random), _plain_colour(random)
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    angle = random.uniform(0, 2 * np.pi)
    across = (x * np.cos(angle) + y * np.sin(angle)) / (abs(np.cos(angle)) + abs(np.sin(angle)))
    outwards = (x**2 + y**2) / 2
    share = (np.zeros_like(across), (across + 1) / 2, (across + 1) / 2, outwards)[kind]
    pixels = first + share[..., None] * np.subtract(second, first)
    # Camera noise.
    pixels += random.normal(0, random.choice([0, 1, 3]), pixels.shape)
    return _eight_bit(pixels)


def _plain_colour(random: Generator) -> Colour:
    if random.integers(2):
        return _colour(random)
    # From pink to purple to blue, pale or deep.
    red, green, blue = random.uniform(0.35, 1), random.uniform(0.2, 0.8), random.uniform(0.7, 1)
    bright = random.uniform(100, 255)
    return tuple(round(bright * part) for part in (red, green, blue))


def _noise(random: Generator) -> Pixels:
    """Draw noise: from pixels to soft clouds of a third of the field, in grey or in colour."""
    width, height = _size(random)
    grain = random.choice([1, 1, 2, 4, 10, 30, 100])
    channels = random.choice([1, 3, 3])
    small = (int(np.ceil(height / grain)) + 1, int(np.ceil(width / grain)) + 1)
    waves = [random.standard_normal(small, np.float32) for _ in range(channels)]
    soft = [
        np.asarray(Image.fromarray(wave).resize((width, height), Image.Resampling.BICUBIC))
        for wave in waves
    ]
    base, strength = np.array(_colour(random, 60, 200)), random.uniform(10, 90)
    return _eight_bit(base + strength * np.stack(soft, axis=-1))


def _eight_bit(pixels: Any) -> Pixels:
    eight_bit: Pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return eight_bit

"""Pictures that show no blood: overlapping shapes, with the sizes and textures of natural scenes.

They teach what is no cell. Networks learn from such pictures nearly as well as from photographs
(dead leaves: Baradad et al. 2021), and they have no licence to keep.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from serving.files import atomic_write
from training import workers
from training.checkpoints import identity

CODE = ("training/scenes.py",)
SIZE, SCENES = (480, 360), 160
# The radii of shapes in pixels; their squares have the same share at every scale.
RADII = (12, 250)
SURFACES = 5


def draw_scenes(folder: Path) -> list[Path]:
    """Return the files of the scenes, in a subfolder for this code; draw those that are missing."""
    folder /= identity((SIZE, SCENES), CODE)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(SCENES)]
    for _ in workers.each(_save, [path for path in paths if not path.exists()], "scenes"):
        pass
    return paths


def scene(random: Generator) -> Image.Image:
    """Draw a scene of one size: shapes of a few surfaces cover each other."""
    colours = random.uniform(0, 255, (3, 3))
    surfaces = [_surface(colours, random) for _ in range(SURFACES)]
    image = surfaces[0].copy()
    for _ in range(int(random.integers(3, 300))):
        mask = Image.new("L", SIZE)
        ImageDraw.Draw(mask).polygon(_outline(random), fill=255)
        image.paste(surfaces[random.integers(SURFACES)], mask=mask)
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 2)))
    return image.convert("L").convert("RGB") if random.random() < 0.2 else image


def _save(path: Path) -> None:
    with atomic_write(path) as file:
        scene(np.random.default_rng(int(path.stem))).save(file, "PNG")


def _surface(colours: np.ndarray, random: Generator) -> Image.Image:
    """Draw a mixture of the colours with a gradient and a texture (noise, 1 / frequency^a)."""
    width, height = SIZE
    down, across = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
    falling = np.maximum(np.hypot(down, across), 1 / width) ** -random.uniform(0.8, 2.2)
    phases = np.exp(2j * np.pi * random.random(falling.shape))
    noise = np.fft.irfft2(falling * phases, (height, width))
    noise *= random.uniform(0, 45) / noise.std()
    angle = random.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    light = noise + (x * math.cos(angle) + y * math.sin(angle)) * random.uniform(0, 120)
    tint = random.uniform(0.6, 1.4, 3)
    shades = random.dirichlet(np.ones(len(colours))) @ colours + light[..., None] * tint
    return Image.fromarray(shades.clip(0, 255).astype(np.uint8))


def _outline(random: Generator) -> list[tuple[float, float]]:
    """Draw a shape's corners: a triangle to nearly an ellipse, some of them jagged."""
    low, high = RADII
    radius = (low**-1 + random.random() * (high**-1 - low**-1)) ** -1
    corners = int(random.choice([3, 4, 4, 5, 8, 24]))
    angles = np.sort(random.uniform(0, 2 * math.pi, corners))
    reach = radius * random.uniform(0.6 if random.random() < 0.5 else 1, 1, corners)
    stretch, turn = random.uniform(0.15, 1), random.uniform(0, 2 * math.pi)
    x, y = reach * np.cos(angles), reach * np.sin(angles) * stretch
    middle = random.uniform((0, 0), SIZE)
    across = x * math.cos(turn) - y * math.sin(turn) + middle[0]
    down = x * math.sin(turn) + y * math.cos(turn) + middle[1]
    return list(zip(across.tolist(), down.tolist(), strict=True))

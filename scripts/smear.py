"""Paint white blood cells among red cells, as a microscope shows a stained smear."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array = NDArray[np.float64]
Colour = tuple[float, float, float]
Disc = tuple[float, float, float]  # x, y and radius in the canvas's pixels
Placed = tuple[str, float, float]  # a class and where its cell lies: shares of width and height

OVERSAMPLE = 2  # the picture is drawn this many times larger, then reduced
TONE_STEP = 4  # tones are rounded to multiples of this, which keeps the noisy PNG small
BACKGROUND: Colour = (222, 219, 210)
PLATELET: Colour = (150, 128, 198)
RED_CELL_TRANSMITS: Colour = (0.865, 0.725, 0.73)  # of the light, through one cell's rim
RED_CELL_RADIUS = 0.074  # of the picture's width, like every radius of a whole cell


@dataclass(frozen=True)
class Granules:
    """Round specks in a white cell's cytoplasm, sized in units of the cell's radius."""

    count: int
    radius: float
    colours: tuple[Colour, ...]
    strength: float


@dataclass(frozen=True)
class WhiteCell:
    """How one class looks: lobes lie along an arc, in units of the cell's radius."""

    radius: float
    wobble: float
    cytoplasm: Colour
    nucleus: Colour
    lobes: tuple[int, int]  # fewest and most
    lobe_radius: float
    arc: float  # the angle from the first lobe to the last, in radians
    arc_radius: float
    strand: float  # half the thickness of what joins the lobes
    lace: float  # how much the chromatin's density varies
    looseness: float  # how much the lobes differ in size and place
    taper: float = 0.0  # how much thicker a strand is where it meets a lobe
    knobs: int = 0  # the bulges on each lobe
    bend: float = 0.035  # how far the nucleus's outline strays from discs
    grain: float = 0.16  # the size of the chromatin's clumps
    granules: Granules | None = None
    overlay: Granules | None = None  # specks above the nucleus too: vacuoles, stray granules


@dataclass(frozen=True)
class Smear:
    """How a laboratory's smears look: lamp, stain, and how thinly they are spread."""

    light: Colour = BACKGROUND
    dye: Colour = (1.0, 1.0, 1.0)  # how strong the stain is, for each channel of the light
    gaps: tuple[float, ...] = (1.0, 1.5, 2.05)  # between red cells' centres, in their radii


def draw_field(
    cells: Sequence[Placed],
    seed: int | Sequence[int],
    size: tuple[int, int],
    recipes: Mapping[str, WhiteCell],
    smear: Smear = Smear(),
    scale: float = 1.0,
) -> Image.Image:
    """Draw white cells among red ones, `scale` times as large as usual.

    The recipes describe how each class is painted.
    """
    rng = np.random.default_rng(seed)
    width, height = OVERSAMPLE * size[0], OVERSAMPLE * size[1]
    white = [
        (x * width, y * height, scale * recipes[label].radius * width) for label, x, y in cells
    ]
    canvas = np.full((height, width, 3), BACKGROUND, np.float64)
    canvas += 1.5 * smooth_noise(rng, canvas.shape, width / 5)[..., None]
    draw_red_cells(canvas, rng, white, scale, smear.gaps)
    draw_platelets(canvas, rng, white)
    for (label, _x, _y), place in zip(cells, white, strict=True):
        draw_white_cell(canvas, rng, recipes[label], place)
    restain(canvas, smear)
    return finish(canvas, rng, size)


def soft_step(depth: Array, width: float) -> Array:
    """Rise smoothly from 0 to 1 while the depth goes from -width to width."""
    t = np.clip(depth / (2 * width) + 0.5, 0.0, 1.0)
    return t * t * (3 - 2 * t)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], grain: float) -> Array:
    """Return noise of roughly unit spread, whose bumps are about `grain` pixels wide."""
    height, width = shape[:2]
    coarse = rng.standard_normal((math.ceil(height / grain) + 3, math.ceil(width / grain) + 3))
    image = Image.fromarray(coarse.astype(np.float32))
    box = (1.0, 1.0, 1 + width / grain, 1 + height / grain)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box), np.float64)


def window(canvas: Array, x: float, y: float, reach: float) -> tuple[Array, Array, Array]:
    """Return a view of the canvas around a point, and each pixel's offset from that point."""
    top, left = max(0, int(y - reach)), max(0, int(x - reach))
    view = canvas[top : max(0, int(y + reach) + 2), left : max(0, int(x + reach) + 2)]
    v, u = np.mgrid[top : top + view.shape[0], left : left + view.shape[1]]
    return view, u - x, v - y


def paint(view: Array, cover: Array, colour: Colour | Array) -> None:
    """Blend a colour into the view with the opacity `cover` (0 to 1)."""
    view += cover[..., None] * (np.asarray(colour, np.float64) - view)


def outline(rng: np.random.Generator, u: Array, v: Array, wobble: float) -> Array:
    """Return the radius, near 1, of an irregular round outline in each pixel's direction."""
    angle = np.arctan2(v, u)
    radius = np.ones_like(angle)
    for wave in range(2, 7):
        phase = rng.uniform(0, 2 * math.pi)
        radius += wobble * rng.normal() * 2 / wave * np.cos(wave * angle + phase)
    return radius


def add_red_cell(stain: Array, rng: np.random.Generator, x: float, y: float, r: float) -> None:
    """Add one red cell's stain: a thick rim round a thin, pale centre."""
    view, u, v = window(stain, x, y, 1.5 * r)
    turn, stretch, lean = rng.uniform(0, math.pi), rng.uniform(0.8, 1.0), rng.normal(0, 0.06, 2)
    along = u * math.cos(turn) + v * math.sin(turn)
    across = (v * math.cos(turn) - u * math.sin(turn)) / stretch
    edge = outline(rng, u, v, 0.03)
    rho = np.hypot(along, across) / (r * edge)
    hollow = np.hypot(along / r - lean[0], across / r - lean[1]) / edge
    rim = 0.22 * np.exp(-(((rho - 0.92) / 0.06) ** 2))
    centre = rng.uniform(0.2, 0.85) * soft_step(rng.uniform(0.4, 0.56) - hollow, 0.17)
    slope = 0.12 * (rho - 0.5)
    view += rng.uniform(0.6, 1.2) * soft_step(1 - rho, 0.05) * (1 + rim + slope - centre)


def draw_red_cells(
    canvas: Array,
    rng: np.random.Generator,
    white: Sequence[Disc],
    scale: float,
    gaps: Sequence[float],
) -> None:
    """Scatter red cells over the canvas, some overlapping, round the white cells' places."""
    height, width = canvas.shape[:2]
    radius = scale * RED_CELL_RADIUS * width
    stain = np.zeros((height, width))
    placed: list[tuple[float, float]] = []
    for _ in range(round(120 / scale**2)):
        x = rng.uniform(-0.8 * radius, width + 0.8 * radius)
        y = rng.uniform(-0.8 * radius, height + 0.8 * radius)
        gap = radius * rng.choice(gaps)
        if any(math.hypot(x - a, y - b) < r + 0.9 * radius for a, b, r in white):
            continue
        if all(math.hypot(x - a, y - b) > gap for a, b in placed):
            placed.append((x, y))
            add_red_cell(stain, rng, x, y, radius * rng.uniform(0.86, 1.1))
    stain *= 1 + 0.025 * smooth_noise(rng, stain.shape, 0.15 * radius)
    overlapped = 1.9 * np.tanh(stain / 1.9)  # two cells' stain is less than twice as dark
    canvas *= np.asarray(RED_CELL_TRANSMITS) ** overlapped[..., None]


def draw_platelets(canvas: Array, rng: np.random.Generator, white: Sequence[Disc]) -> None:
    """Drop a few small purple platelets between the cells."""
    height, width = canvas.shape[:2]
    wanted = 4
    for _ in range(100):  # a crowded field may have room for fewer
        x, y = rng.uniform(0.05, 0.95) * width, rng.uniform(0.06, 0.94) * height
        on_background = canvas[int(y), int(x), 1] > 0.93 * BACKGROUND[1]
        if on_background and all(math.hypot(x - a, y - b) > 1.15 * r for a, b, r in white):
            r = width * rng.uniform(0.011, 0.019)
            view, u, v = window(canvas, x, y, 2 * r)
            depth = outline(rng, u, v, 0.06) - np.hypot(u, v) / r
            speckle = 0.7 + 0.12 * smooth_noise(rng, view.shape, 0.7 * r)
            paint(view, np.clip(soft_step(depth, 0.4) * speckle, 0, 1), PLATELET)
            wanted -= 1
        if not wanted:
            break


def nucleus_discs(cell: WhiteCell, rng: np.random.Generator) -> list[Disc]:
    """Return the discs (x, y, radius) that make up a nucleus: lobes, strands and knobs."""
    count = int(rng.integers(cell.lobes[0], cell.lobes[1], endpoint=True))
    start = rng.uniform(0, 2 * math.pi)
    lobes = []
    for i in range(count):
        angle = start + cell.arc * i / max(1, count - 1)
        distance = cell.arc_radius + cell.looseness * rng.normal()
        radius = cell.lobe_radius * (1 + cell.looseness * rng.normal())
        lobes.append((distance * math.cos(angle), distance * math.sin(angle), radius))
    strands = [
        (
            a[0] + t * (b[0] - a[0]),
            a[1] + t * (b[1] - a[1]),
            cell.strand + cell.taper * (2 * t - 1) ** 2,
        )
        for a, b in pairwise(lobes)
        for t in np.linspace(0, 1, 14)
    ]
    return lobes + strands + [knob(rng, lobe) for lobe in lobes for _ in range(cell.knobs)]


def knob(rng: np.random.Generator, lobe: Disc) -> Disc:
    """Return a disc that bulges from a lobe."""
    x, y, radius = lobe
    angle, share = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 0.85)
    distance = (1.2 - share) * radius
    return x + distance * math.cos(angle), y + distance * math.sin(angle), share * radius


def draw_nucleus(
    view: Array, rng: np.random.Generator, cell: WhiteCell, u: Array, v: Array
) -> None:
    """Paint the nucleus: a union of discs, bent by noise, with mottled chromatin."""
    unit = 1 / float(u[0, 1] - u[0, 0])  # pixels in the cell's radius
    bent_u = u + cell.bend * smooth_noise(rng, u.shape, 0.36 * unit)
    bent_v = v + cell.bend * smooth_noise(rng, v.shape, 0.36 * unit)
    discs = nucleus_discs(cell, rng)
    depth = np.max([r - np.hypot(bent_u - x, bent_v - y) for x, y, r in discs], axis=0)
    clumps = smooth_noise(rng, u.shape, cell.grain * unit)
    clumps += 0.7 * smooth_noise(rng, u.shape, 0.07 * unit)
    edge = 0.6 * np.exp(-((depth / 0.05) ** 2))  # chromatin gathers at the membrane
    light = np.clip(cell.lace * (0.35 * clumps - edge), -0.25, 0.55)
    tone = np.asarray(cell.nucleus) + light[..., None] * (np.asarray(cell.cytoplasm) - cell.nucleus)
    paint(view, 0.97 * soft_step(depth, 0.04), tone)


def draw_specks(
    view: Array, rng: np.random.Generator, specks: Granules, radius: float, within: float
) -> None:
    """Paint round specks, each lit a little at its middle, inside the view's middle circle."""
    for _ in range(specks.count):
        distance, angle = within * math.sqrt(rng.uniform()), rng.uniform(0, 2 * math.pi)
        x = view.shape[1] / 2 + distance * math.cos(angle)
        y = view.shape[0] / 2 + distance * math.sin(angle)
        r = radius * specks.radius * rng.uniform(0.7, 1.25)
        spot, u, v = window(view, x, y, 1.4 * r)
        rho = np.hypot(u, v) / r
        colour = np.asarray(specks.colours[rng.integers(len(specks.colours))])
        shade = 1.05 - 0.12 * np.minimum(rho, 1.2) ** 2
        paint(spot, specks.strength * soft_step(1 - rho, 0.2), colour * shade[..., None])


def draw_white_cell(canvas: Array, rng: np.random.Generator, cell: WhiteCell, place: Disc) -> None:
    """Paint a white cell near its place: cytoplasm, granules, nucleus, vacuoles."""
    height, width = canvas.shape[:2]
    middle_x, middle_y, radius = place
    x, y = np.array([width, height]) * rng.uniform(0.48, 0.52, 2)
    x, y = x + middle_x - width / 2, y + middle_y - height / 2
    view, u, v = window(canvas, x, y, 1.25 * radius)
    u, v = u / radius, v / radius
    depth = outline(rng, u, v, cell.wobble) - np.hypot(u, v)
    body = soft_step(depth, 0.04)
    inside = view.copy()
    mottle = 1 + 0.025 * smooth_noise(rng, u.shape, 0.12 * radius)
    rim = 0.09 * np.exp(-((depth / 0.06) ** 2))
    paint(inside, np.full(u.shape, 0.95), np.asarray(cell.cytoplasm) * (mottle - rim)[..., None])
    if cell.granules:
        draw_specks(inside, rng, cell.granules, radius, 1.0 * radius)
    draw_nucleus(inside, rng, cell, u, v)
    if cell.overlay:
        draw_specks(inside, rng, cell.overlay, radius, 0.9 * radius)
    paint(view, body, inside)


def finish(canvas: Array, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Reduce the canvas to its final size, as a soft, slightly vignetted and noisy camera would."""
    drawn = Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))
    soft = drawn.filter(ImageFilter.GaussianBlur(drawn.width / 750))
    tones = np.asarray(soft.resize(size, Image.Resampling.BOX), np.float64)
    v, u = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    tones *= (1.015 - 0.05 * (u * u + v * v))[..., None]
    tones += rng.normal(0, 1.2, tones.shape[:2])[..., None]
    tones = TONE_STEP * np.round(tones / TONE_STEP)
    return Image.fromarray(np.clip(tones, 0, 255).astype(np.uint8))


def restain(canvas: Array, smear: Smear) -> None:
    """Change the light and the stain to those of the smear."""
    # In this order, the default smear changes no bit.
    change = (canvas / BACKGROUND) ** np.subtract(smear.dye, 1)
    canvas *= np.divide(smear.light, BACKGROUND) * change

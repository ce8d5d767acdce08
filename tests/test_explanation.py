"""Heat maps: where made-up networks look, and the evidence that the shipped versions use.

A map is right if the network needs what it marks: hiding the hottest fifth of an input must lower
the label's probability more than hiding as much elsewhere.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from conftest import CARDS, VERSIONS
from PIL import Image

from handler import pipelines
from handler.attribution import attribute
from handler.cells import cut_out
from handler.explanation import CANVAS, canvas_size, place, to_png
from handler.locator import locate
from handler.pipelines import CellByCell, Pipeline, WholeField
from handler.preprocessing import HEIGHT, WIDTH, Box, Floats, Pixels, Size, decode
from handler.verdict import probabilities
from serving.settings import ROOT
from training import data
from training.protocol import FIELD_CLASSES

BATCH_SIZE = 8
# Of the photographs with one cell, so many of each class are explained.
PHOTOGRAPHS = 10
# The share of an input that is hidden.
HIDDEN = 0.2
# Corners of the cuts of the drawings, 480x360 of 640x480: the cell is at the lower right or the
# upper left. If all cells were in the middle, any image's map would do.
CUTS = [(0, 0), (160, 120)]

Mask = npt.NDArray[np.bool_]


class Looking:
    """A network whose first logit is the brightness of a window, and the second its darkness."""

    window = slice(5, 20), slice(50, 75)

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, pixels: Pixels | Floats) -> Floats:
        self.sizes.append(len(pixels))
        light = pixels[:, *self.window].mean((1, 2, 3), np.float32)
        # As if they were an embedding, the other outputs are far larger.
        return np.stack([light, -light, 1e6 * light], 1)

    def image(self, inside: int, outside: int) -> Pixels:
        pixels = np.full((HEIGHT, WIDTH, 3), outside, np.uint8)
        pixels[self.window] = inside
        return pixels


@pytest.fixture
def looking() -> Looking:
    return Looking()


def test_the_heat_is_where_the_network_looks(looking: Looking) -> None:
    heat = attribute(looking, looking.image(200, 100), 0, BATCH_SIZE)
    assert (heat.shape, heat.dtype) == ((HEIGHT, WIDTH), np.float32)
    assert 0 <= heat.min() <= heat.max() == 1
    down, across = np.unravel_index(heat.argmax(), heat.shape)
    assert 5 <= down < 20
    assert 50 <= across < 75
    assert heat[:, :30].max() < 0.1
    assert heat[40:].max() < 0.1


def test_slight_evidence_is_pale(looking: Looking) -> None:
    heat = attribute(looking, looking.image(101, 100), 0, BATCH_SIZE)
    assert 0 < heat.max() < 1


def test_evidence_against_a_class_is_not_marked(looking: Looking) -> None:
    assert not attribute(looking, looking.image(200, 100), 1, BATCH_SIZE).any()
    assert attribute(looking, looking.image(100, 200), 1, BATCH_SIZE).any()


def test_the_network_gets_batches_that_it_is_warm_for(looking: Looking) -> None:
    image = looking.image(200, 100)
    before = image.copy()
    maps = [attribute(looking, image, 0, size) for size in (1, BATCH_SIZE, 100)]
    assert max(looking.sizes[:-1]) == BATCH_SIZE
    assert np.array_equal(image, before)
    for each in maps:
        assert each == pytest.approx(maps[0], abs=1e-4)


class Case(NamedTuple):
    """An upload, the input of the network that classifies it, and the likeliest of its classes."""

    upload: bytes
    image: Pixels
    label: int
    classes: int


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Pipeline:
    name = request.param
    return pipelines.load(ROOT / "models" / name, CARDS[name], BATCH_SIZE)


def case(version: Pipeline, upload: bytes) -> Case:
    """Prepare an upload as the version does; of several cells, take the first."""
    assert isinstance(version, WholeField | CellByCell)
    image = decode(upload, version.fit).pixels
    if isinstance(version, CellByCell):
        [found] = locate(version.locator, [image])
        [image] = cut_out(image, found[:1])
    [logits] = version.network(image[None])
    return Case(upload, image, int(logits[: version.classes].argmax()), version.classes)


@pytest.fixture(scope="module")
def drawn(version: Pipeline) -> list[Case]:
    """Return the drawn cells in each cut."""
    cases = []
    for name in FIELD_CLASSES:
        with Image.open(ROOT / "serving" / "samples" / f"{name.lower()}.png") as picture:
            for left, top in CUTS:
                file = io.BytesIO()
                picture.crop((left, top, left + 480, top + 360)).save(file, "PNG")
                cases.append(case(version, file.getvalue()))
    return cases


@pytest.fixture(scope="module")
def boxed(blood_cells: Path) -> list[tuple[Path, Box]]:
    """Return photographs of one cell, as many of each class, and the cell's box."""
    labels = {each.path: each.label for each in data.photographs(blood_cells, "TRAIN", "TEST")}
    found = data.located_photographs(blood_cells)
    single = [(path, boxes[0]) for path, _split, _group, boxes in found if len(boxes) == 1]
    chosen = []
    for label in range(len(FIELD_CLASSES)):
        every = [each for each in single if labels.get(each[0]) == label]
        chosen += [every[at] for at in np.linspace(0, len(every) - 1, PHOTOGRAPHS, dtype=int)]
    return chosen


@pytest.fixture(scope="module")
def photographs(version: Pipeline, boxed: list[tuple[Path, Box]]) -> list[Case]:
    return [case(version, path.read_bytes()) for path, _box in boxed]


def hottest(heat: Floats) -> Mask:
    return heat >= np.quantile(heat, 1 - HIDDEN)


def elsewhere(mask: Mask, count: int = 10) -> list[Mask]:
    """Shift a mask at random, over the edges: as much is hidden, in the same shape."""
    random = np.random.default_rng(0)
    return [
        np.roll(mask, (int(random.integers(HEIGHT)), int(random.integers(WIDTH))), (0, 1))
        for _ in range(count)
    ]


def without(network: pipelines.Network, case: Case, mask: Mask) -> float:
    """Return the label's probability when the mean colour hides a part of the input."""
    hidden = np.where(mask[..., None], case.image.mean((0, 1)), case.image).astype(np.uint8)
    [logits] = network(hidden[None])
    return probabilities(logits[: case.classes].tolist(), 1.0)[case.label]


def deletions(version: Pipeline, cases: list[Case]) -> npt.NDArray[np.float64]:
    """Return the label's probability (N, 2): without the hottest part, and without others."""
    assert isinstance(version, WholeField | CellByCell)
    network, found = version.network, []
    for each in cases:
        mask = hottest(attribute(network, each.image, each.label, BATCH_SIZE))
        others = [without(network, each, other) for other in elsewhere(mask)]
        found.append((without(network, each, mask), float(np.mean(others))))
    right = np.array(found)
    print(f"without the hottest fifth {right[:, 0].mean():.2f}, others {right[:, 1].mean():.2f}")
    return right


def test_the_answer_needs_the_hottest_part_of_a_drawing(
    version: Pipeline, drawn: list[Case]
) -> None:
    marked, others = deletions(version, drawn).T
    assert marked.mean() < others.mean() - 0.15


def test_the_answer_needs_the_hottest_part_of_a_photograph(
    version: Pipeline, photographs: list[Case]
) -> None:
    marked, others = deletions(version, photographs).T
    assert marked.mean() < others.mean() - 0.2
    assert (marked < others).mean() >= 0.6


def test_the_heat_of_a_photograph_is_in_the_cell(
    version: Pipeline, photographs: list[Case], boxed: list[tuple[Path, Box]]
) -> None:
    """The cells' boxes cover an eighth of the photographs."""
    shares = []
    for each, (_path, box) in zip(photographs, boxed, strict=True):
        _prediction, heat = version.explain(decode(each.upload, version.fit))
        left, top, right, bottom = map(int, box)
        shares.append(heat[top:bottom, left:right].sum() / heat.sum())
    print(f"{np.mean(shares):.2f} of the heat is in the cell")
    assert np.mean(shares) >= 0.4


@pytest.mark.parametrize("colour", [0, 255], ids=["black", "white"])
def test_nothing_is_marked_in_a_blank_picture(version: Pipeline, colour: int) -> None:
    size = version.fit((640, 480))[::-1]
    picture = decode(_png(np.full((*size, 3), colour, np.uint8)), version.fit)
    assert version.explain(picture)[1].max() < 0.01


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


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


def test_a_png_is_small(version: Pipeline, drawn: list[Case]) -> None:
    pictures = [decode(each.upload, version.fit) for each in drawn]
    sizes = [len(to_png(version.explain(each)[1])) * 3 // 4 for each in pictures]
    print(f"at most {max(sizes)} bytes")
    assert max(sizes) <= 16_000

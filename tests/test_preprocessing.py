"""Preprocessing: any valid image becomes RGB of a known size, any other input an error.

Hostile inputs stand in test_hostile.py.
"""

import gc
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, TiffImagePlugin

from handler import contract, preprocessing
from handler.bounds import (
    FIELD,
    JPEG_COST,
    MAX_COST,
    MAX_JPEG_PARTS,
    MAX_PIXELS,
    MAX_TIFF_TAGS,
    MAX_TIFF_VALUES,
    PLAIN_COST,
    RAW_COST,
    SCAN_COST,
    SCAN_START,
    TEXT_COST,
    UNSCALED_COST,
    InputError,
    Reads,
)
from handler.preprocessing import (
    HEIGHT,
    WIDTH,
    Box,
    DecodedImage,
    OpenedImage,
    Pixels,
    Size,
    cut,
    decode_opened,
    open_all,
    squashed,
    within_field,
)
from testing import formats

Array = npt.NDArray[Any]

LOSSLESS = {
    "PNG": {},
    "BMP": {},
    "TIFF": {},
    "WEBP": {"lossless": True, "exact": True},
}
FINE_JPEG = {"quality": 100, "subsampling": 0}
KINDS = {"JPEG": FINE_JPEG, **LOSSLESS}
WHITE = (255, 255, 255)
ORIENTATION = 0x0112


def decode(data: bytes) -> Pixels:
    """Decode as version 1.0 does: squashed to 80x60."""
    return preprocessing.decode(data).pixels


# Pillow's estimate of the size of a progressive JPEG is too small for noise.
ImageFile.MAXBLOCK = 1 << 22


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    return formats.encoded(image, kind, **(KINDS.get(kind, {}) | options))


def solid(mode: str, color: Any, kind: str, **options: Any) -> bytes:
    return encode(Image.new(mode, (64, 48), color), kind, **options)


def palette(kind: str, color: tuple[int, int, int], **options: Any) -> bytes:
    image = Image.new("P", (64, 48), 1)
    image.putpalette([0, 0, 0, *color])
    return encode(image, kind, **options)


def png16(colour: int, *samples: int, transparent: int | None = None) -> bytes:
    """Return a PNG of 16 bits of one colour, which Pillow can't write."""
    row = b"\0" + struct.pack(f"!{len(samples)}H", *samples) * 64
    made = formats.png(64, 48, zlib.compress(row * 48), 16, colour)
    if transparent is None:
        return made
    return made[:33] + formats.chunk(b"tRNS", struct.pack("!H", transparent)) + made[33:]


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def refusal(data: bytes) -> tuple[int, str]:
    with pytest.raises(InputError) as caught:
        decode(data)
    return caught.value.code, caught.value.type


def area_weights(size: int, to: int) -> Array:
    """Of each of `to` equal stretches, the share that each of `size` pixels has in it."""
    starts = np.arange(to)[:, None] * size / to
    pixels = np.arange(size)[None]
    overlap = np.minimum(starts + size / to, pixels + 1) - np.maximum(starts, pixels)
    return np.clip(overlap, 0, None) / (size / to)


def ramps(width: int, height: int) -> tuple[Image.Image, Array]:
    """Draw a smooth image, and its exact area averages at 80x60."""
    x = np.linspace(40, 200, width)
    y = np.linspace(220, 60, height)

    def draw(x: Array, y: Array) -> Array:
        across = np.broadcast_to(x[None], (len(y), len(x)))
        down = np.broadcast_to(y[:, None], (len(y), len(x)))
        return np.stack([across, down, (across + down) / 2], axis=2)

    image = Image.fromarray(np.rint(draw(x, y)).astype(np.uint8))
    return image, draw(area_weights(width, WIDTH) @ x, area_weights(height, HEIGHT) @ y)


KEPT = (200, 100, 50)
OPAQUE = {
    **{f"RGB {kind}": (solid("RGB", KEPT, kind), KEPT) for kind in KINDS},
    **{f"L {kind}": (solid("L", 100, kind), (100,) * 3) for kind in ("JPEG", "PNG", "BMP", "TIFF")},
    **{f"1 {kind}": (solid("1", 255, kind), WHITE) for kind in ("PNG", "BMP", "TIFF")},
    **{f"P {kind}": (palette(kind, KEPT), KEPT) for kind in ("PNG", "BMP", "TIFF")},
    **{
        f"CMYK {kind}": (solid("CMYK", (0, 255, 255, 0), kind), (255, 0, 0))
        for kind in ("JPEG", "TIFF")
    },
    "YCbCr JPEG": (encode(Image.new("RGB", (64, 48), KEPT).convert("YCbCr"), "JPEG"), KEPT),
    "RGB-coded JPEG": (solid("RGB", KEPT, "JPEG", keep_rgb=True), KEPT),
    "progressive JPEG": (solid("RGB", KEPT, "JPEG", progressive=True), KEPT),
}
# Transparency shows white.
TRANSPARENT = {
    **{
        f"RGBA 20 % {kind}": (solid("RGBA", (0, 0, 0, 51), kind), (204,) * 3)
        for kind in ("PNG", "TIFF", "WEBP")
    },
    "RGBA": (solid("RGBA", (200, 0, 0, 0), "PNG"), WHITE),
    "LA 20 %": (solid("LA", (0, 51), "PNG"), (204,) * 3),
    "LA opaque": (solid("LA", (100, 255), "PNG"), (100,) * 3),
    "P index": (palette("PNG", KEPT, transparency=1), WHITE),
    "P alphas": (palette("PNG", KEPT, transparency=b"\xff\x00"), WHITE),
    "P other index": (palette("PNG", KEPT, transparency=0), KEPT),
    "L key": (solid("L", 100, "PNG", transparency=100), WHITE),
    "1 key": (solid("1", 0, "PNG", transparency=0), WHITE),
    "RGB key": (solid("RGB", KEPT, "PNG", transparency=KEPT), WHITE),
    "16-bit LA": (png16(4, 0x6464, 0), WHITE),
    "16-bit RGBA": (png16(6, 0x6464, 0, 0, 0), WHITE),
    "16-bit L key": (png16(0, 0x6464, transparent=0x6464), WHITE),
}
DEEP = {
    **{
        f"I;16 {value} {kind}": (solid("I;16", value, kind), (grey,) * 3)
        for kind in ("PNG", "TIFF")
        for value, grey in ((100, 0), (0x8000, 128), (0xFFFF, 255))
    },
    "I;16B": (solid("I;16B", 0x8000, "TIFF"), (128,) * 3),
    **{
        f"I {value}": (solid("I", value, "TIFF"), (grey,) * 3)
        for value, grey in ((-5, 0), (100, 100), (0x8000, 128), (2**31 - 1, 255))
    },
    **{
        f"F {value}": (solid("F", value, "TIFF"), (grey,) * 3)
        for value, grey in (
            (-1.0, 0),
            (0.5, 128),
            (128.0, 128),
            (32768.0, 128),
            (float("nan"), 0),
            (float("inf"), 255),
        )
    },
    "16-bit RGB": (png16(2, 0x8080, 0x8080, 0x8080), (128,) * 3),
}
COLOURS = OPAQUE | TRANSPARENT | DEEP


@pytest.mark.parametrize(("data", "colour"), COLOURS.values(), ids=COLOURS)
def test_any_mode_becomes_rgb_of_8_bits_on_white(data: bytes, colour: tuple[int, int, int]) -> None:
    assert np.abs(decode(data).astype(int) - colour).max() <= 2


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "MPO", "PNG"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (64, 48), color) for color in ((200, 30, 30), (30, 30, 200))]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode(data).astype(int) - (200, 30, 30)).max() <= 8


# By the EXIF standard: where the picture's row 0 and column 0 are stored, in terms of the upright.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}


def turned(orientation: int, size: tuple[int, int], kind: str) -> bytes:
    """Store an upright black picture of a size, its top left eighth red, its top right blue."""
    width, height = size
    upright = np.zeros((height, width, 3), np.uint8)
    upright[: height // 4, : width // 2] = (255, 0, 0)
    upright[: height // 4, width // 2 :] = (0, 0, 255)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    return encode(image, kind, exif=exif)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("JPEG", (640, 480)),
        ("JPEG", (240, 320)),
        ("PNG", (90, 160)),
        ("WEBP", (160, 90)),
        ("TIFF", (90, 160)),
    ],
    ids=lambda value: value if isinstance(value, str) else "{}x{}".format(*value),
)
def test_every_orientation_comes_out_upright(
    kind: str, size: tuple[int, int], orientation: int
) -> None:
    data = turned(orientation, size, kind)
    image = preprocessing.decode(data, within_field)
    assert (image.width, image.height) == size
    assert size[0] / size[1] == pytest.approx(image.pixels.shape[1] / image.pixels.shape[0])
    pixels = decode(data).astype(int)
    corners = pixels[[3, 3, 56, 56], [3, 76, 3, 76]]
    expected = np.array([(255, 0, 0), (0, 0, 255), (0, 0, 0), (0, 0, 0)])
    assert np.abs(corners - expected).max() <= 30


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0nonsense",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff",
    ],
    ids=["empty", "text", "offset", "cut"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_ignored(kind: str, exif: bytes) -> None:
    image = noise(80, 60)
    assert (decode(encode(image, kind, exif=exif)) == decode(encode(image, kind))).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(641, 479), (80, 60), (1, 1)], ids="{0[0]}x{0[1]}".format)
def test_images_are_scaled_by_area_averaging(size: tuple[int, int], kind: str) -> None:
    image, expected = ramps(*size)
    difference = np.abs(decode(encode(image, kind)) - expected)
    assert difference.max() <= (4 if kind == "JPEG" else 1.5)
    assert difference.mean() <= 1


def test_the_number_of_bytes_is_limited() -> None:
    data = solid("RGB", (1, 2, 3), "PNG").ljust(contract.MAX_BYTES, b"\0")
    assert (decode(data) == (1, 2, 3)).all()
    assert refusal(data + b"\0") == (413, "ImageTooLarge")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """Record the images whose pixels are loaded, and fail to load them."""
    loaded: list[Image.Image] = []

    def load(image: Image.Image) -> None:
        loaded.append(image)
        raise OSError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", load)
    return loaded


@pytest.mark.parametrize(
    "data",
    [
        formats.png(7000, 7000, b""),
        formats.png(MAX_PIXELS + 1, 1, b""),
        formats.tiff(80, 60, zlib.compress(bytes(1000)), 8, tile=(8000, 8000)),
        # Every tile can have the same few bytes.
        formats.tiff(16_000, 16, zlib.compress(bytes(1000)), 8, tile=(16, 1_800_000)),
    ],
    ids=["square", "long", "tile", "tiles"],
)
def test_too_many_pixels_are_refused_before_they_are_decoded(
    data: bytes, loads: list[Image.Image]
) -> None:
    assert (refusal(data), loads) == ((413, "ImageTooLarge"), [])


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0MM\0*"], ids=["simplejpeg", "pillow"])
def test_the_scans_of_a_jpeg_are_bounded_by_its_pixels(
    exif: bytes, loads: list[Image.Image]
) -> None:
    pixels = 2000 * 1500
    most = (MAX_COST - JPEG_COST * pixels) // (SCAN_COST * (pixels + SCAN_START))
    allowed, refused = (
        formats.with_segment(formats.jpeg_of_scans(2000, 1500, scans - 1), 0xE1, exif)
        for scans in (most, most + 1)
    )
    assert preprocessing.open_image(allowed).cost <= MAX_COST
    assert (refusal(refused), loads) == ((413, "ImageTooLarge"), [])


def test_narrow_jpegs_cost_more() -> None:
    """The decoder scales others down while it decodes them."""
    wide, narrow = (
        preprocessing.open_image(formats.resized_jpeg(solid("RGB", WHITE, "JPEG"), *size)).cost
        for size in ((1500, 2000), (100, 30_000))
    )
    assert narrow - wide == (UNSCALED_COST - JPEG_COST) * 3_000_000


def test_jpegs_that_are_decoded_whole_cost_more() -> None:
    """Below twice the size of a field, nothing is scaled down."""
    whole, scaled = (
        preprocessing.open_image(formats.resized_jpeg(solid("RGB", WHITE, "JPEG"), *size)).cost
        for size in ((2 * FIELD - 1, 1000), (2 * FIELD, 1000))
    )
    assert whole - scaled > (UNSCALED_COST - JPEG_COST - 1) * 1_000_000


@pytest.mark.parametrize("tile", [(7812, 0), (0, 7812)])
def test_a_tile_without_a_width_or_a_height_is_refused(
    tile: tuple[int, int], loads: list[Image.Image]
) -> None:
    """The decoder would take the missing side from another tag, and 2 GB of memory."""
    data = formats.tiff(64, 48, tile=tile)
    for missing in (322, 323):
        # Tag 0 is unknown.
        without = data.replace(
            struct.pack("<HHII", missing, 4, 1, 0), struct.pack("<HHII", 0, 4, 1, 0)
        )
        assert (refusal(without), loads) == ((400, "CorruptImage"), [])


def test_the_scans_of_a_jpeg_in_a_tiff_are_bounded(loads: list[Image.Image]) -> None:
    """Many strips can have the same bytes, so each counts with all scans of the file."""
    most = (MAX_COST // (2000 * 2001) - PLAIN_COST) // SCAN_COST
    for scans, expected in ((most, "CorruptImage"), (most + 1, "ImageTooLarge")):
        data = formats.tiff(2000, 2000, formats.jpeg_of_scans(80, 60, scans - 1), 7)
        assert refusal(data)[1] == expected
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("size", "expected"), [((4000, 3999), "CorruptImage"), ((4000, 4000), "ImageTooLarge")]
)
def test_the_pixels_of_other_kinds_are_bounded(
    size: Size, expected: str, loads: list[Image.Image]
) -> None:
    assert refusal(formats.png(*size, b""))[1] == expected
    assert bool(loads) == (expected == "CorruptImage")


def of_parts(image: bytes, at: int, part: bytes, count: int = 300_000) -> bytes:
    return image[:at] + part * count + image[at:]


A_PNG = solid("RGB", WHITE, "PNG")
# With EXIF, a JPEG is read by Pillow.
A_JPEG = solid("RGB", WHITE, "JPEG", exif=b"Exif\0\0MM\0*")
PROFILE = formats.chunk(b"iCCP", b"a\0\0" + formats.packed(1000))
OF_MANY_PARTS = {
    "chunks of a PNG": lambda: of_parts(A_PNG, 33, formats.chunk(b"abCd", b"")),
    "profiles of a PNG": lambda: of_parts(A_PNG, 33, PROFILE, MAX_COST // TEXT_COST + 1),
    "segments of a JPEG": lambda: of_parts(A_JPEG, 2, b"\xff\xe9\0\2"),
    "padding of a JPEG": lambda: of_parts(A_JPEG, 2, b"\xff"),
    "EXIF of a JPEG": lambda: of_parts(A_JPEG, 20, A_JPEG[20:34], MAX_JPEG_PARTS[b"Exif\0\0"]),
    "profiles of a JPEG": lambda: of_parts(A_JPEG, 2, b"\xff\xe2\0\2"),
    "runs of a BMP": lambda: formats.bmp_of_runs(2000, 300),
    "tags of a TIFF": lambda: (
        b"II*\0\x08\0\0\0" + struct.pack("<H", MAX_TIFF_TAGS + 1) + bytes(12 * MAX_TIFF_TAGS + 12)
    ),
    "strips of a TIFF": lambda: tiff_of_values("<", MAX_TIFF_VALUES + 1),
    "strips of a TIFF, high byte first": lambda: tiff_of_values(">", MAX_TIFF_VALUES + 1),
}


def tiff_of_values(order: str, count: int) -> bytes:
    """Return a TIFF with the places of its strips and no more."""
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(order + "HIHHHIII", 42, 8, 1, 273, 4, count, 8, 0)


@pytest.mark.parametrize("name", OF_MANY_PARTS)
def test_parts_that_are_read_one_by_one_are_bounded(name: str) -> None:
    with pytest.raises(InputError, match="too many parts"):
        decode(OF_MANY_PARTS[name]())


@pytest.mark.parametrize(
    ("kind", "options", "each"),
    [
        ("BMP", {}, RAW_COST),
        ("TIFF", {}, RAW_COST),
        ("TIFF", {"compression": "tiff_lzw"}, PLAIN_COST),
        ("WEBP", {}, PLAIN_COST),
        ("PNG", {}, PLAIN_COST),
    ],
)
def test_what_is_not_compressed_costs_less(kind: str, options: Any, each: int) -> None:
    data = encode(Image.new("RGB", (64, 48)), kind, **options)
    assert preprocessing.open_image(data).cost == each * (64 * 48 + 48)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_is_not_read_by_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads all values of a tag, and all tags."""
    monkeypatch.setattr(Image.Exif, "load", lambda *_: pytest.fail("read"))
    exif = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", ORIENTATION, 3, 1, 6, 0) + bytes(4)
    data = encode(Image.new("RGB", (64, 48), "red"), kind, exif=b"Exif\0\0" + exif)
    # Without the resolution of JFIF, Pillow would look for one in EXIF.
    data = data.replace(data[2:20], b"", 1) if kind == "JPEG" else data
    found = preprocessing.decode(data, within_field)
    assert (found.width, found.height) == (48, 64)


def test_the_profile_of_exif_in_a_text_of_a_png_is_ignored() -> None:
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n9\n" + b"00" * 100_000)
    data = of_parts(solid("RGB", WHITE, "PNG"), 33, formats.chunk(b"zTXt", text), 1)
    assert (decode(data) == 255).all()


def test_running_out_of_memory_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert refusal(solid("RGB", (1, 2, 3), "PNG")) == (413, "ImageTooLarge")


SMALL = encode(noise(10, 10), "PNG")
CUT = SMALL[: len(SMALL) // 2]


def outcomes(answers: list[DecodedImage | InputError]) -> list[str]:
    return [answer.type if isinstance(answer, InputError) else "ok" for answer in answers]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([SMALL, SMALL, SMALL], ["ok", "ok", "ImageTooLarge"]),
        # An image beyond the budget costs none of it; one that fails in decoding costs its pixels.
        ([SMALL, encode(noise(10, 11), "PNG"), SMALL], ["ok", "ImageTooLarge", "ok"]),
        ([CUT, SMALL, SMALL], ["CorruptImage", "ok", "ImageTooLarge"]),
        ([b"", SMALL, b"GIF89a", SMALL], ["EmptyImage", "ok", "UnsupportedImage", "ok"]),
        ([InputError(400, "Given", ""), SMALL], ["Given", "ok"]),
    ],
)
def test_the_images_of_a_request_share_a_budget(
    data: list[bytes | InputError], expected: list[str]
) -> None:
    opened = open_all(data, max_cost=2 * 10 * 11 * PLAIN_COST)
    assert outcomes([decode_opened(each, squashed) for each in opened]) == expected


def test_the_images_of_a_request_share_what_may_be_read() -> None:
    """A file of many parts costs no pixels, so a request could have a hundred of them."""
    many = of_parts(A_PNG, 33, formats.chunk(b"abCd", b""), 5_000)
    assert decode(many).shape == (HEIGHT, WIDTH, 3)
    answers = [decode_opened(each, squashed) for each in open_all([many] * 128)]
    assert set(outcomes(answers)) == {"ImageTooLarge"}
    # Ordinary images do not reach the bound.
    assert set(map(type, open_all([A_PNG, A_JPEG] * 64))) == {OpenedImage}


def test_the_texts_of_a_png_are_bounded() -> None:
    text = formats.chunk(b"zTXt", b"a\0\0" + formats.packed(1_000_000))
    assert decode(of_parts(A_PNG, 33, text, 1)).shape == (HEIGHT, WIDTH, 3)
    assert refusal(of_parts(A_PNG, 33, text, 2)) == (400, "CorruptImage")


def test_the_memory_of_a_refused_image_is_freed_at_once() -> None:
    """Not only at the next garbage collection, which does not know the size of the pixels."""
    image = encode(noise(100, 100), "PNG")
    gc.collect()
    gc.disable()
    try:
        answers = [decode_opened(each, squashed) for each in open_all([image[: len(image) // 2]])]
        left = [each for each in gc.get_objects() if issubclass(type(each), Image.Image)]
    finally:
        gc.enable()
    assert (outcomes(answers), [each for each in left if each.size == (100, 100)]) == (
        ["CorruptImage"],
        [],
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1280, 960), (640, 480)),
        ((960, 1280), (480, 640)),
        ((720, 726), (635, 640)),
        ((640, 480), (640, 480)),
        ((100, 60), (100, 60)),
        ((10_000, 10), (640, 1)),
    ],
)
def test_a_field_keeps_its_proportions(size: Size, expected: Size) -> None:
    picture = preprocessing.decode(encode(Image.new("RGB", size), "PNG"), within_field)
    assert picture.pixels.shape[1::-1] == expected
    assert (picture.width, picture.height) == size


def test_a_window_is_copied_and_averaged() -> None:
    pixels = np.asarray(noise(30, 20))
    assert (cut(pixels, (5, 4, 25, 14), (20, 10)) == pixels[4:14, 5:25]).all()
    striped = np.zeros((40, 40, 3), np.uint8)
    striped[::2] = 200
    assert np.abs(cut(striped, (4, 4, 36, 36), (8, 8)).astype(int) - 100).max() <= 13


@pytest.mark.parametrize(
    "window",
    [(-9, 5, 11, 15), (25, -5, 45, 9), (-5, -5, 50, 40), (40, 5, 60, 15), (-9, -9, -1, -1)],
)
def test_beyond_the_picture_a_window_repeats_its_edge(window: Box) -> None:
    """As in a copy with a wider edge."""
    pixels = np.asarray(noise(30, 20))
    bordered = np.pad(pixels, ((50, 50), (50, 50), (0, 0)), mode="edge")
    left, top, right, bottom = (side + 50 for side in window)
    expected = cut(bordered, (left, top, right, bottom), (20, 10))
    assert (cut(pixels, window, (20, 10)) == expected).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_png_with_damaged_pixels_is_corrupt(seed: int) -> None:
    """Pillow also decodes it to read the EXIF; damage found then must not be ignored."""
    data = bytearray(encode(noise(100, 100), "PNG"))
    pixels = range(data.index(b"IDAT") + 100, data.rindex(b"IEND") - 8)
    random = np.random.default_rng(seed)
    for place in random.choice(pixels, 50, replace=False):
        data[place] = random.integers(256)
    assert refusal(bytes(data)) == (400, "CorruptImage")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"white blood cell", id="text"),
        pytest.param(bytes(range(256)), id="bytes"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', id="SVG"),
        pytest.param(b"RIFF\x04\0\0\0WAVE", id="WAV"),
        pytest.param(b" " + encode(Image.new("RGB", (8, 8)), "PNG"), id="PNG after a space"),
        *(
            pytest.param(encode(Image.new("RGB", (8, 8)), kind), id=kind)
            for kind in ("GIF", "PPM", "ICO", "PDF", "JPEG2000")
        ),
    ],
)
def test_what_is_no_known_kind_is_unsupported(data: bytes) -> None:
    assert refusal(data) == (415, "UnsupportedImage")


@given(
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    mode=st.sampled_from(["RGB", "L"]),
    options=st.fixed_dictionaries(
        {
            "quality": st.integers(30, 95),
            "subsampling": st.sampled_from([0, 1, 2]),
            "progressive": st.booleans(),
        }
    ),
    fit=st.sampled_from([squashed, within_field]),
)
def test_an_ordinary_jpeg_is_decoded_as_pillow_does(
    size: Size, mode: str, options: dict[str, Any], fit: Callable[[Size], Size]
) -> None:
    data = encode(noise(*size).convert(mode), "JPEG", **options)
    fast = preprocessing._open_common_jpeg(data, Reads())
    assert fast
    fast, slow = fast.decode(fit), preprocessing._open(data, "JPEG", Reads()).decode(fit)
    assert (fast.width, fast.height) == (slow.width, slow.height)
    np.testing.assert_array_equal(fast.pixels, slow.pixels)


@given(place=st.floats(0, 0.999), value=st.integers(0, 255))
def test_a_damaged_jpeg_is_decoded_as_pillow_does_or_left_to_it(place: float, value: int) -> None:
    damaged = bytearray(encode(noise(200, 150), "JPEG", quality=90))
    damaged[int(place * len(damaged))] = value
    fast = preprocessing._common_jpeg(bytes(damaged), (200, 150), squashed)
    if fast and preprocessing._open_common_jpeg(bytes(damaged), Reads()):
        slow = preprocessing._open(bytes(damaged), "JPEG", Reads()).decode(squashed)
        np.testing.assert_array_equal(fast.pixels, slow.pixels)


@pytest.mark.parametrize(
    "data",
    [
        solid("RGB", WHITE, "PNG"),
        solid("CMYK", (0, 0, 0, 0), "JPEG"),
        solid("RGB", WHITE, "JPEG", exif=b"Exif\0\0MM\0*"),
        solid("RGB", WHITE, "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
        encode(noise(64, 48), "JPEG")[:-20],
        b"\xff\xd8\xff",
    ],
)
def test_any_other_image_is_left_to_pillow(data: bytes) -> None:
    opened = preprocessing._open_common_jpeg(data, Reads())
    assert opened is None or preprocessing._common_jpeg(data, (64, 48), squashed) is None

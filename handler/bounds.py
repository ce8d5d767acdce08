"""What decoding untrusted images may cost, and the errors of those that are refused.

Costs are estimated from the headers of an image, in units of about a nanosecond on a core of 2023.
`make fuzz` looks for images that cost more than their estimate.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from PIL import Image, PngImagePlugin
from PIL.BmpImagePlugin import BmpImageFile

from handler.contract import KINDS

MAX_PIXELS = 30_000_000
# For all images of a request. A progressive JPEG of 30 megapixels and 11 scans costs as much.
MAX_COST = 400_000_000
# The cost of a pixel of a JPEG, and of each scan, which passes over all pixels even if it has only
# a few bytes. The decoder does not scale down a JPEG of which a side is below NARROW, or the longer
# one below twice that of a decoded field; its pixels cost UNSCALED_COST.
JPEG_COST, SCAN_COST, UNSCALED_COST, NARROW = 2, 1, 8, 160
# The longest side of a field that cells are cut from.
FIELD = 640
# The start of a scan costs as much as this many pixels.
SCAN_START = 10_000
# The cost of a pixel of other kinds: without compression, with 8 bits of grey, colour or a palette,
# with anything more, and in the runs of a BMP.
RAW_COST, PLAIN_COST, DEEP_COST, RUNS_COST = 10, 25, 40, 150
# The cost of a compressed text or profile of a PNG, of which Pillow decompresses 1 MB.
TEXT_COST = 1_000_000
# libtiff refuses more scans in a strip of a TIFF.
MAX_TIFF_SCANS = 100
# Pillow reads headers, and some kinds of pixels, in Python, a few bytes at a time. The images of a
# request can read this many bytes in all, and each read counts as READ_COST more.
MAX_READ, READ_COST = 64_000_000, 1_000
# A TIFF can have this many tags, and a tag this many values, such as the places of the strips.
MAX_TIFF_TAGS, MAX_TIFF_VALUES = 1_000, 20_000
# A JPEG should have one EXIF. Its colour profile can have 255 parts, which begin with ffe2.
MAX_JPEG_PARTS = {b"Exif\0\0": 8, b"\xff\xe2": 1_000}

# The bytes of all compressed texts of a PNG that Pillow keeps.
PngImagePlugin.MAX_TEXT_MEMORY = 1 << 20

_START_OF_SCAN = b"\xff\xda"
_COMPRESSION_TAG, _JPEG_COMPRESSIONS = 259, (6, 7)
_TILE_WIDTH_TAG, _TILE_HEIGHT_TAG = 322, 323
# Types of TIFF whose values are single bytes.
_BYTES = (1, 2, 6, 7)
_TEXTS = (b"iCCP", b"iTXt", b"zTXt")
_RUNS = (BmpImageFile.COMPRESSIONS["RLE8"], BmpImageFile.COMPRESSIONS["RLE4"])


@dataclass
class InputError(Exception):
    """An invalid input: HTTP status, machine-readable type, message."""

    code: int
    type: str
    message: str

    def __str__(self) -> str:
        return self.message


def empty() -> InputError:
    return InputError(400, "EmptyImage", "The image is empty: send the bytes of one image.")


def corrupt() -> InputError:
    return InputError(400, "CorruptImage", "The image is damaged or incomplete.")


def unsupported() -> InputError:
    kinds = ", ".join(KINDS)
    return InputError(
        415, "UnsupportedImage", f"The file type is not supported (supported: {kinds})."
    )


def too_large(what: str) -> InputError:
    return InputError(413, "ImageTooLarge", f"The image has too many {what}.")


@dataclass
class Reads:
    """What the images of a request may still read."""

    left: int = MAX_READ


class BoundedFile(io.BytesIO):
    """The bytes of an image, which can be read as long as its request may read."""

    def __init__(self, data: bytes, reads: Reads) -> None:
        super().__init__(data)
        self._reads = reads

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._reads.left -= len(data) + READ_COST
        if self._reads.left < 0:
            raise too_large("parts")
        return data


def cost_of_parts(data: bytes, kind: str) -> int:
    """Return the cost of reading the headers of an image; raise InputError if it is too high."""
    if kind == "TIFF" and _has_many_values(data):
        raise too_large("parts")
    if kind == "JPEG" and any(data.count(mark) > most for mark, most in MAX_JPEG_PARTS.items()):
        raise too_large("parts")
    return TEXT_COST * sum(map(data.count, _TEXTS)) if kind == "PNG" else 0


def decoded_pixels(image: Image.Image) -> int:
    """Return the number of pixels to decode: of a TIFF, those of all its tiles."""
    tags: Mapping[int, int] = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH_TAG), tags.get(_TILE_HEIGHT_TAG)
    if width is None and height is None:
        return image.width * image.height
    if not width or not height:
        # libtiff takes the other side from other tags.
        raise corrupt()
    tiles = -(-image.width // width) * -(-image.height // height)
    return tiles * width * height


def tiff_tags(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the tags of a TIFF, or of EXIF: tag, type, number of values, first value of 16 bits."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    number = partial(int.from_bytes, byteorder=order)
    start = number(data[4:8])
    end = start + 2 + 12 * number(data[start : start + 2])
    for at in range(start + 2, min(end, len(data)), 12):
        entry = data[at : at + 10]
        yield number(entry[:2]), number(entry[2:4]), number(entry[4:8]), number(entry[8:])


def _has_many_values(data: bytes) -> bool:
    """Return whether a TIFF has too many tags, or a tag too many values that are no bytes."""
    for index, (_, kind, count, _) in enumerate(tiff_tags(data)):
        if index >= MAX_TIFF_TAGS or (count > MAX_TIFF_VALUES and kind not in _BYTES):
            return True
    return False


def cost(image: Image.Image, pixels: int, data: bytes) -> int:
    """Return the cost of decoding an opened image."""
    if image.format == "JPEG":
        return jpeg_cost(image.size, data)
    if image.format == "BMP" and image.info.get("compression") in _RUNS:
        return RUNS_COST * pixels
    each = PLAIN_COST if image.mode in ("1", "L", "P", "RGB") else DEEP_COST
    # Pillow's WebP is decoded elsewhere, and looks raw as well.
    tiles = getattr(image, "tile", [])
    if image.format in ("BMP", "TIFF") and all(tile[0] == "raw" for tile in tiles):
        each = RAW_COST
    if getattr(image, "tag_v2", {}).get(_COMPRESSION_TAG) in _JPEG_COMPRESSIONS:
        # Strips can share their bytes, so that all have all scans.
        each += SCAN_COST * min(data.count(_START_OF_SCAN), MAX_TIFF_SCANS)
    # A row has a cost of its own.
    return each * (pixels + image.height)


def jpeg_cost(size: tuple[int, int], data: bytes) -> int:
    """Return the cost of decoding a JPEG, which does not depend on its size in bytes."""
    pixels, scans = size[0] * size[1], data.count(_START_OF_SCAN)
    is_scaled = min(size) >= NARROW and max(size) >= 2 * FIELD
    each = JPEG_COST if is_scaled else UNSCALED_COST
    return each * pixels + SCAN_COST * scans * (pixels + SCAN_START)

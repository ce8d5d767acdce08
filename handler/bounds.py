"""What decoding untrusted images may cost, and the errors of those that are refused.

Costs are estimated from the headers of an image, in units of about a nanosecond on a core of 2023.
`make fuzz` looks for images that cost more than their estimate.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from PIL import Image, PngImagePlugin
from PIL.BmpImagePlugin import BmpImageFile

from handler.contract import KINDS

MAX_PIXELS = 30_000_000
# For all images of a request. A progressive JPEG of 30 megapixels and eleven scans costs as much.
MAX_COST = 400_000_000
# Of one pixel. A scan of a JPEG passes over all pixels, even if it has only a few bytes. A JPEG of
# which a side is below NARROW is not scaled down by its decoder.
JPEG_COST, SCAN_COST, NARROW_COST, NARROW = 2, 1, 8, 160
# Of other kinds with 8 bits of grey, colour or a palette; of all the others; of runs in a BMP.
PLAIN_COST, DEEP_COST, RUNS_COST = 25, 40, 150
# Of starting a scan, in pixels.
SCAN_START = 10_000
# libtiff refuses more scans, in each strip of a TIFF.
MAX_TIFF_SCANS = 100
# Pillow reads headers, and some kinds of pixels, in Python, a few bytes at a time. This bounds, for
# all images of a request, the bytes and READ_COST for each read.
MAX_READ, READ_COST = 64_000_000, 1_000
# Tags of a TIFF or of EXIF, and values of one tag, such as the places of the strips.
MAX_TIFF_TAGS, MAX_TIFF_VALUES = 1_000, 20_000
# Of a mark that begins a part which is decompressed or copied.
MAX_MARKS = {
    "PNG": {b"iCCP": 2},
    # A JPEG has one EXIF; its colour profile may have 255 parts, marked by ffe2.
    "JPEG": {b"Exif\0\0": 8, b"\xff\xe2": 1_000},
}

# Bytes of all compressed texts of a PNG.
PngImagePlugin.MAX_TEXT_MEMORY = 1 << 20

_START_OF_SCAN = b"\xff\xda"
_COMPRESSION_TAG, _JPEG_COMPRESSIONS = 259, (6, 7)
_TILE_WIDTH_TAG, _TILE_HEIGHT_TAG = 322, 323
# Types of TIFF whose values are single bytes.
_BYTES = (1, 2, 6, 7)
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


def check_parts(data: bytes, kind: str) -> None:
    """Raise InputError if the headers of an image have too many parts."""
    marks = MAX_MARKS.get(kind, {}).items()
    if any(data.count(mark) > most for mark, most in marks):
        raise too_large("parts")
    if kind == "TIFF" and has_many_values(data):
        raise too_large("parts")


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


def has_many_values(data: bytes) -> bool:
    """Return whether a TIFF, or EXIF, has too many tags, or a tag too many values."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    number = partial(int.from_bytes, byteorder=order)
    start = number(data[4:8])
    tags = number(data[start : start + 2])
    end = min(start + 2 + 12 * tags, len(data))
    entries = (data[at : at + 8] for at in range(start + 2, end, 12))
    return tags > MAX_TIFF_TAGS or any(
        number(each[4:]) > MAX_TIFF_VALUES and number(each[2:4]) not in _BYTES for each in entries
    )


def cost(image: Image.Image, pixels: int, data: bytes) -> int:
    """Return the cost of decoding an opened image."""
    if image.format == "JPEG":
        return jpeg_cost(image.size, data)
    if image.format == "BMP" and image.info.get("compression") in _RUNS:
        return RUNS_COST * pixels
    each = PLAIN_COST if image.mode in ("1", "L", "P", "RGB") else DEEP_COST
    if getattr(image, "tag_v2", {}).get(_COMPRESSION_TAG) in _JPEG_COMPRESSIONS:
        # Strips can share their bytes, so that all have all scans.
        each += SCAN_COST * min(data.count(_START_OF_SCAN), MAX_TIFF_SCANS)
    return each * pixels


def jpeg_cost(size: tuple[int, int], data: bytes) -> int:
    """Return the cost of decoding a JPEG, which does not depend on its size in bytes."""
    pixels, scans = size[0] * size[1], data.count(_START_OF_SCAN)
    each = NARROW_COST if min(size) < NARROW else JPEG_COST
    return each * pixels + SCAN_COST * scans * (pixels + SCAN_START)

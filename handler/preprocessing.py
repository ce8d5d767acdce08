"""Decode image bytes to RGB pixels: the one preprocessing of training, evaluation and serving.

The bytes are untrusted: their number is checked before the image is opened, and the pixels and the
cost of decoding, as its headers tell them, before it is decoded. Any kind, mode or orientation
becomes upright RGB of the size that a version needs: 80x60 whatever the proportions, or within
320x320 with the proportions kept.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile

from handler.contract import KINDS, MAX_BYTES, kind_of

WIDTH, HEIGHT = 80, 60
# Longest side of a field that cells are cut from.
FIELD = 320
MAX_PIXELS = 30_000_000
# What the decoding of one request may cost, in units of about a nanosecond on a core of 2023.
# A progressive JPEG of 30 megapixels and eleven scans costs as much.
MAX_COST = 400_000_000
# Of one pixel. A scan of a JPEG passes over all pixels, even if it has only a few bytes.
JPEG_COST, SCAN_COST = 2, 1
# Of other kinds with 8 bits of grey, colour or a palette; of all the others; of runs in a BMP.
PLAIN_COST, DEEP_COST, RUNS_COST = 25, 40, 150
# Of starting a scan, in pixels.
SCAN_START = 10_000
# libtiff refuses more scans, in each strip of a TIFF.
MAX_TIFF_SCANS = 100
# Pillow reads headers, and some kinds of pixels, in Python, a few bytes at a time. This bounds the
# bytes and READ_COST for each read.
MAX_READ, READ_COST = 64_000_000, 1_000
# Values of one tag of a TIFF, such as the places of its strips.
MAX_TIFF_VALUES = 20_000
# Pillow decompresses each profile of a PNG, and joins the EXIF of a JPEG. There should be one.
MAX_PROFILES = 8

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Size = tuple[int, int]
Fit = Callable[[Size], Size]
Box = tuple[float, float, float, float]

_START_OF_SCAN = b"\xff\xda"
_ORIENTATION_TAG = 0x0112
_COMPRESSION_TAG, _JPEG_COMPRESSIONS = 259, (6, 7)
_TILE_WIDTH_TAG, _TILE_HEIGHT_TAG = 322, 323
# Types of TIFF whose values are single bytes.
_BYTES = (1, 2, 6, 7)
_RUNS = (BmpImageFile.COMPRESSIONS["RLE8"], BmpImageFile.COMPRESSIONS["RLE4"])
# The 8-bit values of grey up to 65535: scaled, or cut off.
_SCALED = [round(value / 257) for value in range(1 << 16)]
_CUT_OFF = [min(value, 255) for value in range(1 << 16)]
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass
class DecodedImage:
    """A decoded upload: RGB pixels (H, W, 3), and the upright upload's width and height."""

    pixels: Pixels
    width: int
    height: int


@dataclass
class OpenedImage:
    """An upload whose headers are valid: the cost of decoding it, and the way to do it."""

    cost: int
    decode: Callable[[Fit], DecodedImage]


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


def squashed(_size: Size) -> Size:
    """Return 80x60 for any size."""
    return WIDTH, HEIGHT


def within_field(size: Size) -> Size:
    """Return the size scaled down to fit within 320x320, with its proportions."""
    shrink = min(1.0, FIELD / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def decode(data: bytes, fit: Fit = squashed) -> DecodedImage:
    """Decode one image to the size that `fit` returns for its own; raise InputError on failure.

    Images are scaled by area averaging, JPEGs first by their decoder (1/2, 1/4 or 1/8), which
    amounts to the same. Transparent parts become white, grey of more than 8 bits is scaled to 8,
    and only the first frame or page is read.
    """
    return open_image(data).decode(fit)


def open_image(data: bytes, max_cost: int = MAX_COST) -> OpenedImage:
    """Read the headers of an image; raise InputError if it is invalid or costs more."""
    opened = _open_common_jpeg(data) or _open(data)
    if opened.cost > max_cost:
        raise too_large("pixels or scans")
    return opened


def open_all(
    images: Iterable[bytes | InputError], max_cost: int = MAX_COST
) -> list[OpenedImage | InputError]:
    """Open the images of one request, which share `max_cost`; errors stay in place."""
    opened: list[OpenedImage | InputError] = []
    for data in images:
        try:
            if isinstance(data, InputError):
                raise data
            image = open_image(data, max_cost)
            max_cost -= image.cost
            opened.append(image)
        except InputError as error:
            opened.append(_freed(error))
    return opened


def decode_opened(image: OpenedImage | InputError, fit: Fit) -> DecodedImage | InputError:
    """Decode an opened image; an error, also of the decoder, is returned."""
    try:
        return image if isinstance(image, InputError) else image.decode(fit)
    except InputError as error:
        return _freed(error)


def _freed(error: InputError) -> InputError:
    """Drop the traceback, which keeps the pixels of the failed image in memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def cut(pixels: Pixels, window: Box, size: Size) -> Pixels:
    """Cut out a window (left, top, right, bottom) and scale it to a size: (height, width, 3).

    Parts outside the image are black.
    """
    left, top = int(np.floor(window[0])), int(np.floor(window[1]))
    right, bottom = int(np.ceil(window[2])) + 1, int(np.ceil(window[3])) + 1
    part = Image.fromarray(pixels).crop((left, top, right, bottom))
    box = (window[0] - left, window[1] - top, window[2] - left, window[3] - top)
    return np.asarray(part.resize(size, Image.Resampling.BILINEAR, box))


def normalized(pixels: Pixels) -> Floats:
    """Scale pixels (N, H, W, 3) to a network's input: (N, 3, H, W) float32 in [0, 1]."""
    planes: Floats = np.divide(pixels.transpose(0, 3, 1, 2), 255, dtype=np.float32)
    return planes


def _open_common_jpeg(data: bytes) -> OpenedImage | None:
    """Open an ordinary JPEG, which is decoded to the same pixels as by Pillow, in half the time.

    Returns None for Pillow to open or refuse: another kind of image, too many bytes or pixels,
    other colour spaces, an orientation, or damaged headers.
    """
    if kind_of(data) != "JPEG" or len(data) > MAX_BYTES:
        return None
    # The orientation is in EXIF or in XMP.
    if data.find(b"Exif\0\0") >= 0 or data.find(b"tiff:Orientation") >= 0:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray") or not 0 < width * height <= MAX_PIXELS:
        return None

    def decode(fit: Fit) -> DecodedImage:
        return _common_jpeg(data, (width, height), fit) or _shrink(_open_by_pillow(data)[0], fit)

    return OpenedImage(_jpeg_cost(width * height, data), decode)


def _common_jpeg(data: bytes, size: Size, fit: Fit) -> DecodedImage | None:
    """Decode a JPEG of a size; return None if it is damaged."""
    wanted = fit(size)
    scale = _decoder_scale(size, wanted)
    scaled = -(-size[0] // scale), -(-size[1] // scale)
    try:
        # The decoder takes the smallest scale, in eighths, that reaches these sizes: `scale`.
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=scaled[0], min_height=scaled[1])
    except (ValueError, MemoryError):
        return None
    if pixels.shape != (*scaled[::-1], 3):
        return None
    if scaled != wanted:
        pixels = np.asarray(Image.fromarray(pixels).resize(wanted, Image.Resampling.BOX))
    return DecodedImage(pixels, *size)


def _decoder_scale(size: Size, wanted: Size) -> int:
    """Return the divisor that Pillow passes to the JPEG decoder for a smaller size."""
    most = min(size[0] // wanted[0], size[1] // wanted[1])
    return next((scale for scale in (8, 4, 2) if scale <= most), 1)


def _open(data: bytes) -> OpenedImage:
    """Open any image; raise InputError."""
    if not data:
        raise empty()
    if len(data) > MAX_BYTES:
        raise too_large("bytes")
    if not kind_of(data):
        raise unsupported()
    image, pixels = _open_by_pillow(data)
    if pixels > MAX_PIXELS:
        raise too_large("pixels")
    return OpenedImage(_cost(image, pixels, data), lambda fit: _shrink(image, fit))


class _File(io.BytesIO):
    """The bytes of an image, of which a bounded number can be read."""

    _left = MAX_READ

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._left -= len(data) + READ_COST
        if self._left < 0:
            raise too_large("parts")
        return data


def _open_by_pillow(data: bytes) -> tuple[Image.Image, int]:
    """Read the header of an image; return it and the number of pixels to decode."""
    kind = kind_of(data) or ""
    if kind == "TIFF" and _tiff_values(data) > MAX_TIFF_VALUES:
        raise too_large("parts")
    if data.count({"PNG": b"iCCP", "JPEG": b"Exif\0\0"}.get(kind, data)) > MAX_PROFILES:
        raise too_large("parts")
    try:
        with warnings.catch_warnings():
            # Damaged metadata does not matter, and Pillow's pixel limit is above ours.
            warnings.simplefilter("ignore")
            image = Image.open(_File(data), formats=[kind])
        return image, _pixels(image)
    except InputError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise too_large("pixels") from error
    # Pillow's plugins raise almost any exception on hostile bytes.
    except Exception as error:
        raise corrupt() from error


def _pixels(image: Image.Image) -> int:
    """Return the number of pixels to decode: of a TIFF, those of all its tiles."""
    tags: Mapping[int, int] = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH_TAG), tags.get(_TILE_HEIGHT_TAG)
    if not width or not height:
        return image.width * image.height
    tiles = -(-image.width // width) * -(-image.height // height)
    return tiles * width * height


def _tiff_values(data: bytes) -> int:
    """Return the number of values of the longest tag of a TIFF, or EXIF, that is no string."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    number = partial(int.from_bytes, byteorder=order)
    start = number(data[4:8])
    end = start + 2 + 12 * number(data[start : start + 2])
    entries = (data[at : at + 8] for at in range(start + 2, min(end, len(data)), 12))
    return max((number(each[4:]) for each in entries if number(each[2:4]) not in _BYTES), default=0)


def _cost(image: Image.Image, pixels: int, data: bytes) -> int:
    if image.format == "JPEG":
        return _jpeg_cost(pixels, data)
    if image.format == "BMP" and image.info.get("compression") in _RUNS:
        return RUNS_COST * pixels
    each = PLAIN_COST if image.mode in ("1", "L", "P", "RGB") else DEEP_COST
    if getattr(image, "tag_v2", {}).get(_COMPRESSION_TAG) in _JPEG_COMPRESSIONS:
        # Strips can share their bytes, so that all have all scans.
        each += SCAN_COST * min(data.count(_START_OF_SCAN), MAX_TIFF_SCANS)
    return each * pixels


def _jpeg_cost(pixels: int, data: bytes) -> int:
    scans = data.count(_START_OF_SCAN)
    return JPEG_COST * pixels + SCAN_COST * scans * (pixels + SCAN_START)


def _shrink(image: Image.Image, fit: Fit) -> DecodedImage:
    """Decode an opened image, upright, to the size that `fit` returns."""
    try:
        if image.format == "PNG":
            # Otherwise getexif loads it and ignores damage.
            image.load()
        orientation = _orientation(image)
        if image.format == "TIFF":
            # Pillow rotates a TIFF when it loads it, and swaps its size.
            image.load()
            orientation = 1
        across = orientation >= 5
        upright = (image.height, image.width) if across else image.size
        size = fit(upright)[::-1] if across else fit(upright)
        image.draft("RGB", size)
        image = _rgb(image)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BOX)
        if orientation > 1:
            image = image.transpose(_TRANSPOSE[orientation])
        return DecodedImage(np.asarray(image), *upright)
    except InputError:
        raise
    except MemoryError as error:
        raise too_large("pixels") from error
    except Exception as error:
        raise corrupt() from error


def _orientation(image: Image.Image) -> int:
    orientation = 1
    exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    if _tiff_values(exif) > MAX_TIFF_VALUES:
        return orientation
    # Damaged EXIF does not make an image invalid.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    return orientation if orientation in _TRANSPOSE else 1


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith(("I", "F")):
        image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale grey to 8 bits: floats up to 1 by 255, values above 255 as 16 bits by 1/257."""
    if image.mode == "F":
        grey = np.nan_to_num(np.asarray(image))
        top = grey.max(initial=0)
        if top <= 1 or top > 255:
            grey *= 255 if top <= 1 else 1 / 257
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    whole = image.convert("I")
    top = max(int(value) for value in np.ravel(whole.getextrema()))
    is_wide = image.mode.startswith("I;16") or top > 255
    # Values beyond the table count as its first or last.
    scaled = whole.point(_SCALED if is_wide else _CUT_OFF, "L")
    key = image.info.get("transparency")
    if isinstance(key, int):
        scaled.putalpha(Image.fromarray((np.asarray(image) != key).astype(np.uint8) * 255))
    return scaled

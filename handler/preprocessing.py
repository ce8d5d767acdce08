"""Decode image bytes to RGB pixels: the one preprocessing of training, evaluation and serving.

The bytes are untrusted: their number is checked before the image is opened, and its pixels and the
cost of decoding, estimated from its headers, before it is decoded. Any kind, mode or orientation
becomes upright RGB of the size that a version needs: 80x60 whatever the proportions, or within
640x640 with the proportions kept.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, JpegImagePlugin

from handler.bounds import (
    FIELD,
    MAX_COST,
    MAX_PIXELS,
    MAX_TIFF_TAGS,
    BoundedFile,
    InputError,
    Reads,
    corrupt,
    cost,
    cost_of_parts,
    decoded_pixels,
    empty,
    jpeg_cost,
    tiff_tags,
    too_large,
    unsupported,
)
from handler.contract import MAX_BYTES, kind_of

WIDTH, HEIGHT = 80, 60
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Size = tuple[int, int]
Fit = Callable[[Size], Size]
Box = tuple[float, float, float, float]

# It reads all values of some tags of EXIF, to find a resolution that nothing here needs.
JpegImagePlugin.JpegImageFile._read_dpi_from_exif = (  # type: ignore[method-assign]
    lambda image: None  # type: ignore[assignment]
)

_ORIENTATION_TAG = 0x0112
_EXIF = rb"^(?:Exif\0\0){1,2}"
_XMP_ORIENTATION = rb'tiff:Orientation(?:="|>)([0-9])'
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


def squashed(_size: Size) -> Size:
    """Return 80x60 for any size."""
    return WIDTH, HEIGHT


def within_field(size: Size) -> Size:
    """Return the size scaled down to fit within 640x640, with its proportions."""
    shrink = min(1.0, FIELD / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def decode(data: bytes, fit: Fit = squashed) -> DecodedImage:
    """Decode one image to the size that `fit` returns for its own; raise InputError on failure.

    Images are scaled by area averaging, JPEGs first by their decoder (1/2, 1/4 or 1/8), which
    amounts to the same. Transparent parts become white, grey of more than 8 bits is scaled to 8,
    and only the first frame or page is read.
    """
    return open_image(data).decode(fit)


def open_image(data: bytes, max_cost: int = MAX_COST, reads: Reads | None = None) -> OpenedImage:
    """Read the headers of an image; raise InputError if it is invalid or costs more."""
    reads = reads or Reads()
    if not data:
        raise empty()
    if len(data) > MAX_BYTES:
        raise too_large("bytes")
    kind = kind_of(data)
    if not kind:
        raise unsupported()
    max_cost -= (parts := cost_of_parts(data, kind))
    if max_cost < 0:
        raise too_large("parts")
    common = _open_common_jpeg(data, reads) if kind == "JPEG" else None
    opened = common or _open(data, kind, reads)
    if opened.cost > max_cost:
        raise too_large("pixels or scans")
    opened.cost += parts
    return opened


def open_all(
    images: Iterable[bytes | InputError], max_cost: int = MAX_COST
) -> list[OpenedImage | InputError]:
    """Open the images of one request, which share `max_cost` and reads; errors stay in place."""
    opened: list[OpenedImage | InputError] = []
    reads = Reads()
    for data in images:
        try:
            if isinstance(data, InputError):
                raise data
            image = open_image(data, max_cost, reads)
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

    Outside the image, its edge is repeated: a cell that fills its image keeps its class, which it
    would often lose beside black.
    """
    left, top = int(np.floor(window[0])), int(np.floor(window[1]))
    right, bottom = int(np.ceil(window[2])) + 1, int(np.ceil(window[3])) + 1
    height, width = pixels.shape[:2]
    # Pillow copies and converts all that it gets, so it gets no more than the part.
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        part = pixels[top:bottom, left:right]
    else:
        rows, columns = (
            np.arange(*ends).clip(0, side - 1)
            for ends, side in (((top, bottom), height), ((left, right), width))
        )
        part = pixels.take(rows, 0).take(columns, 1)
    box = (window[0] - left, window[1] - top, window[2] - left, window[3] - top)
    # A reducing gap of 1 averages whole pixels first: faster, and less than a grey level away.
    scaled = Image.fromarray(part).resize(size, Image.Resampling.BILINEAR, box, reducing_gap=1)
    return np.asarray(scaled)


def _open_common_jpeg(data: bytes, reads: Reads) -> OpenedImage | None:
    """Open an ordinary JPEG, which is decoded to the same pixels as by Pillow, in half the time.

    Returns None for Pillow to open or refuse: too many pixels, other colour spaces, an orientation,
    or damaged headers.
    """
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
        return _common_jpeg(data, (width, height), fit) or _shrink(
            _open_by_pillow(data, "JPEG", reads)[0], fit
        )

    return OpenedImage(jpeg_cost((width, height), data), decode)


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


def _open(data: bytes, kind: str, reads: Reads) -> OpenedImage:
    """Open an image of a kind; raise InputError."""
    image, pixels = _open_by_pillow(data, kind, reads)
    if pixels > MAX_PIXELS:
        raise too_large("pixels")
    return OpenedImage(cost(image, pixels, data), lambda fit: _shrink(image, fit))


def _open_by_pillow(data: bytes, kind: str, reads: Reads) -> tuple[Image.Image, int]:
    """Read the header of an image; return it and the number of pixels to decode."""
    try:
        with warnings.catch_warnings():
            # Damaged metadata does not matter, and Pillow's pixel limit is above ours.
            warnings.simplefilter("ignore")
            image = Image.open(BoundedFile(data, reads), formats=[kind])
        return image, decoded_pixels(image)
    except InputError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise too_large("pixels") from error
    # Pillow's plugins raise almost any exception on hostile bytes.
    except Exception as error:
        raise corrupt() from error


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
    """Return the orientation, 1 to 8, from EXIF or XMP.

    Pillow would do the same, but it reads all other tags as well.
    """
    exif = image.info.get("exif", b"")
    # Some writers add the mark of a JPEG's segment twice, or to another kind of image.
    tags = tiff_tags(re.sub(_EXIF, b"", exif))
    values = (value for tag, _, _, value in islice(tags, MAX_TIFF_TAGS) if tag == _ORIENTATION_TAG)
    xmp = image.info.get("xmp", b"")
    found = next(values, None) or next(map(int, re.findall(_XMP_ORIENTATION, xmp)), 1)
    return found if found in _TRANSPOSE else 1


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

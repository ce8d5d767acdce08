"""Decode image bytes to RGB pixels: the one preprocessing of training, evaluation and serving.

The bytes are untrusted: their number is checked before the image is opened, and the number of
pixels before it is decoded. Any kind, mode or orientation becomes upright RGB of the size that a
version needs: 80x60 whatever the proportions, or within 320x320 with the proportions kept.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from handler.contract import KINDS, MAX_BYTES, kind_of

WIDTH, HEIGHT = 80, 60
# Longest side of a field that cells are cut from.
FIELD = 320
MAX_PIXELS = 30_000_000
# Bounds the time that a request of many large images holds a worker.
MAX_PIXELS_PER_REQUEST = 100_000_000
# Progressive JPEGs have about ten scans. A scan of a few bytes can pass over all pixels.
MAX_SCANS = 100

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Size = tuple[int, int]
Box = tuple[float, float, float, float]

_START_OF_SCAN = b"\xff\xda"
_ORIENTATION_TAG = 0x0112
_TILE_WIDTH_TAG, _TILE_HEIGHT_TAG = 322, 323
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


def decode(data: bytes, fit: Callable[[Size], Size] = squashed) -> DecodedImage:
    """Decode one image to the size that `fit` returns for its own; raise InputError on failure.

    Images are scaled by area averaging, JPEGs first by their decoder (1/2, 1/4 or 1/8), which
    amounts to the same. Transparent parts become white, grey of more than 8 bits is scaled to 8,
    and only the first frame or page is read.
    """
    return _common_jpeg(data, fit, MAX_PIXELS) or _shrink(_open(data, MAX_PIXELS), fit)


def decode_all(
    images: Iterable[bytes | InputError],
    fit: Callable[[Size], Size] = squashed,
    max_pixels: int = MAX_PIXELS_PER_REQUEST,
) -> list[DecodedImage | InputError]:
    """Decode the images of one request, at most `max_pixels` together; errors stay in place."""
    decoded: list[DecodedImage | InputError] = []
    for data in images:
        try:
            if isinstance(data, InputError):
                raise data
            bound = min(MAX_PIXELS, max_pixels)
            if image := _common_jpeg(data, fit, bound):
                max_pixels -= image.width * image.height
            else:
                opened = _open(data, bound)
                max_pixels -= _pixels(opened)
                image = _shrink(opened, fit)
            decoded.append(image)
        except InputError as error:
            # A traceback keeps the pixels of the failed image in memory.
            error.__cause__ = error.__context__ = None
            decoded.append(error.with_traceback(None))
    return decoded


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


def _common_jpeg(data: bytes, fit: Callable[[Size], Size], max_pixels: int) -> DecodedImage | None:
    """Decode an ordinary JPEG to the same pixels as Pillow, in half the time.

    Returns None for Pillow to decode or refuse: another kind of image, too many bytes or pixels,
    other colour spaces, an orientation, or any damage.
    """
    if kind_of(data) != "JPEG" or len(data) > MAX_BYTES:
        return None
    if data.count(_START_OF_SCAN) > MAX_SCANS:
        return None
    # The orientation is in EXIF or in XMP.
    if data.find(b"Exif\0\0") >= 0 or data.find(b"tiff:Orientation") >= 0:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or not 0 < width * height <= max_pixels:
            return None
        size = fit((width, height))
        scale = _decoder_scale((width, height), size)
        scaled = -(-width // scale), -(-height // scale)
        # The decoder takes the smallest scale, in eighths, that reaches these sizes: `scale`.
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=scaled[0], min_height=scaled[1])
    except (ValueError, MemoryError):
        return None
    if pixels.shape != (*scaled[::-1], 3):
        return None
    if scaled != size:
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    return DecodedImage(pixels, width, height)


def _decoder_scale(size: Size, wanted: Size) -> int:
    """Return the divisor that Pillow passes to the JPEG decoder for a smaller size."""
    most = min(size[0] // wanted[0], size[1] // wanted[1])
    return next((scale for scale in (8, 4, 2) if scale <= most), 1)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header of an image, not its pixels."""
    if not data:
        raise empty()
    if len(data) > MAX_BYTES:
        raise too_large("bytes")
    kind = kind_of(data)
    if not kind:
        raise unsupported()
    if kind == "JPEG" and data.count(_START_OF_SCAN) > MAX_SCANS:
        raise too_large("scans")
    try:
        with warnings.catch_warnings():
            # Damaged metadata does not matter, and Pillow's pixel limit is above ours.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=[kind])
        pixels = _pixels(image)
    except (Image.DecompressionBombError, MemoryError) as error:
        raise too_large("pixels") from error
    # Pillow's plugins raise almost any exception on hostile bytes.
    except Exception as error:
        raise corrupt() from error
    if pixels > max_pixels:
        raise too_large("pixels")
    return image


def _pixels(image: Image.Image) -> int:
    """Return the number of pixels to decode: a TIFF decodes a whole tile even of a small image."""
    tags = getattr(image, "tag_v2", {})
    tile: int = tags.get(_TILE_WIDTH_TAG, 0) * tags.get(_TILE_HEIGHT_TAG, 0)
    return max(image.width * image.height, tile)


def _shrink(image: Image.Image, fit: Callable[[Size], Size]) -> DecodedImage:
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
    except MemoryError as error:
        raise too_large("pixels") from error
    except Exception as error:
        raise corrupt() from error


def _orientation(image: Image.Image) -> int:
    orientation = 1
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
    grey = np.nan_to_num(np.asarray(image, dtype=np.float32))
    top = grey.max(initial=0)
    if image.mode.startswith("I;16") or top > 255:
        grey /= 257
    elif image.mode == "F" and top <= 1:
        grey *= 255
    scaled = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        scaled.putalpha(Image.fromarray((np.asarray(image) != key).astype(np.uint8) * 255))
    return scaled

"""Image bytes to the network's input: the one preprocessing of training, evaluation and serving.

The bytes are untrusted: their number is bounded before they are opened and their pixels before
they are decoded. Whatever the kind, mode or orientation, the whole field comes out squashed to
80x60 RGB; nothing is cropped.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

WIDTH, HEIGHT = 80, 60
MAX_BYTES = 8 * 1024 * 1024
MAX_PIXELS = 30_000_000
# Keeps a request of many bombs, each just within its own bound, from holding a worker for long.
MAX_PIXELS_PER_REQUEST = 100_000_000

Pixels = npt.NDArray[np.uint8]

_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\x00", b"MM\x00*"),
    "WEBP": (b"RIFF",),
}
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
class InputError(Exception):
    """Input that can't be answered: HTTP status, type for machines, sentence for people."""

    code: int
    type: str
    message: str

    def __str__(self) -> str:
        return self.message


def empty() -> InputError:
    return InputError(400, "EmptyImage", "The image is empty: send the bytes of one image.")


def corrupt() -> InputError:
    return InputError(400, "CorruptImage", "The image is damaged or cut short.")


def unsupported() -> InputError:
    kinds = ", ".join(_SIGNATURES)
    return InputError(415, "UnsupportedImage", f"This is not an image of a known kind ({kinds}).")


def too_large(what: str) -> InputError:
    return InputError(413, "ImageTooLarge", f"The image has too many {what}.")


def decode(data: bytes) -> Pixels:
    """Decode one image to (60, 80, 3) uint8 RGB; raise InputError if that can't be done.

    JPEG is scaled by its decoder (1/2, 1/4 or 1/8 while no smaller than 80x60), the rest by
    area averaging, which is what the decoder's scaling amounts to. Transparency lies on white.
    Grey of more than 8 bits is scaled to 8. Of several frames or pages the first is taken.
    """
    return _shrink(_open(data, MAX_PIXELS))


def decode_all(
    images: Iterable[bytes | InputError], max_pixels: int = MAX_PIXELS_PER_REQUEST
) -> list[Pixels | InputError]:
    """Decode the images of one request, which share a budget of pixels; errors stay in place."""
    decoded: list[Pixels | InputError] = []
    for data in images:
        try:
            if isinstance(data, InputError):
                raise data
            image = _open(data, min(MAX_PIXELS, max_pixels))
            max_pixels -= _pixels(image)
            decoded.append(_shrink(image))
        except InputError as error:
            # A traceback holds the frames, and so the pixels, of what failed.
            error.__cause__ = error.__context__ = None
            decoded.append(error.with_traceback(None))
    return decoded


def to_input(images: Iterable[Pixels]) -> torch.Tensor:
    """Stack N decoded images to the network's input: (N, 3, 60, 80) float32 in [0, 1]."""
    return scale(to_planes(np.stack(list(images))))


def to_planes(pixels: Pixels) -> torch.Tensor:
    """View (N, 60, 80, 3) as (N, 3, 60, 80); in memory it stays channels last, the faster way."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def scale(planes: torch.Tensor) -> torch.Tensor:
    """Scale uint8 to float32 in [0, 1]."""
    return planes.float().div_(255)


def _kind(data: bytes) -> str:
    for kind, signatures in _SIGNATURES.items():
        if data.startswith(signatures) and (kind != "WEBP" or data[8:12] == b"WEBP"):
            return kind
    raise unsupported()


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the head of an image, not yet its pixels."""
    if not data:
        raise empty()
    if len(data) > MAX_BYTES:
        raise too_large("bytes")
    kind = _kind(data)
    try:
        with warnings.catch_warnings():
            # Damaged metadata is no matter, and Pillow's bound on pixels is laxer than ours below.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=[kind])
        pixels = _pixels(image)
    except (Image.DecompressionBombError, MemoryError) as error:
        raise too_large("pixels") from error
    # Pillow's plugins answer hostile bytes with almost any exception; each means the same here.
    except Exception as error:
        raise corrupt() from error
    if pixels > max_pixels:
        raise too_large("pixels")
    return image


def _pixels(image: Image.Image) -> int:
    """Return how many pixels will be decoded: a TIFF's tile is, whole, however small the image."""
    tags = getattr(image, "tag_v2", {})
    tile: int = tags.get(_TILE_WIDTH_TAG, 0) * tags.get(_TILE_HEIGHT_TAG, 0)
    return max(image.width * image.height, tile)


def _shrink(image: Image.Image) -> Pixels:
    """Decode an opened image, upright, to (60, 80, 3)."""
    try:
        # Pillow's TIFF turns itself upright as it loads.
        orientation = 1 if image.format == "TIFF" else _orientation(image)
        size = (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)
        image.draft("RGB", size)
        image = _rgb(image)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BOX)
        if orientation > 1:
            image = image.transpose(_TRANSPOSE[orientation])
        return np.asarray(image)
    except MemoryError as error:
        raise too_large("pixels") from error
    except Exception as error:
        raise corrupt() from error


def _orientation(image: Image.Image) -> int:
    orientation = 1
    # A picture with damaged EXIF is still a picture.
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
    """Scale grey of more than 8 bits: floats up to 1 by 255, 16 bits by 1/257, 8 bits by 1."""
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

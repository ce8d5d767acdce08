"""How a browser shows an upload, by its first bytes and never by its name or declared type."""

import threading
from base64 import b64encode
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from handler.bounds import InputError
from handler.contract import KINDS, kind_of
from handler.preprocessing import Size, decode

SIDE = 640
# As in a worker: decoding an image may take 100 MB.
_ONE_AT_A_TIME = threading.Lock()


class Shown(NamedTuple):
    """The address of a picture, or None, and the size of the upright upload in pixels."""

    address: str | None
    size: Size | None


def shown(image: bytes) -> Shown:
    """Return the picture and the size of an upload: a TIFF becomes a small PNG.

    The decoder is the workers', with its bounds: reading only the headers of 8 MB by Pillow could
    take a minute.
    """
    kind = media_type(image)
    address = data_uri(image, kind) if kind else None
    try:
        with _ONE_AT_A_TIME:
            decoded = decode(image, _within_side)
    except InputError:
        return Shown(address, None)
    if not kind:
        png = BytesIO()
        Image.fromarray(decoded.pixels).save(png, "PNG")
        address = data_uri(png.getvalue(), "image/png")
    return Shown(address, (decoded.width, decoded.height))


def media_type(image: bytes) -> str | None:
    """Return the media type of an image that browsers show, or None."""
    kind = kind_of(image)
    return KINDS[kind].media_type if kind not in (None, "TIFF") else None


def data_uri(image: bytes, kind: str) -> str:
    """Return an image as a data URI."""
    return f"data:{kind};base64,{b64encode(image).decode('ascii')}"


def _within_side(size: Size) -> Size:
    shrink = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))

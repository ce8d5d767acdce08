"""What of an upload a browser may show: told by its first bytes, never by what its sender says."""

from base64 import b64encode
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from handler.contract import KINDS, kind_of

MAX_PIXELS = 16_000_000
SIDE = 640
# EXIF's orientations from here on lie on their side.
ORIENTATION, LYING = 0x0112, 5


class Shown(NamedTuple):
    """The address of a picture, None if there is none, and the upright upload's size in pixels."""

    address: str | None
    size: tuple[int, int] | None


def shown(image: bytes) -> Shown:
    """Return how a browser shows an upload that the service has read."""
    kind = media_type(image)
    picture = image if kind else thumbnail(image)
    address = data_uri(picture, kind or "image/png") if picture else None
    return Shown(address, upright_size(image))


def media_type(image: bytes) -> str | None:
    """Return the type of an image that a browser shows, or None."""
    kind = kind_of(image)
    return KINDS[kind].media_type if kind not in (None, "TIFF") else None


def data_uri(image: bytes, kind: str) -> str:
    """Return an image as an address that holds all of it."""
    return f"data:{kind};base64,{b64encode(image).decode('ascii')}"


def upright_size(image: bytes) -> tuple[int, int] | None:
    """Return width and height as the image is shown, from its header alone; None if unreadable."""
    try:
        with Image.open(BytesIO(image), formats=list(KINDS)) as header:
            lying = header.format != "TIFF" and header.getexif().get(ORIENTATION, 1) >= LYING
            width, height = header.size
            return (height, width) if lying else (width, height)
    except Exception:
        # As with thumbnails: the answer matters, the outlines on its picture do not.
        return None


def thumbnail(image: bytes) -> bytes | None:
    """Return a TIFF as a small PNG, or None when that is not possible or not cheap."""
    if kind_of(image) != "TIFF":
        return None
    try:
        with Image.open(BytesIO(image), formats=["TIFF"]) as tiff:
            if tiff.width * tiff.height > MAX_PIXELS:
                return None
            if tiff.mode.startswith(("I", "F")):
                # More than 8 bits: Pillow would clip it to white or black.
                return None
            picture = tiff.convert("RGB")
    except Exception:
        # A decoder of a hostile file may raise anything. The answer matters, its picture does not.
        return None
    picture.thumbnail((SIDE, SIDE))
    png = BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()

"""How a browser shows an upload, by its first bytes and never by its name or declared type."""

from base64 import b64encode
from io import BytesIO
from typing import NamedTuple

from PIL import ExifTags, Image

from handler.contract import KINDS, kind_of

MAX_PIXELS = 16_000_000
SIDE = 640
# EXIF orientations from here on are rotated by 90 degrees.
ROTATED = 5


class Shown(NamedTuple):
    """The address of a picture, or None, and the size of the upright upload in pixels."""

    address: str | None
    size: tuple[int, int] | None


def shown(image: bytes) -> Shown:
    """Return the picture and the size of an upload that the service has classified."""
    kind = media_type(image)
    picture = image if kind else thumbnail(image)
    address = data_uri(picture, kind or "image/png") if picture else None
    return Shown(address, upright_size(image))


def media_type(image: bytes) -> str | None:
    """Return the media type of an image that browsers show, or None."""
    kind = kind_of(image)
    return KINDS[kind].media_type if kind not in (None, "TIFF") else None


def data_uri(image: bytes, kind: str) -> str:
    """Return an image as a data URI."""
    return f"data:{kind};base64,{b64encode(image).decode('ascii')}"


def upright_size(image: bytes) -> tuple[int, int] | None:
    """Return the width and height as shown, from the header alone, or None if unreadable."""
    try:
        with Image.open(BytesIO(image), formats=list(KINDS)) as header:
            rotated = (
                header.format != "TIFF"
                and header.getexif().get(ExifTags.Base.Orientation, 1) >= ROTATED
            )
            width, height = header.size
            return (height, width) if rotated else (width, height)
    except Exception:
        # As in thumbnail(): the outlines are optional.
        return None


def thumbnail(image: bytes) -> bytes | None:
    """Return a TIFF as a small PNG, or None if that is impossible or expensive."""
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
        # A decoder may raise anything on a hostile file, and the picture is optional.
        return None
    picture.thumbnail((SIDE, SIDE))
    png = BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()

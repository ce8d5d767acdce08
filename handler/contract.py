"""What the service accepts: the kinds of image, the largest image.

Handler, client, page and training take these from here. It imports nothing, so that a program
that only sends images needs no numpy.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_BYTES = 8 * 1024 * 1024


class Kind(NamedTuple):
    """A kind of image: the bytes that it can begin with, and the suffixes of its files."""

    signatures: tuple[bytes, ...]
    suffixes: tuple[str, ...]
    media_type: str


# By the names that Pillow uses.
KINDS = {
    "JPEG": Kind((b"\xff\xd8\xff",), (".jpg", ".jpeg"), "image/jpeg"),
    "PNG": Kind((b"\x89PNG\r\n\x1a\n",), (".png",), "image/png"),
    "BMP": Kind((b"BM",), (".bmp",), "image/bmp"),
    "TIFF": Kind((b"II*\x00", b"MM\x00*"), (".tif", ".tiff"), "image/tiff"),
    "WEBP": Kind((b"RIFF",), (".webp",), "image/webp"),
}
SUFFIXES = frozenset(suffix for kind in KINDS.values() for suffix in kind.suffixes)


def kind_of(image: bytes) -> str | None:
    """Return the kind of an image, by its first bytes, or None for any other data."""
    for name, kind in KINDS.items():
        # RIFF is also the start of sound and video.
        if image.startswith(kind.signatures) and (name != "WEBP" or image[8:12] == b"WEBP"):
            return name
    return None

"""Image files built byte by byte, with arbitrary values in their headers."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache

from PIL import Image

PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image in one of Pillow's formats."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def packed(size: int) -> bytes:
    """Return compressed zeros: few bytes, but a second's work."""
    return zlib.compress(bytes(size), 9)


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG; `rows` is its compressed data."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_HEAD + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def with_packed_chunk(image: bytes, kind: bytes, head: bytes, size: int) -> bytes:
    """Return a PNG with one more chunk, of compressed zeros."""
    end = len(PNG_HEAD) + 25
    return image[:end] + chunk(kind, head + packed(size)) + image[end:]


def with_right_sums(image: bytes) -> bytes:
    """Return a damaged PNG with valid checksums, so that decoders read more of it."""
    parts, at = [image[:8]], 8
    while at + 12 <= len(image):
        end = at + 8 + int.from_bytes(image[at : at + 4], "big")
        if end + 4 > len(image):
            break
        parts += [image[at:end], zlib.crc32(image[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join([*parts, image[at:]])


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    total = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", total)


def tiff(
    width: int,
    height: int,
    strip: bytes = b"",
    compression: int = 1,
    tile: tuple[int, int] | None = None,
    next_at: int = 0,
) -> bytes:
    """Return a TIFF, its pixels RGB in one strip or tile."""
    long, short = 4, 3
    tags = {256: (long, width), 257: (long, height), 258: (short, 8), 259: (short, compression)}
    tags |= {262: (short, 2), 277: (short, 3)}
    if tile:
        tags |= {322: (long, tile[0]), 323: (long, tile[1])}
        where, count = 324, 325
    else:
        tags[278] = (long, height)
        where, count = 273, 279
    end = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags |= {where: (long, end), count: (long, len(strip))}
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items())
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + struct.pack("<I", next_at) + strip


def of_frames(kind: str, count: int = 100) -> bytes:
    """Return an image of several frames or pages."""
    first, *others = (Image.new("RGB", (80, 60), (at, at, at)) for at in range(count))
    return encoded(first, kind, save_all=True, append_images=others)


def bmp(width: int, height: int) -> bytes:
    """Return a BMP without pixels."""
    return b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, width, height, 1, 24, *[0] * 6)


def bmp_of_runs(width: int, height: int) -> bytes:
    """Return a BMP whose pixels are compressed in runs of one pixel."""
    rows = (b"\x01\x05" * width + bytes(2)) * height
    head = struct.pack("<IiiHHIIIIII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    end = 14 + len(head) + 1024
    return b"BM" + struct.pack("<III", end + len(rows), 0, end) + head + bytes(1024) + rows


def webp(width: int, height: int) -> bytes:
    """Return a lossless WebP without pixels."""
    data = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(11)
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def resized_jpeg(image: bytes, width: int, height: int) -> bytes:
    """Return a JPEG with another size in its header."""
    at = image.index(b"\xff\xc0") + 5
    return image[:at] + struct.pack(">HH", height, width) + image[at + 4 :]


def with_segment(image: bytes, marker: int, data: bytes) -> bytes:
    """Return a JPEG with one more segment."""
    return image[:2] + segment(marker, data) + image[2:]


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """Return a progressive JPEG with many empty scans over all of its pixels.

    A scan needs three bytes to skip 32,767 blocks.
    """
    frame = struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])
    # The only code of each table: 0 means "no difference", 0xe0 "a run of 2^14 and 14 bits".
    tables = b"".join(
        segment(0xC4, bytes([kind, 1] + [0] * 15) + symbol)
        for kind, symbol in ((0x00, b"\0"), (0x10, b"\xe0"))
    )
    quantities = segment(0xDB, bytes([0] + [1] * 64))
    blocks = -(-width // 8) * -(-height // 8)

    def scan(first: int, last: int, low: int, bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
        return segment(0xDA, bytes([1, 1, 0, first, last, low])) + data

    direct = scan(0, 0, 0, "0" * blocks)
    empty = scan(1, 63, 1, ("0" + "0" * 14) * -(-blocks // 0x4000))
    parts = [b"\xff\xd8", quantities, segment(0xC2, frame), tables, direct, empty * scans]
    return b"".join(parts) + b"\xff\xd9"


def with_scans(jpeg: bytes, scans: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated, so that it has this many."""
    start = b"\xff\xda"
    last = jpeg[jpeg.rindex(start) : -2]
    return jpeg[:-2] + last * (scans - jpeg.count(start)) + jpeg[-2:]


def field(name: str, data: bytes) -> bytes:
    """Return one file of a form with the boundary `edge`."""
    return (
        b'--edge\r\nContent-Disposition: form-data; name="' + name.encode() + b'"; filename="x"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"
    )


def entities() -> bytes:
    """Return XML that expands to a billion words."""
    lines = ['<!ENTITY l0 "ha">', *(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))]
    return f"<?xml version='1.0'?><!DOCTYPE x [{''.join(lines)}]><x>&l9;</x>".encode()

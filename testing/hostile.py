"""Hostile uploads, the same ones at each run: bombs, lies, polyglots, forms and JSON to choke on.

`collection` holds those that are made by hand, each with the statuses that it may be answered by.
`mutations` damages good images in all ways at random; those may be answered or refused.
"""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image

from serving.deployment import known_answers

BYTES = "application/octet-stream"
FORM = 'multipart/form-data; boundary="edge"'
REFUSED = (400, 413, 415)
ANSWERED = (200,)
# TorchServe calls it an error of its own if it can't take a form apart; no worker hears of it.
UNREAD = (500,)
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# What damages are made from; smaller ones are damaged more for the same number of bytes.
SEED_SIZE = (96, 72)
ODD_BYTES = b"\x00\x01\x7f\x80\xfe\xff"
ODD_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Upload:
    """A body, what it says it is, and the statuses that are right answers to it."""

    name: str
    # What is large, or takes long to make, is made when it is asked for, each time.
    made: bytes | Callable[[], bytes]
    content_type: str = BYTES
    allowed: tuple[int, ...] = REFUSED

    @property
    def body(self) -> bytes:
        return self.made if isinstance(self.made, bytes) else self.made()


def collection() -> list[Upload]:
    """Return all that are made by hand."""
    return [*bombs(), *lies(), *metadata(), *polyglots(), *forms(), *documents()]


def sample(size: tuple[int, int] | None = None) -> Image.Image:
    """Return one of the drawn cells, as RGB."""
    image = Image.open(known_answers.SAMPLES / "neutrophil.png").convert("RGB")
    return image.resize(size) if size else image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image's bytes in a format of Pillow's."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def small(kind: str) -> bytes:
    """Return a small good image's bytes, each format made once."""
    return encoded(_small_sample(), kind)


@cache
def _small_sample() -> Image.Image:
    return sample(SEED_SIZE)


# --- By hand


def bombs() -> Iterator[Upload]:
    """Make images that are small as files, and large or slow once they are decoded."""
    yield Upload("PNG that claims 100,000 x 100,000", png(100_000, 100_000, zlib.compress(b"")))
    yield Upload(
        "PNG of 30,000 x 30,000 in 110 kB",
        lambda: png(30_000, 30_000, packed(30_000 * (1 + 30_000 // 8)), depth=1, colour=0),
    )
    much = 100_000_000
    yield Upload(
        "PNG with 100 MB behind its last row", lambda: png(8, 8, packed(much)), allowed=(200, 400)
    )
    good = small("PNG")
    # What is said beside the pixels is no matter: some is skipped, some makes Pillow refuse.
    spoken = (200, 400, 413)
    yield Upload(
        "PNG with 100 MB of text",
        lambda: with_chunk(good, b"zTXt", b"Comment\0\0" + packed(much)),
        allowed=spoken,
    )
    yield Upload(
        "PNG with a profile of 100 MB",
        lambda: with_chunk(good, b"iCCP", b"icc\0\0" + packed(much)),
        allowed=spoken,
    )
    yield Upload("TIFF that claims 100,000 x 100,000", tiff(100_000, 100_000))
    yield Upload(
        "TIFF of one pixel in a tile of 60,000 x 60,000", tiff(1, 1, tile=(60_000, 60_000))
    )
    yield Upload(
        "TIFF of 29 million pixels in 85 kB",
        lambda: tiff(5_800, 5_000, packed(5_800 * 5_000 * 3), 8),
        allowed=ANSWERED,
    )
    yield Upload("TIFF whose directory is its own next", tiff(64, 48, next_at=8))
    yield Upload("BMP that claims 100,000 x 100,000", bmp(100_000, 100_000))
    yield Upload("BMP of a height of -2^31", bmp(64, -(2**31)))
    yield Upload("WebP that claims 16,383 x 16,383", webp(16_383, 16_383))
    yield Upload("JPEG that claims 65,500 x 65,500", resized_jpeg(65_500, 65_500))
    yield Upload("JPEG of 20,000 scans", lambda: jpeg_of_scans(5_472, 5_472, 20_000))
    yield Upload("WebP of 100 frames", lambda: of_frames("WEBP"), allowed=ANSWERED)
    yield Upload("PNG of 100 frames", lambda: of_frames("PNG"), allowed=ANSWERED)
    yield Upload("GIF of 100 frames", lambda: of_frames("GIF"))
    yield Upload("TIFF of 100 pages", lambda: of_frames("TIFF"), allowed=ANSWERED)


def lies() -> Iterator[Upload]:
    """Make images whose heads say what is not so."""
    good = {kind: small(kind) for kind in ("JPEG", "PNG", "TIFF", "WEBP")}
    yield Upload("nothing at all", b"")
    for kind, data in good.items():
        yield Upload(f"{kind}: its first 16 bytes", data[:16])
        yield Upload(f"{kind}: half of it", data[: len(data) // 2])
        yield Upload(f"{kind} that calls itself text", data, "text/plain", ANSWERED)
        yield Upload(f"{kind} that calls itself a PDF", data, "application/pdf", ANSWERED)
        yield Upload(f"{kind} that calls itself JSON", data, "application/json")
    yield Upload("PNG of no width", png(0, 64, zlib.compress(b"")))
    yield Upload("PNG of a depth of 3 bits", png(8, 8, zlib.compress(bytes(200)), depth=3))
    yield Upload("PNG of nothing but its head", PNG_HEAD)
    yield Upload("PNG with a chunk of 4 GB", PNG_HEAD + b"\xff\xff\xff\xffIHDR" + bytes(64))
    yield Upload("TIFF of 65,535 tags", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 4096)
    yield Upload("RIFF that is no WebP", b"RIFF\x24\0\0\0WAVEfmt " + bytes(64))
    yield Upload("8 MiB and a byte", lambda: good["JPEG"].ljust(8 * 2**20 + 1, b"\0"))
    yield Upload("random bytes", random.Random(7).randbytes(100_000))


def metadata() -> Iterator[Upload]:
    """Make good images that say too much beside: they are to be answered."""
    plain = small("JPEG")
    for name, exif in {
        "of 64 kB": b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 65_000,
        "that is its own next directory": b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "that turns it by 99": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0",
        "cut short": b"Exif\0\0II*\0",
    }.items():
        yield Upload(f"EXIF {name}", with_segment(plain, 0xE1, exif), allowed=ANSWERED)
    long = segment(0xE1, b"Exif\0\0" + bytes(65_000))
    yield Upload(
        "EXIF of 64 kB a hundred times",
        lambda: plain[:2] + long * 100 + plain[2:],
        allowed=ANSWERED,
    )
    for name, profile in {
        "of noise": random.Random(3).randbytes(60_000),
        "of nothing": b"",
    }.items():
        said = b"ICC_PROFILE\0\1\1" + profile
        yield Upload(f"ICC profile {name}", with_segment(plain, 0xE2, said), allowed=ANSWERED)
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + entities()
    yield Upload("XMP of a billion laughs", with_segment(plain, 0xE1, xmp), allowed=ANSWERED)


def polyglots() -> Iterator[Upload]:
    """Make files that are two things at once, and files that are another thing."""
    jpeg, archive = small("JPEG"), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(zipfile.ZipInfo("../../../../tmp/evil.py"), "raise SystemExit")
    script = b"<script>alert(1)</script><?php system($_GET[0]); ?>"
    yield Upload("JPEG and ZIP", jpeg + archive.getvalue(), allowed=ANSWERED)
    yield Upload("JPEG and HTML", with_segment(jpeg, 0xFE, script), allowed=ANSWERED)
    yield Upload("PDF and JPEG", b"%PDF-1.7\n" + jpeg)
    yield Upload("GIF and JPEG", b"GIF89a" + jpeg)
    yield Upload("ZIP", archive.getvalue())
    yield Upload("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
    yield Upload("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n")
    yield Upload("a pickle", b"cos\nsystem\n(S'true'\ntR.")
    yield Upload("XML of a billion laughs", entities(), "application/xml")


def forms() -> Iterator[Upload]:
    """Make forms that choke who takes them apart."""
    jpeg = small("JPEG")

    def form(name: str, fields: bytes | Callable[[], bytes], *allowed: int) -> Upload:
        return Upload(f"form: {name}", fields, FORM, allowed or REFUSED)

    yield form("nothing", b"")
    yield form("no end", field("a", jpeg)[:-20], *REFUSED, 200)
    yield form("no fields", b"--edge--\r\n")
    yield form("one field is damaged", field("a", jpeg) + field("b", jpeg[:99]) + END_OF_FORM, 200)
    yield form("129 images", b"".join(field(f"f{n}", b"x") for n in range(129)) + END_OF_FORM)
    yield form(
        "20,000 fields",
        lambda: b"".join(field(f"f{n}", b"") for n in range(20_000)) + END_OF_FORM,
    )
    yield form("the same name 1,000 times", field("a", b"x") * 1_000 + END_OF_FORM)
    for name, text in {
        "a name with line breaks": 'a"\r\nX-Evil: yes\r\nb="',
        "a name of escaped line breaks": "a%0d%0aX-Evil:%20yes",
        "a name of 60 kB": "a" * 60_000,
        "the name of a control header (describe)": "describe",
        "the name of a control header (explain)": "explain",
        "the name of Authorization": "Authorization",
        "a name beyond ASCII": "\u202e\U0001f480\u0000",
    }.items():
        # What TorchServe makes of the name is its matter; a good image may be answered.
        yield form(name, field(text, jpeg) + END_OF_FORM, 200, *REFUSED)
    for name, text in {
        "an empty name": "",
        "a name of quotes and semicolons": '";;filename="../../etc/passwd',
    }.items():
        yield form(name, field(text, jpeg) + END_OF_FORM, *UNREAD)
    yield form(
        "bytes that are no UTF-8 for a name",
        field("?", jpeg).replace(b"?", b"\xff\xfe"),
        200,
        *REFUSED,
    )
    linked = "application/x-www-form-urlencoded"
    yield Upload("form: an image that calls itself links", jpeg, linked, UNREAD)
    nested = b'--edge\r\nContent-Type: multipart/mixed; boundary="edge"\r\n\r\n' * 1_000
    yield form("forms in forms", nested + END_OF_FORM)
    for name, kind in {
        "no boundary": "multipart/form-data",
        "an endless boundary": "multipart/form-data; boundary=" + "e" * 4_000,
        "a boundary of nothing": 'multipart/form-data; boundary=""',
    }.items():
        yield Upload(f"form: {name}", field("a", jpeg) + END_OF_FORM, kind)


def documents() -> Iterator[Upload]:
    """Make JSON that chokes who parses it, or says what is no image."""

    def document(name: str, text: str | Callable[[], str], *allowed: int) -> Upload:
        def body() -> bytes:
            # What is beyond ASCII here is to be no UTF-8.
            return (text if isinstance(text, str) else text()).encode("latin-1")

        return Upload(f"JSON: {name}", body, "application/json", allowed or REFUSED)

    jpeg = base64.b64encode(small("JPEG")).decode()
    yield document("100,000 lists deep", "[" * 100_000 + "]" * 100_000)
    yield document("100,000 objects deep", '{"a":' * 100_000 + "1" + "}" * 100_000)
    yield document("instances 100,000 deep", '{"instances":' + "[" * 100_000 + "]" * 100_000 + "}")
    yield document("an open list 5 million deep", lambda: "[" * 5_000_000)
    yield document("cut short", '{"instances": [{"b64": "')
    yield document("a number of 100,000 digits", '{"instances": ' + "9" * 100_000 + "}")
    yield document("NaN", '{"instances": NaN}')
    yield document("1e999999", '{"instances": [1e999999]}', 200)
    yield document("half of a surrogate pair", '{"instances": [{"b64": "\\ud800"}]}', 200)
    yield document("bytes that are no UTF-8", '{"instances": [{"b64": "\xff\xfe"}]}')
    yield document("no instances", "{}")
    yield document("null", "null")
    yield document("text", '"instances"')
    yield document("129 instances", json.dumps({"instances": [{"b64": ""}] * 129}))
    yield document("2 million instances", lambda: '{"instances": [' + "1," * 2_000_000 + "1]}")
    yield document("500,000 keys", lambda: json.dumps({str(n): n for n in range(500_000)}))
    bad = {"instances": [{"b64": "####"}, {"b64": None}, {}, 1, {"b64": [jpeg]}, {"b64": ""}]}
    yield document("instances that are none", json.dumps(bad), 200)
    yield document("100 PNGs of 29 million pixels", lambda: json_of_bombs(5_400, 100), 200)


# --- At random


@cache
def seeds() -> dict[str, bytes]:
    """Return a good image in each kind that is answered, and in the ways that kinds know."""
    image = _small_sample()
    grey, palette, clear = image.convert("L"), image.quantize(16), image.convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "JPEG": encoded(image, "JPEG"),
        "JPEG, progressive": encoded(image, "JPEG", progressive=True),
        "JPEG, grey": encoded(grey, "JPEG"),
        "JPEG, CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "JPEG, turned": encoded(image, "JPEG", exif=exif),
        "PNG": encoded(image, "PNG"),
        "PNG, palette": encoded(palette, "PNG"),
        "PNG, transparent": encoded(clear, "PNG"),
        "PNG, 16 bits": encoded(grey.convert("I;16"), "PNG"),
        "BMP": encoded(image, "BMP"),
        "BMP, palette": encoded(palette, "BMP"),
        "TIFF": encoded(image, "TIFF"),
        "TIFF, LZW": encoded(image, "TIFF", compression="tiff_lzw"),
        "TIFF, JPEG": encoded(image, "TIFF", compression="jpeg"),
        "TIFF, deflate": encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF, floats": encoded(grey.convert("F"), "TIFF"),
        "TIFF, fax": encoded(image.convert("1"), "TIFF", compression="group4"),
        "WebP": encoded(image, "WEBP"),
        "WebP, lossless": encoded(image, "WEBP", lossless=True),
        "WebP, transparent": encoded(clear, "WEBP"),
    }


def mutations(count: int, seed: int = 0) -> Iterator[Upload]:
    """Yield so many good images, each damaged one to six times."""
    chance = random.Random(seed)
    good = seeds()
    for at in range(count):
        kind = chance.choice(list(good))
        body = good[kind]
        for _ in range(chance.randint(1, 6)):
            body = chance.choice(DAMAGES)(body, chance)
        if body.startswith(PNG_HEAD) and chance.random() < 0.8:
            body = with_right_sums(body)
        yield Upload(f"{kind}, damage {seed}.{at}", body, allowed=(200, *REFUSED))


def mutate(body: bytes, seed: int) -> bytes:
    """Damage a body once, in a way that the seed chooses."""
    chance = random.Random(seed)
    damage: Damage = chance.choice(DAMAGES)
    return damage(body, chance)


def _flip(body: bytes, chance: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 16) if body else 0):
        changed[_place(body, chance)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _overwrite(body: bytes, chance: random.Random) -> bytes:
    at = _place(body, chance)
    return body[:at] + bytes(chance.choices(ODD_BYTES, k=chance.randint(1, 8))) + body[at + 1 :]


def _number(body: bytes, chance: random.Random) -> bytes:
    at, number = _place(body, chance), chance.choice(ODD_NUMBERS)
    width = chance.choice((2, 4))
    number &= (1 << 8 * width) - 1
    return body[:at] + number.to_bytes(width, chance.choice(("big", "little"))) + body[at + width :]


def _cut_off(body: bytes, chance: random.Random) -> bytes:
    return body[: chance.randint(0, len(body))]


def _take_out(body: bytes, chance: random.Random) -> bytes:
    start = _place(body, chance)
    return body[:start] + body[start + chance.randint(1, 64) :]


def _repeat(body: bytes, chance: random.Random) -> bytes:
    start = _place(body, chance)
    part = body[start : start + chance.randint(1, 256)]
    return body[:start] + part * chance.randint(2, 50) + body[start:]


def _insert(body: bytes, chance: random.Random) -> bytes:
    at = _place(body, chance)
    return body[:at] + chance.randbytes(chance.randint(1, 64)) + body[at:]


DAMAGES: Sequence[Damage] = (
    _flip,
    _overwrite,
    _number,
    _number,
    _cut_off,
    _take_out,
    _repeat,
    _insert,
)


def _place(body: bytes, chance: random.Random) -> int:
    # Half of the time in the head, where the sizes stand.
    reach = min(len(body), 128) if chance.random() < 0.5 else len(body)
    return chance.randrange(reach) if reach else 0


# --- Formats


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG of any claims; `rows` is its compressed data."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_HEAD + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def with_chunk(image: bytes, kind: bytes, data: bytes) -> bytes:
    """Return a PNG with a chunk more, behind its head."""
    end = len(PNG_HEAD) + 25
    return image[:end] + _chunk(kind, data) + image[end:]


def with_right_sums(image: bytes) -> bytes:
    """Return a damaged PNG with the checksums of what it now says, so that more of it is read."""
    parts, at = [image[:8]], 8
    while at + 12 <= len(image):
        end = at + 8 + int.from_bytes(image[at : at + 4], "big")
        if end + 4 > len(image):
            break
        parts += [image[at:end], zlib.crc32(image[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join([*parts, image[at:]])


def tiff(
    width: int,
    height: int,
    strip: bytes = b"",
    compression: int = 1,
    tile: tuple[int, int] | None = None,
    next_at: int = 0,
) -> bytes:
    """Return a TIFF of any claims, its pixels RGB in one strip or tile."""
    long, short = 4, 3
    tags = {256: (long, width), 257: (long, height), 258: (short, 8), 259: (short, compression)}
    tags |= {262: (short, 2), 277: (short, 3)}
    if tile:
        where = {322: (long, tile[0]), 323: (long, tile[1]), 324: (long, 0), 325: (long, 0)}
        data, count = 324, 325
    else:
        where = {273: (long, 0), 278: (long, height), 279: (long, 0)}
        data, count = 273, 279
    tags |= where
    end = 8 + 2 + 12 * len(tags) + 4
    tags |= {data: (long, end), count: (long, len(strip))}
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items())
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + struct.pack("<I", next_at) + strip


@cache
def packed(size: int) -> bytes:
    """Return so many zeros, compressed: few bytes, but a second's work."""
    return zlib.compress(bytes(size), 9)


def of_frames(kind: str, count: int = 100) -> bytes:
    """Return an image of so many frames or pages."""
    first, *others = (Image.new("RGB", (80, 60), (at, at, at)) for at in range(count))
    return encoded(first, kind, save_all=True, append_images=others)


def bmp(width: int, height: int) -> bytes:
    """Return a BMP of any claims, with no pixels."""
    return b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, width, height, 1, 24, *[0] * 6)


def webp(width: int, height: int) -> bytes:
    """Return a lossless WebP of any claims, with no pixels."""
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + bytes(10)
    data += b"\0" * (len(data) % 2)
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def resized_jpeg(width: int, height: int) -> bytes:
    """Return a JPEG that says another size than it has."""
    data = small("JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """Return a progressive JPEG that goes over all of its pixels so many times, and says nothing.

    A scan that says "no coefficient here" for 32,767 blocks takes three bytes.
    """
    frame = struct.pack(">HBHHB", 11, 8, height, width, 1) + bytes([1, 0x11, 0])
    # The one code of both tables: 0 says "no difference", 0xe0 "a run of 2^14 and 14 bits".
    tables = b"".join(
        b"\xff\xc4" + struct.pack(">HB", 20, kind) + bytes([1] + [0] * 15) + symbol
        for kind, symbol in ((0x00, b"\0"), (0x10, b"\xe0"))
    )
    quantities = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64)
    blocks = -(-width // 8) * -(-height // 8)

    def scan(first: int, last: int, high: int, low: int, bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
        head = struct.pack(">HB", 8, 1) + bytes([1, 0, first, last, high << 4 | low])
        return b"\xff\xda" + head + data

    runs = -(-blocks // 0x4000)
    direct = scan(0, 0, 0, 0, "0" * blocks)
    empty = scan(1, 63, 0, 1, ("0" + "0" * 14) * runs)
    return (
        b"\xff\xd8"
        + quantities
        + b"\xff\xc2"
        + frame
        + tables
        + direct
        + empty * scans
        + b"\xff\xd9"
    )


def with_segment(image: bytes, marker: int, data: bytes) -> bytes:
    """Return a JPEG with a segment more, behind its first marker."""
    return image[:2] + segment(marker, data) + image[2:]


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


END_OF_FORM = b"--edge--\r\n"


def field(name: str, data: bytes) -> bytes:
    """Return one file of a form."""
    return (
        b'--edge\r\nContent-Disposition: form-data; name="' + name.encode() + b'"; filename="x"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"
    )


def json_of_bombs(side: int, count: int) -> str:
    """Return KServe's JSON of the same PNG so many times, black and square."""
    bomb = png(side, side, packed(side * (1 + 3 * side)))
    return json.dumps({"instances": [{"b64": base64.b64encode(bomb).decode()}] * count})


def entities() -> bytes:
    """Return XML that grows to a billion words."""
    lines = ['<!ENTITY l0 "ha">', *(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))]
    return f"<?xml version='1.0'?><!DOCTYPE x [{''.join(lines)}]><x>&l9;</x>".encode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    total = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", total)

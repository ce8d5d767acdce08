"""Hostile uploads, the same in each run: bombs, false headers, polyglots, bad forms and bad JSON.

`collection` returns a table of uploads, each with the statuses that are right answers.
`mutations` damages good images at random; those may be answered or refused.
"""

from __future__ import annotations

import base64
import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

from PIL import Image

from serving.deployment import known_answers
from testing import formats
from testing.formats import PNG_HEAD, bmp, encoded, field, packed, png, tiff
from testing.mutation import damaged

BYTES, JSON = "application/octet-stream", "application/json"
FORM = 'multipart/form-data; boundary="edge"'
END_OF_FORM = b"--edge--\r\n"
ANSWERED, REFUSED, EITHER = (200,), (400, 413, 415), (200, 400, 413, 415)
# TorchServe answers so if it cannot parse a form; no worker receives it.
UNREAD = (500,)
# Small images are damaged more by the same number of bytes.
SEED_SIZE = (96, 72)
MUCH = 100_000_000

# Large bodies, and those that take long to make, are made when they are needed.
Body = bytes | Callable[[], bytes]


@dataclass(frozen=True)
class Upload:
    """A body, its content type, and the statuses that are right answers."""

    name: str
    made: Body
    content_type: str = BYTES
    allowed: tuple[int, ...] = REFUSED

    @property
    def body(self) -> bytes:
        return self.made if isinstance(self.made, bytes) else self.made()


def sample(size: tuple[int, int] | None = None) -> Image.Image:
    """Return one of the drawn cells, as RGB."""
    image = Image.open(known_answers.SAMPLES / "neutrophil.png").convert("RGB")
    return image.resize(size) if size else image


@cache
def small(kind: str) -> bytes:
    """Return a small good image."""
    return encoded(sample(SEED_SIZE), kind)


def collection() -> list[Upload]:
    """Return all uploads that are not random."""
    images = [Upload(name, made, BYTES, allowed) for name, made, allowed in _images()]
    forms = [Upload(f"form: {name}", made, kind, allowed) for name, made, kind, allowed in _forms()]
    documents = [Upload(f"JSON: {name}", made, JSON, allowed) for name, made, allowed in _json()]
    return [*images, *_other_content_types(), *forms, *documents]


def _images() -> Iterator[tuple[str, Body, tuple[int, ...]]]:
    jpeg, good_png = small("JPEG"), small("PNG")
    fine: Callable[[int, bytes], bytes] = partial(formats.with_segment, jpeg)
    # Small as files, and large or slow to decode.
    yield "PNG that claims 100,000 x 100,000", png(100_000, 100_000, zlib.compress(b"")), REFUSED
    yield "PNG of 30,000 x 30,000 in 110 kB", _black_png, REFUSED
    yield "PNG with 100 MB behind its last row", lambda: png(8, 8, packed(MUCH)), (200, 400)
    # Beside the pixels: skipped, or refused by Pillow.
    for name, chunk, head in (("text", b"zTXt", b"Comment\0\0"), ("profile", b"iCCP", b"icc\0\0")):
        made = partial(formats.with_packed_chunk, good_png, chunk, head, MUCH)
        yield f"PNG with a {name} of 100 MB", made, (200, 400, 413)
    yield "TIFF that claims 100,000 x 100,000", tiff(100_000, 100_000), REFUSED
    yield "TIFF of one pixel in a huge tile", tiff(1, 1, tile=(60_000, 60_000)), REFUSED
    yield "TIFF of 16 million pixels in 47 kB", partial(large_tiff, 4_000, 3_900), ANSWERED
    yield "TIFF of 17 million pixels", partial(large_tiff, 4_100, 4_100), REFUSED
    yield "TIFF whose directory is its own next", tiff(64, 48, next_at=8), REFUSED
    yield "BMP that claims 100,000 x 100,000", bmp(100_000, 100_000), REFUSED
    yield "BMP of a height of -2^31", bmp(64, -(2**31)), REFUSED
    yield "WebP that claims 16,383 x 16,383", formats.webp(16_383, 16_383), REFUSED
    yield "JPEG that claims 65,500 x 65,500", formats.resized_jpeg(jpeg, 65_500, 65_500), REFUSED
    scans = partial(formats.jpeg_of_scans, 5_472, 5_472, 20_000)
    yield "JPEG of 20,000 scans", scans, REFUSED
    for kind, allowed in (
        ("WEBP", ANSWERED),
        ("PNG", ANSWERED),
        ("TIFF", ANSWERED),
        ("GIF", REFUSED),
    ):
        yield f"{kind} of 100 frames", partial(formats.of_frames, kind), allowed
    # Headers that are false.
    yield "no byte at all", b"", REFUSED
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        data = small(kind)
        yield f"{kind}: its first 16 bytes", data[:16], REFUSED
        yield f"{kind}: half of it", data[: len(data) // 2], REFUSED
    yield "PNG of no width", png(0, 64, zlib.compress(b"")), REFUSED
    yield "PNG of a depth of 3 bits", png(8, 8, zlib.compress(bytes(200)), depth=3), REFUSED
    yield "PNG of a signature only", PNG_HEAD, REFUSED
    yield "PNG with a chunk of 4 GB", PNG_HEAD + b"\xff\xff\xff\xffIHDR" + bytes(64), REFUSED
    yield "TIFF of 65,535 tags", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 4096, REFUSED
    yield "RIFF that is no WebP", b"RIFF\x24\0\0\0WAVEfmt " + bytes(64), REFUSED
    yield "8 MiB and a byte", lambda: jpeg.ljust(8 * 2**20 + 1, b"\0"), REFUSED
    yield "random bytes", random.Random(7).randbytes(100_000), REFUSED
    # Good images with bad metadata.
    exif = {
        "of 64 kB": b"MM\0*\0\0\0\x08" + b"\xff" * 65_000,
        "that is its own next directory": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "with an orientation of 99": b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0",
        "cut short": b"II*\0",
    }
    for name, data in exif.items():
        yield f"EXIF {name}", fine(0xE1, b"Exif\0\0" + data), ANSWERED
    long = formats.segment(0xE1, b"Exif\0\0" + bytes(65_000))
    yield "EXIF of 64 kB a hundred times", lambda: jpeg[:2] + long * 100 + jpeg[2:], REFUSED
    for name, data in (("of noise", random.Random(3).randbytes(60_000)), ("without data", b"")):
        yield f"ICC profile {name}", fine(0xE2, b"ICC_PROFILE\0\1\1" + data), ANSWERED
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + formats.entities()
    yield "XMP of a billion laughs", fine(0xE1, xmp), ANSWERED
    # Two formats at once, and other formats.
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(zipfile.ZipInfo("../../../../tmp/evil.py"), "raise SystemExit")
    script = b"<script>alert(1)</script><?php system($_GET[0]); ?>"
    yield "JPEG and ZIP", jpeg + archive.getvalue(), ANSWERED
    yield "JPEG and HTML", fine(0xFE, script), ANSWERED
    yield "PDF and JPEG", b"%PDF-1.7\n" + jpeg, REFUSED
    yield "GIF and JPEG", b"GIF89a" + jpeg, REFUSED
    yield "ZIP", archive.getvalue(), REFUSED
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>', REFUSED
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", REFUSED
    yield "a pickle", b"cos\nsystem\n(S'true'\ntR.", REFUSED


def _black_png() -> bytes:
    return png(30_000, 30_000, packed(30_000 * (1 + 30_000 // 8)), depth=1, colour=0)


def large_tiff(width: int, height: int) -> bytes:
    """Return a black TIFF of a few bytes."""
    return tiff(width, height, packed(width * height * 3), 8)


def _other_content_types() -> Iterator[Upload]:
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        yield Upload(f"{kind} as text", small(kind), "text/plain", ANSWERED)
        yield Upload(f"{kind} as a PDF", small(kind), "application/pdf", ANSWERED)
        yield Upload(f"{kind} as JSON", small(kind), JSON)
    yield Upload("XML of a billion laughs", formats.entities(), "application/xml")
    linked = "application/x-www-form-urlencoded"
    yield Upload("form: an image as links", small("JPEG"), linked, UNREAD)


def _forms() -> Iterator[tuple[str, Body, str, tuple[int, ...]]]:
    jpeg, end = small("JPEG"), END_OF_FORM
    good = field("a", jpeg) + end
    yield "empty", b"", FORM, REFUSED
    yield "no end", field("a", jpeg)[:-20], FORM, EITHER
    yield "no fields", b"--edge--\r\n", FORM, REFUSED
    damaged = field("a", jpeg) + field("b", jpeg[:99]) + end
    yield "one field is damaged", damaged, FORM, ANSWERED
    for count in (129, 20_000):
        yield f"{count:,} fields", partial(_many_fields, count), FORM, REFUSED
    yield "the same name 1,000 times", field("a", b"x") * 1_000 + end, FORM, REFUSED
    # TorchServe decides what a name becomes; a good image may be answered.
    for name, text in {
        "a name with line breaks": 'a"\r\nX-Evil: yes\r\nb="',
        "a name of escaped line breaks": "a%0d%0aX-Evil:%20yes",
        "a name of 60 kB": "a" * 60_000,
        "the name of a control header (describe)": "describe",
        "the name of a control header (explain)": "explain",
        "the name of Authorization": "Authorization",
        "a name beyond ASCII": "\u202e\U0001f480\u0000",
    }.items():
        yield name, field(text, jpeg) + end, FORM, EITHER
    bad_name = field("?", jpeg).replace(b"?", b"\xff\xfe")
    yield "a name that is not UTF-8", bad_name, FORM, EITHER
    yield "an empty name", field("", jpeg) + end, FORM, UNREAD
    yield "a name of quotes", field('";;filename="../../etc/passwd', jpeg) + end, FORM, UNREAD
    nested = b'--edge\r\nContent-Type: multipart/mixed; boundary="edge"\r\n\r\n' * 1_000
    yield "forms in forms", nested + end, FORM, REFUSED
    yield "no boundary", good, "multipart/form-data", REFUSED
    yield "a long boundary", good, "multipart/form-data; boundary=" + "e" * 4_000, REFUSED
    yield "an empty boundary", good, 'multipart/form-data; boundary=""', REFUSED


def _many_fields(count: int) -> bytes:
    return b"".join(field(f"f{n}", b"x") for n in range(count)) + END_OF_FORM


def _json() -> Iterator[tuple[str, Body, tuple[int, ...]]]:
    deep = "[" * 100_000 + "]" * 100_000
    jpeg = base64.b64encode(small("JPEG")).decode()
    bad = [{"b64": "####"}, {"b64": None}, {}, 1, {"b64": [jpeg]}, {"b64": ""}]
    for name, text, allowed in (
        ("100,000 lists deep", deep, REFUSED),
        ("100,000 objects deep", '{"a":' * 100_000 + "1" + "}" * 100_000, REFUSED),
        ("instances 100,000 deep", f'{{"instances":{deep}}}', REFUSED),
        ("cut short", '{"instances": [{"b64": "', REFUSED),
        ("a number of 100,000 digits", '{"instances": ' + "9" * 100_000 + "}", REFUSED),
        ("NaN", '{"instances": NaN}', REFUSED),
        ("1e999999", '{"instances": [1e999999]}', ANSWERED),
        ("half of a surrogate pair", '{"instances": [{"b64": "\\ud800"}]}', ANSWERED),
        ("bytes that are not UTF-8", '{"instances": [{"b64": "\xff\xfe"}]}', REFUSED),
        ("no instances", "{}", REFUSED),
        ("null", "null", REFUSED),
        ("text", '"instances"', REFUSED),
        ("129 instances", json.dumps({"instances": [{"b64": ""}] * 129}), REFUSED),
        ("bad instances", json.dumps({"instances": bad}), ANSWERED),
    ):
        yield name, partial(text.encode, "latin-1"), allowed
    yield "an open list 5 million deep", lambda: b"[" * 5_000_000, REFUSED
    yield "2 million instances", lambda: b'{"instances": [' + b"1," * 2_000_000 + b"1]}", REFUSED
    yield "500,000 keys", lambda: json.dumps(dict.fromkeys(range(500_000))).encode(), REFUSED
    yield "100 PNGs of 29 million pixels", partial(_json_of_bombs, 5_400, 100), ANSWERED


def _json_of_bombs(side: int, count: int) -> bytes:
    bomb = png(side, side, packed(side * (1 + 3 * side)))
    instances = [{"b64": base64.b64encode(bomb).decode()}] * count
    return json.dumps({"instances": instances}).encode()


@cache
def seeds() -> dict[str, bytes]:
    """Return good images of all kinds, and of all variants of a kind."""
    image = sample(SEED_SIZE)
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
    """Yield good images, each damaged one to six times."""
    chance, good = random.Random(seed), seeds()
    for at in range(count):
        kind = chance.choice(list(good))
        body = good[kind]
        for _ in range(chance.randint(1, 6)):
            body = damaged(body, chance)
        if body.startswith(PNG_HEAD) and chance.random() < 0.8:
            body = formats.with_right_sums(body)
        yield Upload(f"{kind}, damage {seed}.{at}", body, allowed=EITHER)

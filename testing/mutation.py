"""Damage inputs at random, byte by byte and piece by piece, as a random generator determines.

A piece is what a format repeats: a segment or a scan of a JPEG, a chunk of a PNG or WebP, a tag of
a TIFF, a field of a message, a word of a text. A small input is expensive if a piece is repeated.
"""

from __future__ import annotations

import base64
import json
import random
import re
import struct
from collections.abc import Sequence

from handler.contract import kind_of
from testing.formats import PNG_HEAD, packed, with_right_sums

ODD_BYTES = b"\x00\x01\x7f\x80\xfe\xff"
ODD_NUMBERS = (0, 1, 3, 16, 0x7F, 0xFF, 5_000, 0x7FFF, 0xFFFF, 1_000_000, 0x7FFFFFFF, 0xFFFFFFFF)
# The bytes of a value, by its type in a TIFF.
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_LONG = 4
# Tags: width, height, rows of a strip, width and height of a tile; of strips and tiles.
_SIZES, _PLACES, _LENGTHS = (256, 257, 278, 322, 323), (273, 324), (279, 325)
_SOME_TAGS = (*_SIZES, *_PLACES, *_LENGTHS, 258, 259, 262, 266, 274, 277, 284, 317, 338, 339, 530)

# The type, and the bytes of the values, of each tag.
Tags = dict[int, tuple[int, bytes]]


def mutated(body: bytes, chance: random.Random, others: Sequence[bytes], largest: int) -> bytes:
    """Damage a body one to six times; repair its signature, checksums and lengths most times."""
    kind, start = kind_of(body), body[:12]
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        way = chance.random()
        if way < 0.4:
            body = damaged(body, chance)
        elif body[:4] == b"II*\0" and way < 0.9:
            body = _with_other_tag(body, chance)
        else:
            body = _with_other_pieces(body, chance, chance.choice(others), largest)
        body = body[:largest]
    if chance.random() < 0.2:
        return body
    return _repaired(body if kind_of(body) == kind else start + body[12:])


def mutated_fields(
    body: bytes, chance: random.Random, others: Sequence[bytes], largest: int
) -> bytes:
    """Damage one field of a JSON document of texts."""
    fields: dict[str, str] = json.loads(body)
    name = chance.choice(list(fields))
    alike = [json.loads(other)[name].encode("latin-1") for other in others]
    value = mutated(fields[name].encode("latin-1"), chance, alike, largest)
    return json.dumps(fields | {name: value.decode("latin-1")}).encode()


def mutated_instances(
    body: bytes, chance: random.Random, others: Sequence[bytes], largest: int
) -> bytes:
    """Damage a JSON document of images; most times one of the images, and repeat it."""
    try:
        texts = [each["b64"] for each in json.loads(body)["instances"]]
        at = chance.randrange(len(texts))
        image = base64.b64decode(texts[at])
    except (ValueError, TypeError, KeyError, RecursionError):
        return mutated(body, chance, others, largest)
    if chance.random() < 0.3:
        return mutated(body, chance, others, largest)
    text = base64.b64encode(mutated(image, chance, [image], largest // 2)).decode()
    most = max(1, (largest - len(body)) // (len(text) + 20))
    texts[at : at + 1] = [text] * min(most, chance.choice((1, 1, 8, 128)))
    return json.dumps({"instances": [{"b64": each} for each in texts]}).encode()


def damaged(body: bytes, chance: random.Random) -> bytes:
    """Damage a body once."""
    # Half of the time in the header, which holds the sizes.
    reach = min(len(body), 128) if chance.random() < 0.5 else len(body)
    at = chance.randrange(reach) if reach else 0
    head, tail = body[:at], body[at:]
    damage = chance.choice(
        ("flip", "overwrite", "number", "number", "cut", "take", "repeat", "insert")
    )
    if damage == "flip":
        return head + bytes([tail[0] ^ 1 << chance.randrange(8)]) + tail[1:] if tail else body
    if damage == "overwrite":
        return head + bytes(chance.choices(ODD_BYTES, k=chance.randint(1, 8))) + tail[1:]
    if damage == "number":
        width, order = chance.choice((2, 4)), chance.choice(("<", ">"))
        number = chance.choice(ODD_NUMBERS) & (1 << 8 * width) - 1
        return head + struct.pack(f"{order}{'H' if width == 2 else 'I'}", number) + tail[width:]
    if damage == "cut":
        return body[: chance.randint(0, len(body))]
    if damage == "take":
        return head + tail[chance.randint(1, 64) :]
    if damage == "repeat":
        return head + tail[: chance.randint(1, 256)] * chance.randint(2, 50) + tail
    return head + chance.randbytes(chance.randint(1, 64)) + tail


def pieces(body: bytes) -> list[bytes]:
    """Split an input into pieces; joined, they are the input."""
    match kind_of(body):
        case "JPEG":
            return re.split(rb"(?=\xff[\xc0-\xfe])", body)
        case "PNG":
            return _chunks(body, len(PNG_HEAD), ">I", 0, 12)
        case "WEBP":
            return _chunks(body, 12, "<I", 4, 8)
        case "BMP":
            return [body[:54], *(body[at : at + 4] for at in range(54, len(body), 4))]
    if body[:1] in (b"I", b"L"):
        # Java's message to a worker.
        return _chunks(body, 1, "!i", 0, 4)
    return re.split(rb"(?<=[,:{}\[\]\r\n ])", body)


def _chunks(body: bytes, at: int, form: str, place: int, around: int) -> list[bytes]:
    """Split chunks: their length is at a place in them, and does not count the bytes around."""
    found = [body[:at]]
    while at + 8 <= len(body):
        [length] = struct.unpack_from(form, body, at + place)
        end = at + around + max(0, length)
        # A WebP's chunks have an even length.
        end += length % 2 if form == "<I" else 0
        found.append(body[at:end])
        at = end
    return [*found, body[at:]]


def _with_other_pieces(body: bytes, chance: random.Random, other: bytes, largest: int) -> bytes:
    parts = pieces(body)
    at, to = (chance.randrange(len(parts)) for _ in range(2))
    match chance.choice(("repeat", "repeat", "drop", "move", "splice", "damage")):
        case "repeat":
            most = 1 + largest // max(1, len(parts[at]))
            parts[at] *= min(most, int(2 ** chance.uniform(1, 20)))
        case "drop":
            del parts[at]
        case "move":
            parts.insert(to, parts.pop(at))
        case "splice":
            parts.insert(at, chance.choice(pieces(other)))
        case _:
            parts[at] = damaged(parts[at], chance)
    return b"".join(parts)


def _repaired(body: bytes) -> bytes:
    if body.startswith(PNG_HEAD):
        return with_right_sums(body)
    if kind_of(body) == "WEBP":
        return body[:4] + struct.pack("<I", len(body) - 8) + body[8:]
    return body


def _with_other_tag(body: bytes, chance: random.Random) -> bytes:
    """Change a tag of a TIFF, then most times give it as many strips or tiles as it needs."""
    try:
        tags = _tags(body)
    except struct.error:
        return damaged(body, chance)
    tag = chance.choice((*tags, *_SOME_TAGS))
    kind, values = tags.get(tag, (_LONG, b""))
    match chance.choice(("number", "number", "repeat", "drop", "type", "zeros")):
        case "number":
            number = chance.choice(ODD_NUMBERS) >> chance.randrange(8)
            tags[tag] = _LONG, struct.pack("<I", number) + values[4:]
        case "repeat":
            tags[tag] = kind, values * int(2 ** chance.uniform(1, 20) / (1 + len(values) / 4))
        case "drop":
            tags.pop(tag, None)
        case "type":
            tags[tag] = chance.choice(list(_WIDTHS)), values
        case _:
            zeros, place = packed(1 << chance.randint(10, 27)), len(body)
            body += zeros
            other = dict.fromkeys(_PLACES, place) | dict.fromkeys(_LENGTHS, len(zeros)) | {259: 8}
            tags |= {t: (_LONG, struct.pack("<I", other[t])) for t in other if t in tags}
    if chance.random() < 0.8:
        _complete(tags)
    return _with_tags(body, tags)


def _tags(body: bytes) -> Tags:
    [start] = struct.unpack_from("<I", body, 4)
    [count] = struct.unpack_from("<H", body, start)
    found: Tags = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number, place = struct.unpack_from("<HHII", body, at)
        size = number * _WIDTHS.get(kind, 1)
        where = at + 8 if size <= 4 else place
        found[tag] = kind, body[where : where + size]
    return found


def _complete(tags: Tags) -> None:
    """Repeat the places and lengths of strips or tiles as often as the size needs them."""

    def first(tag: int) -> bytes:
        kind, values = tags.get(tag, (_LONG, b""))
        return values[: _WIDTHS.get(kind, 1)]

    width, height, rows, across, down = (int.from_bytes(first(t), "little") or 1 for t in _SIZES)
    tiled = -(-width // across) * -(-height // down)
    needed = tiled if 322 in tags else -(-height // rows)
    for tag in tags.keys() & {*_PLACES, *_LENGTHS}:
        kind, values = tags[tag]
        if (one := first(tag)) and needed < 1 << 20:
            tags[tag] = kind, values + one * (needed - len(values) // len(one))


def _with_tags(body: bytes, tags: Tags) -> bytes:
    """Write other tags behind the body of a TIFF."""
    body += bytes(len(body) % 2)
    entries = b""
    for tag, (kind, values) in sorted(tags.items()):
        place, count = values.ljust(4, b"\0"), len(values) // _WIDTHS.get(kind, 1)
        if len(values) > 4:
            place = struct.pack("<I", len(body))
            body += values + bytes(len(values) % 2)
        entries += struct.pack("<HHI", tag, kind, count) + place
    start = struct.pack("<I", len(body))
    return body[:4] + start + body[8:] + struct.pack("<H", len(tags)) + entries + bytes(4)

"""What the fuzzer runs: the decoder, the payload parser, the worker's messages, and the edge."""

from __future__ import annotations

import base64
import io
import json
import logging
import random
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from PIL import Image

from handler.contract import kind_of
from handler.payload import parse
from handler.preprocessing import MAX_COST, InputError, open_image, squashed, within_field
from serving.settings import ROOT
from testing import hostile
from testing.formats import encoded, packed, png, tiff
from testing.mutation import mutated, mutated_fields

WRONG = "wrong"
JSON_TYPE = "application/json"

# Return the outcome, in words that group inputs, and CPU milliseconds if spent elsewhere.
Run = Callable[[bytes], tuple[str, float | None]]


@dataclass(frozen=True)
class Target:
    """What to run, in a process that `prepare` sets up, and what an input may cost there."""

    name: str
    seeds: Callable[[], list[bytes]]
    prepare: Callable[[], Run]
    base_ms: float
    ms_per_kb: float
    # Of the time.
    share: int = 1
    mutate: Callable[[bytes, random.Random, Sequence[bytes], int], bytes] = mutated

    def bound(self, body: bytes) -> float:
        return self.base_ms + self.ms_per_kb * len(body) / 1024


def _decoder() -> Run:
    def run(body: bytes) -> tuple[str, None]:
        try:
            opened = open_image(body)
            assert opened.cost <= MAX_COST
            image = opened.decode(within_field if len(body) % 2 else squashed)
        except InputError as error:
            cause = error.__cause__
            return f"{error.code} {type(cause).__name__} {_words(str(cause or error))}", None
        assert image.pixels.shape[2] == 3
        assert max(image.pixels.shape) <= 320
        # More expensive inputs are new outcomes, and parents of others.
        return f"200 {kind_of(body)} {opened.cost.bit_length()}", None

    return run


def _words(text: str) -> str:
    return re.sub(r"[^A-Za-z ].*", "", text)[:40]


def _outcome(row: Mapping[str, Any], headers: Mapping[str, Any]) -> str:
    try:
        payload = parse(row, headers)
    except InputError as error:
        return error.message
    kinds = {each.message if isinstance(each, InputError) else "bytes" for each in payload.images}
    return f"{payload.many} {sorted(kinds)} {len(payload.images).bit_length()}"


def _payload() -> Run:
    from serving.torchserve.worker import _decoded

    headers = {"body": {"content-type": JSON_TYPE}}
    return lambda body: (_outcome({"body": _decoded(body, JSON_TYPE)}, headers), None)


class _Escaped(BaseException):
    """What the worker does not catch."""


def _worker() -> Run:
    from ts.context import Context

    from serving.torchserve import worker

    logging.disable()
    seen: list[str] = []

    def handle(rows: Sequence[Mapping[str, Any]], context: Context) -> list[str]:
        try:
            seen.extend(
                _outcome(row, context.get_all_request_header(index))
                for index, row in enumerate(rows)
            )
        except Exception as error:
            raise _Escaped(repr(error)) from error
        return [""] * len(rows)

    system: Any = (16, None, "0", True, SimpleNamespace(), {})
    model = worker.Model(Context("fuzz", "", {}, *system), handle)
    vars(worker)["_load"] = lambda *_: model

    def served(body: bytes, size: int) -> tuple[str, list[bytes]]:
        file, sent = io.BytesIO(b"L" + body), list[bytes]()
        message = worker.Message(lambda most: file.read(min(most, size)))

        try:
            worker.serve(message, sent.append, SimpleNamespace())
        except (worker.Hangup, ValueError) as error:
            return f"{type(error).__name__} {_words(str(error))}", sent
        except _Escaped as error:
            raise RuntimeError(str(error)) from error
        raise AssertionError("The worker must serve until the end.")

    def run(body: bytes) -> tuple[str, None]:
        seen.clear()
        end, replies = served(body, len(body) + 1)
        outcome = f"{end} {seen[:3]}"
        # The same in parts.
        if len(body) < 1 << 16:
            assert served(body, 1 + len(body) // 7) == (end, replies)
        for reply in replies:
            _read_reply(worker.Message(io.BytesIO(reply).read), worker.END)
        return outcome, None

    return run


def _read_reply(reply: Any, end: int) -> None:
    """Read a reply as TorchServe's Java does."""
    reply.number(), reply.text()
    while (length := reply.number()) != end:
        _id, _type = reply.raw(length), reply.text()
        _status, _reason = reply.number(), reply.text()
        for _ in range(2 * reply.number()):
            reply.text()
        reply.text()


def _edge() -> Run:
    command = ["node", str(ROOT / "testing" / "fuzz_edge.mjs")]
    node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert node.stdin
    assert node.stdout
    stdin, stdout = node.stdin, node.stdout

    def run(body: bytes) -> tuple[str, float]:
        stdin.write(body.strip() + b"\n")
        stdin.flush()
        outcome, milliseconds = json.loads(stdout.readline())
        return outcome, milliseconds

    return run


def _images() -> list[bytes]:
    others = [
        upload.body
        for upload in hostile.collection()
        if isinstance(upload.made, bytes) and kind_of(upload.made)
    ]
    # Flat ones, which are small but large to decode.
    side, flat = 1000, Image.new("RGBA", (1000, 1000))
    deep = png(side, side, packed(side * (1 + 8 * side)), depth=16, colour=6)
    progressive = encoded(flat.convert("RGB"), "JPEG", progressive=True)
    large = [deep, progressive, encoded(flat, "WEBP"), hostile.large_tiff(side, side)]
    return [*hostile.seeds().values(), *others, *large, tiff(64, 48, packed(768), 8, (16, 16))]


def _documents() -> list[bytes]:
    image = base64.b64encode(hostile.small("JPEG")).decode()
    instances = ([{"b64": image}], [{"b64": "AA=="}, {"b64": ""}], [{"b64": "AAAA"}] * 128)
    return [json.dumps({"instances": each}).encode() for each in instances]


def _messages() -> list[bytes]:
    number = b"\xff\xff\xff\xff"

    def field(text: str | bytes) -> bytes:
        data = text.encode() if isinstance(text, str) else text
        return len(data).to_bytes(4, "big") + data

    def message(*inputs: tuple[str, str, bytes]) -> bytes:
        values = b"".join(field(each) for row in inputs for each in row)
        return b"I" + field("id") + field("Host") + field("here") + number + values + 2 * number

    image, document = hostile.small("JPEG"), b'{"instances": [{"b64": "AA=="}]}'
    return [
        message(("body", "image/jpeg", image)),
        message(("body", JSON_TYPE, document)),
        message(("a", "image/png", b"1"), ("b", "", b"2"), ("c", "text/plain", b"3")),
        2 * message(("body", JSON_TYPE, document)),
    ]


def _edge_requests() -> list[bytes]:
    fields = json.loads((ROOT / "tests" / "corpus" / "edge" / "request.json").read_text())
    return [
        json.dumps(fields | other).encode()
        for other in (
            {},
            {"reply": "{}", "status": "500"},
            {"status": "503"},
            {"status": "400"},
        )
    ]


TARGETS = {
    target.name: target
    for target in (
        Target("decoder", _images, _decoder, 600, 0.1, share=5),
        Target("payload", _documents, _payload, 50, 0.1),
        Target("worker", _messages, _worker, 50, 0.1),
        Target("edge", _edge_requests, _edge, 200, 3, mutate=mutated_fields),
    )
}

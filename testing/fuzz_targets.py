"""What the fuzzer runs: the decoder, the payload parsers, the worker's messages, and the edge."""

from __future__ import annotations

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

from handler import inference_protocol
from handler.bounds import FIELD, MAX_COST, InputError
from handler.contract import kind_of
from handler.payload import FORM_TYPE, parse
from handler.preprocessing import (
    OpenedImage,
    decode_opened,
    open_all,
    open_image,
    squashed,
    within_field,
)
from serving.settings import ROOT
from testing import hostile
from testing.mutation import mutated, mutated_fields, mutated_instances

CORPUS = ROOT / "tests" / "corpus"
WRONG = "wrong"
JSON = hostile.JSON

# Return the outcome, in words that group inputs, and CPU milliseconds if spent elsewhere.
Run = Callable[[bytes], tuple[str, float | None]]


@dataclass(frozen=True)
class Target:
    """What to run in a child, set up by `prepare`, and what an input may cost."""

    name: str
    prepare: Callable[[], Run]
    base_ms: float
    ms_per_kb: float
    # Of the time.
    share: int = 1
    mutate: Callable[[bytes, random.Random, Sequence[bytes], int], bytes] = mutated

    def bound(self, body: bytes) -> float:
        return self.base_ms + self.ms_per_kb * len(body) / 1024

    def seeds(self) -> list[bytes]:
        made = hostile.seeds().values() if self.name == "decoder" else ()
        return [*made, *(path.read_bytes() for path in sorted((CORPUS / self.name).iterdir()))]


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
        assert max(image.pixels.shape) <= FIELD
        # A more expensive image is a new outcome.
        return f"200 {kind_of(body)} {opened.cost.bit_length()}", None

    return run


def _words(text: str) -> str:
    return re.sub(r"[^A-Za-z ].*", "", text)[:40]


def _parsed(row: Mapping[str, Any], headers: Mapping[str, Any]) -> list[bytes | InputError]:
    try:
        return parse(row, headers).images
    except InputError as error:
        return [error]


def _kinds(images: Sequence[Any]) -> str:
    kinds = {getattr(each, "message", type(each).__name__) for each in images}
    return f"{len(images).bit_length()} {sorted(kinds)}"


def _payload() -> Run:
    from serving.torchserve.worker import _decoded

    def run(body: bytes) -> tuple[str, None]:
        row, headers = {"body": _decoded(body, JSON)}, {"body": {"content-type": JSON}}
        return _all_decoded(_parsed(row, headers)), None

    return run


def _form() -> Run:
    headers = {FORM_TYPE: "multipart/form-data; boundary=b"}

    def run(body: bytes) -> tuple[str, None]:
        return _all_decoded(_parsed({"body": body}, headers)), None

    return run


def _inference() -> Run:
    card = {"version": "1.0", "classes": ["A"]}

    def run(body: bytes) -> tuple[str, None]:
        # The first line is the header.
        length, _, request = body.partition(b"\n")
        try:
            payload, wanted = inference_protocol.parse(request, length.decode("latin-1") or None)
        except InputError as error:
            return f"{error.code} {error}", None
        document, binary = inference_protocol.encode("fuzz", card, wanted, [{}])
        assert json.loads(document[:binary])["model_version"] == "1.0"
        return _all_decoded(payload.images), None

    return run


def _all_decoded(images: list[bytes | InputError]) -> str:
    opened = open_all(images)
    cost = sum(each.cost for each in opened if isinstance(each, OpenedImage))
    assert cost <= MAX_COST
    decoded = [decode_opened(each, squashed) for each in opened]
    return f"{cost.bit_length()} {_kinds(decoded)}"


class _Escaped(BaseException):
    """An exception that the worker would catch."""


def _worker() -> Run:
    # A worker's program: only for a process of its own.
    from ts.context import Context

    from serving.torchserve import worker

    logging.disable()
    seen: list[str] = []

    def handle(rows: Sequence[Mapping[str, Any]], context: Any) -> list[str]:
        headers = (context.get_all_request_header(index) for index in range(len(rows)))
        try:
            seen.extend(map(_kinds, map(_parsed, rows, headers)))
        except Exception as error:
            raise _Escaped from error
        return [""] * len(rows)

    system: Any = (16, None, "0", True, SimpleNamespace(), {})
    model = worker.Model(Context("fuzz", "", {}, *system), handle)
    vars(worker)["_load"] = lambda *_: model

    def served(body: bytes, size: int) -> tuple[str, list[bytes]]:
        """Serve a connection that brings at most `size` bytes at once, until it ends."""
        file, sent = io.BytesIO(b"L" + body), list[bytes]()
        message = worker.Message(lambda most: file.read(min(most, size)))
        try:
            worker.serve(message, sent.append, SimpleNamespace())
        except (worker.Hangup, ValueError) as error:
            return f"{type(error).__name__} {_words(str(error))}", sent
        except _Escaped as error:
            raise RuntimeError from error
        raise AssertionError("The worker must serve until the end.")

    def run(body: bytes) -> tuple[str, None]:
        seen.clear()
        end, replies = served(body, len(body) + 1)
        outcome = f"{end} {seen[:3]}"
        assert served(body, 1 + len(body) // 7) == (end, replies)
        for reply in replies:
            _read_reply(worker.Message(io.BytesIO(reply).read), worker.END)
        return outcome, None

    return run


def _read_reply(reply: Any, end: int) -> None:
    """Read a reply as TorchServe's Java does."""
    _status, _reason = reply.number(), reply.text()
    while (length := reply.number()) != end:
        _id, _type, _status, _reason = reply.raw(length), reply.text(), reply.number(), reply.text()
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
        stdin.write(json.dumps(json.loads(body)).encode() + b"\n")
        stdin.flush()
        outcome, milliseconds = json.loads(stdout.readline())
        return outcome, milliseconds

    return run


TARGETS = {
    target.name: target
    for target in (
        Target("decoder", _decoder, 600, 0.1, share=5),
        Target("payload", _payload, 600, 0.1, share=3, mutate=mutated_instances),
        Target("form", _form, 600, 0.1),
        Target("inference", _inference, 600, 0.1),
        # Each message is served twice, and may have more requests than a batch.
        Target("worker", _worker, 50, 1),
        Target("edge", _edge, 200, 3, mutate=mutated_fields),
    )
}

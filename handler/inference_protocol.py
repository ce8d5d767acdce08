"""The Open Inference Protocol (KServe v2, Triton): its requests become images, answers tensors.

The edge maps the protocol's paths to predictions. It names in a header what the client requests,
INFER or METADATA, and translates the errors. The body of an inference is JSON with images in
base64; or, in the binary data extension, JSON and then the tensor, where a header gives the length
of the JSON: with length 0, the body is one image.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from handler.payload import Payload, bad_request, check_count, from_base64, wants_embeddings
from handler.verdict import Answer

# Headers: what the client requests, and the length of the JSON.
PROTOCOL, LENGTH = "X-Inference-Protocol", "Inference-Header-Content-Length"
INFER, METADATA = "infer", "metadata"
INPUT = "image"
OUTPUTS = {"label": "BYTES", "verdict": "BYTES", "probabilities": "FP32", "answer": "BYTES"}
# The verdict on an image that cannot be read, beside others that can.
ERROR = "error"
# Limit of the commas, and of each opening bracket, in JSON; 128 images need some hundreds.
MAX_VALUES = 10_000
# An answer returns the id, and has a limit of its own.
MAX_ID = 1024
# What would change the outputs, and is not supported.
_REFUSED = ("classification", "shared_memory_region")
_DIGITS = re.compile("[0-9]{1,8}")
_SIZE = struct.Struct("<I")


@dataclass
class Wanted:
    """How a client wants its answer: the outputs in order, each as binary data or as JSON."""

    outputs: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(OUTPUTS, False))
    id: str | None = None


def parse(body: Any, length: Any) -> tuple[Payload, Wanted]:
    """Parse a request's body and its header LENGTH; raise InputError if it is invalid."""
    if not isinstance(body, (bytes, bytearray)) or not body:
        raise bad_request("The body is empty.")
    if length is None:
        length = str(len(body))
    if not _DIGITS.fullmatch(length) or int(length) > len(body):
        raise bad_request(f"{LENGTH} must be the length of the JSON at the start of the body.")
    if not int(length):
        return Payload([bytes(body)], many=False), Wanted()
    document = _loaded(body[: int(length)])
    parameters = _object(document, "parameters")
    images = _images(_only_input(document), memoryview(body)[int(length) :])
    payload = Payload(images, len(images) > 1, wants_embeddings(parameters))
    return payload, Wanted(_requested(document, parameters), _id(document))


def _loaded(text: bytes | bytearray) -> dict[str, Any]:
    # Each value but the first comes after a comma, or after the bracket that opens it.
    if any(text.count(mark) > MAX_VALUES for mark in (b",", b"[", b"{")):
        raise bad_request("The JSON has too many values.")
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise bad_request("The body must begin with a JSON object.")
    return document


def _only_input(document: Mapping[str, Any]) -> dict[str, Any]:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise bad_request(f'"inputs" must be a list of one tensor, "{INPUT}".')
    [tensor] = inputs
    if tensor.get("name") != INPUT or tensor.get("datatype") != "BYTES":
        raise bad_request(f'The input must have the name "{INPUT}" and the datatype "BYTES".')
    return dict(tensor)


def _images(tensor: Mapping[str, Any], binary: memoryview) -> list[Any]:
    """Return the images of the input tensor: bytes, or the errors in their places."""
    count = _count(tensor.get("shape"))
    check_count(count)
    parameters = _object(tensor, "parameters")
    _check_supported(parameters)
    size, data = parameters.get("binary_data_size"), tensor.get("data")
    if size is None and not binary:
        return [from_base64(text) for text in _strings(data, count)]
    if data is not None or type(size) is not int or size != len(binary):
        raise bad_request('"binary_data_size" must be the number of bytes after the JSON.')
    return _elements(binary, count)


def _count(shape: Any) -> int:
    """Return N of the shape [N] or [N, 1]."""
    sides = shape if isinstance(shape, list) else []
    if not all(type(side) is int for side in sides) or sides[1:] not in ([], [1]) or not sides:
        raise bad_request('The shape of "image" must be [N] or [N, 1].')
    if sides[0] < 1:
        raise bad_request('The tensor "image" is empty.')
    return int(sides[0])


def _strings(data: Any, count: int) -> list[str]:
    """Return the elements of a tensor in JSON, nested or flat."""
    rows = data if isinstance(data, list) else []
    texts = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in rows]
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise bad_request('"data" must have a string in base64 for each image of the shape.')
    return texts


def _elements(tensor: memoryview, count: int) -> list[bytes]:
    """Return the elements of a binary tensor: each has its length before it."""
    found, at = [], 0
    for _ in range(count):
        start = at + _SIZE.size
        if start > len(tensor):
            break
        at = start + _SIZE.unpack_from(tensor, at)[0]
        found.append(bytes(tensor[start:at]))
    if len(found) != count or at != len(tensor):
        raise bad_request("The binary tensor does not have the elements of the shape.")
    return found


def _requested(document: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, bool]:
    """Return the requested outputs: by default all."""
    binary = parameters.get("binary_data_output", False)
    outputs = document.get("outputs") or [{"name": name} for name in OUTPUTS]
    if not isinstance(outputs, list) or len(outputs) > len(OUTPUTS):
        outputs = [None]
    found: dict[str, bool] = {}
    for output in outputs:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS or name in found:
            raise bad_request(f'"outputs" may name each of {", ".join(OUTPUTS)} once.')
        own = _object(output, "parameters")
        _check_supported(own)
        found[name] = own.get("binary_data", binary)
    if not all(isinstance(each, bool) for each in found.values()):
        raise bad_request('"binary_data" and "binary_data_output" must be true or false.')
    return found


def _id(document: Mapping[str, Any]) -> str | None:
    name = document.get("id")
    if name is not None and not (isinstance(name, str) and len(name) <= MAX_ID):
        raise bad_request(f'"id" must be a string of at most {MAX_ID} characters.')
    return name


def _object(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request(f'"{name}" must be an object.')
    return value


def _check_supported(parameters: Mapping[str, Any]) -> None:
    for name in _REFUSED:
        if name in parameters:
            raise bad_request(f'The parameter "{name}" is not supported.')


def encode(
    model: str, card: Mapping[str, Any], wanted: Wanted, answers: Sequence[Answer]
) -> tuple[bytes, int | None]:
    """Return the body for the answers, and the length of its JSON if binary data follows."""
    outputs, tail = [], []
    for name, is_binary in wanted.outputs.items():
        rows = [_value(name, card["classes"], answer) for answer in answers]
        shape = [len(rows), len(card["classes"])] if name == "probabilities" else [len(rows)]
        output: dict[str, Any] = _tensor(name, OUTPUTS[name], shape)
        if is_binary:
            data = b"".join(map(_packed, rows))
            output["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        elif name == "probabilities":
            output["data"] = [share for row in rows for share in row]
        else:
            output["data"] = [text.decode() for text in rows]
        outputs.append(output)
    named = {"model_name": model, "model_version": card["version"]}
    known = {} if wanted.id is None else {"id": wanted.id}
    document = orjson.dumps({**named, **known, "outputs": outputs})
    return b"".join([document, *tail]), len(document) if tail else None


def _value(name: str, classes: Sequence[str], answer: Answer) -> Any:
    """Return an image's element of an output: bytes, or the probabilities of the classes."""
    if name == "answer":
        return orjson.dumps(answer)
    if name == "probabilities":
        shares = answer.get(name, {})
        return [shares.get(each, 0.0) for each in classes]
    # A rejected image has no label.
    return (answer.get(name, ERROR if name == "verdict" else None) or "").encode()


def _packed(value: bytes | list[float]) -> bytes:
    if isinstance(value, bytes):
        return _SIZE.pack(len(value)) + value
    return struct.pack(f"<{len(value)}f", *value)


def metadata(model: str, card: Mapping[str, Any]) -> bytes:
    """Return the model's metadata; the edge adds the versions that serve."""
    shapes = {"probabilities": [-1, len(card["classes"])]}
    outputs = [_tensor(name, kind, shapes.get(name, [-1])) for name, kind in OUTPUTS.items()]
    document = {
        "name": model,
        "versions": [card["version"]],
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(INPUT, "BYTES", [-1])],
        "outputs": outputs,
        # The protocol has no lists here.
        "parameters": {"classes": ",".join(card["classes"])},
    }
    return orjson.dumps(document)


def _tensor(name: str, kind: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": kind, "shape": shape}

"""Parse one request body, as TorchServe passes it, into images.

A body is the bytes of one image, multipart with an image in each field, or KServe v1 JSON:
`{"instances": [{"b64": "..."}, ...]}`.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pybase64

from handler.bounds import InputError, empty, too_large, unsupported
from handler.contract import MAX_BYTES

MAX_IMAGES = 128


@dataclass
class Payload:
    """The images of one request: the bytes of each, or the error in its place."""

    images: list[bytes | InputError]
    # The answer is a list, even of one image.
    many: bool


def parse(row: Mapping[str, Any], header: Mapping[str, Any]) -> Payload:
    """Parse one row of TorchServe's batch; raise InputError if the request as a whole is invalid.

    A row is `{"body": value}` for a plain body and `{field: value, ...}` for multipart; a value is
    bytes, str for text, or parsed JSON. `header` has the type of each field:
    `{field: {"content-type": type}}`.
    """
    body = row.get("body")
    if isinstance(body, dict) or header.get("body") == {"content-type": "application/json"}:
        return Payload([_instance(each) for each in _instances(body)], many=True)
    # Form fields that are not files have no content type.
    values = [
        value
        for name, value in row.items()
        if name == "body" or header.get(name) != {"content-type": ""}
    ]
    if not values:
        raise unsupported() if row else empty()
    _check_count(len(values))
    return Payload([_image(value) for value in values], many=len(values) > 1)


def _instances(body: Any) -> list[Any]:
    instances = body.get("instances") if isinstance(body, dict) else None
    if not isinstance(instances, list) or not instances:
        raise _bad_request('JSON must be {"instances": [{"b64": "<image in base64>"}, ...]}.')
    _check_count(len(instances))
    return instances


def _instance(instance: Any) -> bytes | InputError:
    text = instance.get("b64") if isinstance(instance, dict) else None
    if not isinstance(text, str):
        return _bad_request('An instance must be {"b64": "<image in base64>"}.')
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        return too_large("bytes")
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return _bad_request("An instance's b64 is not base64.")


def _image(value: Any) -> bytes | InputError:
    # TorchServe has decoded bodies of type text or JSON, which are not images.
    return bytes(value) if isinstance(value, (bytes, bytearray)) else unsupported()


def _check_count(count: int) -> None:
    if count > MAX_IMAGES:
        raise InputError(413, "TooManyImages", f"One request may hold {MAX_IMAGES} images.")


def _bad_request(message: str) -> InputError:
    return InputError(400, "BadRequest", message)

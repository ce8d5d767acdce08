"""Parse one request body, as TorchServe passes it, into images.

A body is the bytes of one image, multipart with an image in each field, or KServe v1 JSON:
`{"instances": [{"b64": "..."}, ...]}`, where `"parameters": {"embedding": true}` requests each
cell's embedding. The edge passes multipart on as plain bytes, because Java takes minutes to parse a
hostile form.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pybase64

from handler.bounds import InputError, empty, too_large, unsupported
from handler.contract import MAX_BYTES

MAX_IMAGES = 128
# The parts of a form, and the bytes of the headers of one.
MAX_PARTS, MAX_PART_HEADERS = 256, 1024
# The type of a form that is passed on as plain bytes.
FORM_TYPE = "X-Form-Type"
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s";]{1,70}))', re.IGNORECASE)
_FILE = re.compile(rb";\s*filename\*?=", re.IGNORECASE)


@dataclass
class Payload:
    """The images of one request: the bytes of each, or the error in its place."""

    images: list[bytes | InputError]
    # The answer is a list, even of one image.
    many: bool
    # The answer has the embedding of each cell.
    embeddings: bool = False


def parse(row: Mapping[str, Any], header: Mapping[str, Any]) -> Payload:
    """Parse one row of TorchServe's batch; raise InputError if the request as a whole is invalid.

    A row is `{"body": value}` for a plain body and `{field: value, ...}` for multipart; a value is
    bytes, str for text, or parsed JSON. `header` has the type of each field:
    `{field: {"content-type": type}}`, and the headers of the request.
    """
    body, form_type = row.get("body"), header.get(FORM_TYPE)
    # Not a text, it is the type of a field of this name.
    if isinstance(form_type, str) and isinstance(body, (bytes, bytearray)):
        files = _files(body, form_type)
        return Payload([*files], many=len(files) > 1)
    if isinstance(body, dict) or header.get("body") == {"content-type": "application/json"}:
        return _document(body)
    # Form fields that are not files have no content type.
    values = [
        value
        for name, value in row.items()
        if name == "body" or header.get(name) != {"content-type": ""}
    ]
    if not values:
        raise unsupported() if row else empty()
    check_count(len(values))
    return Payload([_image(value) for value in values], many=len(values) > 1)


def _files(form: bytes | bytearray, kind: str) -> list[bytes]:
    """Return the files of a form (RFC 7578); its other fields are ignored."""
    boundary = _BOUNDARY.search(kind)
    if not boundary:
        raise bad_request("The form has no boundary.")
    delimiter = f"\r\n--{boundary[1] or boundary[2]}".encode()
    # One more than the parts and the final boundary.
    _preamble, *parts = (b"\r\n" + form).split(delimiter, MAX_PARTS + 2)
    if len(parts) > MAX_PARTS + 1:
        raise InputError(413, "TooManyImages", f"A form may have {MAX_PARTS} parts.")
    if not parts or not parts.pop().startswith(b"--"):
        raise bad_request("The form has no final boundary, or its lines do not end with CRLF.")
    files = []
    for part in parts:
        headers, separator, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if not separator or len(headers) > MAX_PART_HEADERS:
            raise bad_request("The headers of a part of the form cannot be read.")
        if _FILE.search(headers):
            files.append(content)
    if not files:
        raise unsupported()
    check_count(len(files))
    return files


def _document(body: Any) -> Payload:
    """Read the JSON of KServe v1."""
    instances = body.get("instances") if isinstance(body, dict) else None
    if not isinstance(instances, list) or not instances:
        raise bad_request('JSON must be {"instances": [{"b64": "<image in base64>"}, ...]}.')
    check_count(len(instances))
    embeddings = wants_embeddings(body.get("parameters", {}))
    return Payload([_instance(each) for each in instances], True, embeddings)


def wants_embeddings(parameters: Any) -> bool:
    """Return whether the parameters of a request ask for embeddings; raise InputError."""
    embeddings = parameters.get("embedding", False) if isinstance(parameters, dict) else None
    if not isinstance(embeddings, bool):
        raise bad_request('"parameters" must be {"embedding": true} or {"embedding": false}.')
    return embeddings


def _instance(instance: Any) -> bytes | InputError:
    text = instance.get("b64") if isinstance(instance, dict) else None
    if not isinstance(text, str):
        return bad_request('An instance must be {"b64": "<image in base64>"}.')
    return from_base64(text)


def from_base64(text: str) -> bytes | InputError:
    """Return an image, or the error in its place."""
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        return too_large("bytes")
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return bad_request("The image is not base64.")


def _image(value: Any) -> bytes | InputError:
    # TorchServe has decoded bodies of type text or JSON, which are not images.
    return bytes(value) if isinstance(value, (bytes, bytearray)) else unsupported()


def check_count(count: int) -> None:
    """Raise InputError if a request has too many images."""
    if count > MAX_IMAGES:
        raise InputError(413, "TooManyImages", f"One request may hold {MAX_IMAGES} images.")


def bad_request(message: str) -> InputError:
    """Return the error of a request that is malformed."""
    return InputError(400, "BadRequest", message)

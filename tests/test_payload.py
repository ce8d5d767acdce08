"""Forms that the edge passes on as plain bytes, and the parameters of JSON."""

from __future__ import annotations

from typing import Any

import pytest

from handler.bounds import InputError
from handler.payload import FORM_TYPE, MAX_IMAGES, MAX_PART_HEADERS, MAX_PARTS, Payload, parse

KIND = "multipart/form-data; boundary=b"
END = b"--b--\r\n"


def part(content: bytes, headers: bytes = b'Content-Disposition: form-data; filename="a"') -> bytes:
    return b"--b\r\n%b\r\n\r\n%b\r\n" % (headers, content)


def parsed(form: bytes, kind: str = KIND) -> Payload:
    return parse({"body": bytearray(form)}, {FORM_TYPE: kind})


def refusal(form: bytes, kind: str = KIND) -> tuple[int, str]:
    with pytest.raises(InputError) as error:
        parsed(form, kind)
    return error.value.code, error.value.type


@pytest.mark.parametrize(
    "kind",
    [
        KIND,
        'multipart/form-data;charset=utf-8;Boundary="b"',
        "Multipart/Form-Data; boundary=b; charset=utf-8",
    ],
)
def test_files_are_images(kind: str) -> None:
    """Bytes of an image may look like a line, and a file may have the name of another."""
    one, other = b"\r\n--\r\n--c\r\n\r\n", b"1--b--"
    assert parsed(part(one) + END, kind) == Payload([one], False)
    assert parsed(part(one) + part(other) + END, kind) == Payload([one, other], True)


def test_fields_preamble_and_epilogue_are_ignored() -> None:
    field = part(b"1", b'Content-Disposition: form-data; name="a"')
    starred = part(b"2", b"content-disposition: form-data; FileName*=utf-8''a")
    assert parsed(b"preamble\r\n" + field + starred + END + b"epilogue") == Payload([b"2"], False)
    assert refusal(field + END) == (415, "UnsupportedImage")
    assert refusal(END) == (415, "UnsupportedImage")


@pytest.mark.parametrize("cut_off", [b"--b", b"", b"\r\n", b"--b\r\n", b"--b-"])
def test_a_form_without_its_end_is_refused(cut_off: bytes) -> None:
    assert refusal(part(b"1") + cut_off) == (400, "BadRequest")
    assert refusal(cut_off) == (400, "BadRequest")


def test_a_form_of_lines_without_carriage_returns_is_refused() -> None:
    assert refusal((part(b"1") + END).replace(b"\r", b"")) == (400, "BadRequest")


def test_a_field_is_not_the_type_of_a_form() -> None:
    """TorchServe passes fields and headers in one dictionary."""
    fields = {name: {"content-type": "image/png"} for name in ("body", FORM_TYPE)}
    row = {"body": bytearray(b"1"), FORM_TYPE: bytearray(b"2")}
    assert parse(row, fields) == Payload([b"1", b"2"], True)


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary="])
def test_a_form_without_a_boundary_is_refused(kind: str) -> None:
    assert refusal(part(b"1") + END, kind) == (400, "BadRequest")


def test_parts_and_their_headers_are_bounded() -> None:
    field = part(b"1", b'Content-Disposition: form-data; name="a"')
    most = (MAX_PARTS - 1) * field + part(b"1") + END
    assert parsed(most) == Payload([b"1"], False)
    assert refusal(field + most) == (413, "TooManyImages")
    assert refusal((MAX_IMAGES + 1) * part(b"1") + END) == (413, "TooManyImages")
    headers = b"Content-Disposition: form-data; filename=a".ljust(MAX_PART_HEADERS)
    assert parsed(part(b"1", headers) + END) == Payload([b"1"], False)
    for bad in (part(b"1", headers + b" "), b"--b\r\nno end of the headers\r\n"):
        assert refusal(bad + END) == (400, "BadRequest")


IMAGE = {"b64": "aQ=="}


@pytest.mark.parametrize(
    ("document", "embeddings"),
    [
        ({}, False),
        ({"parameters": {}}, False),
        ({"parameters": {"embedding": False}}, False),
        ({"parameters": {"embedding": True}}, True),
        ({"parameters": {"embedding": True, "other": 1}}, True),
        # Parameters are of a request, not of an image.
        ({"instances": [IMAGE | {"parameters": {"embedding": True}}]}, False),
        ({"embedding": True}, False),
    ],
)
def test_json_can_request_embeddings(document: dict[str, Any], embeddings: bool) -> None:
    assert parse({"body": {"instances": [IMAGE], **document}}, {}) == Payload(
        [b"i"], True, embeddings
    )


@pytest.mark.parametrize("parameters", [None, [], True, "embedding", 1])
def test_parameters_must_be_an_object(parameters: Any) -> None:
    with pytest.raises(InputError, match="parameters") as error:
        parse({"body": {"instances": [IMAGE], "parameters": parameters}}, {})
    assert (error.value.code, error.value.type) == (400, "BadRequest")


@pytest.mark.parametrize("value", [None, 1, 0, "true", [], {}])
def test_an_embedding_is_requested_by_true_or_false(value: Any) -> None:
    with pytest.raises(InputError, match="embedding") as error:
        parse({"body": {"instances": [IMAGE], "parameters": {"embedding": value}}}, {})
    assert (error.value.code, error.value.type) == (400, "BadRequest")


def test_a_field_is_not_a_parameter() -> None:
    row = {"parameters": b'{"embedding": true}', "image": b"1"}
    header = {"parameters": {"content-type": ""}, "image": {"content-type": "image/png"}}
    assert parse(row, header) == Payload([b"1"], False)

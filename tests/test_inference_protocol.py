"""The Open Inference Protocol in the handler: bodies become images, answers become tensors."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.bounds import InputError
from handler.contract import MAX_BYTES
from handler.inference_protocol import (
    MAX_ID,
    MAX_VALUES,
    OUTPUTS,
    Wanted,
    encode,
    metadata,
    parse,
)
from handler.payload import MAX_IMAGES, Payload

CARD = {"version": "3.0", "classes": ["A", "B"]}
IMAGES = st.lists(st.binary(max_size=40), min_size=1, max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


def tensor(count: int = 1, **members: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "BYTES", "shape": [count], **members}


def encoded(*images: bytes) -> list[str]:
    return [base64.b64encode(image).decode() for image in images]


def packed(*images: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def parsed(
    *inputs: Any, binary: bytes = b"", length: str | None = None, **members: Any
) -> tuple[Payload, Wanted]:
    document = json.dumps({"inputs": inputs, **members}).encode()
    if length is None and binary:
        length = str(len(document))
    return parse(document + binary, length)


def parsed_binary(binary: bytes, count: int = 1, **members: Any) -> tuple[Payload, Wanted]:
    parameters = {"binary_data_size": len(binary)}
    return parsed(tensor(count, parameters=parameters, **members), binary=binary)


def refusal(call: Any, *arguments: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    return error.value.code, error.value.type


BAD = 400, "BadRequest"
ONE = tensor(data=encoded(b"i"))


@given(IMAGES)
def test_json_and_binary_data_have_the_same_images(images: list[bytes]) -> None:
    expected = Payload([*images], len(images) > 1)
    count, texts = len(images), encoded(*images)
    assert parsed(tensor(count, data=texts))[0] == expected
    # Clients send a column too, flat or nested.
    column = {"shape": [count, 1]}
    assert parsed(tensor(data=texts) | column)[0] == expected
    assert parsed(tensor(data=[[text] for text in texts]) | column)[0] == expected
    assert parsed_binary(packed(*images), count)[0] == expected
    assert parsed_binary(packed(*images), **column)[0] == expected


def test_a_body_without_json_is_one_image() -> None:
    assert parse(b"image", "0") == (Payload([b"image"], False), Wanted())


@pytest.mark.parametrize("length", ["", "x", "-1", "1.0", "+1", " 1", "\u0661", "99", 9 * "9", "1"])
def test_the_length_of_the_json_must_be_right(length: str) -> None:
    assert refusal(parse, b'{"inputs": []}', length) == BAD


def test_a_body_that_is_no_request_is_refused() -> None:
    texts = b"", b"{", b"[]", b"1", b"\xff", 5000 * b"[", b'{"inputs": 1}'
    for body in (None, "text", {}, *texts):
        assert refusal(parse, body, None) == BAD


@pytest.mark.parametrize("mark", ["[],", "{},", "1,"])
def test_json_of_too_many_values_is_not_read(mark: str) -> None:
    body = f'{{"inputs": [{mark * (MAX_VALUES + 1)}1]}}'.encode()
    with pytest.raises(InputError, match="too many values"):
        parse(body, None)


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [ONE, ONE],
        [1],
        [ONE | {"name": "images"}],
        [ONE | {"name": None}],
        [ONE | {"datatype": "UINT8"}],
        [ONE | {"datatype": "bytes"}],
        *([ONE | {"shape": shape}] for shape in (None, 1, "1", [], [0], [-1], [1.0], [True])),
        *([ONE | {"shape": shape}] for shape in ([2], [1, 2], [1, 1, 1], [[1]], [1, True])),
        *([ONE | {"data": data}] for data in (None, "aQ==", [], [1], [None], [[]], [["a", "b"]])),
        *([ONE | {"data": data}] for data in (["a", "b"], [[["aQ=="]]], {"0": "aQ=="})),
        [ONE | {"parameters": 1}],
        [ONE | {"parameters": {"shared_memory_region": "a"}}],
        # There is no binary data.
        [ONE | {"parameters": {"binary_data_size": 0}}],
        [tensor(parameters={"binary_data_size": 4})],
    ],
)
def test_other_inputs_are_refused(inputs: list[Any]) -> None:
    assert refusal(parsed, *inputs) == BAD


def test_images_are_bounded() -> None:
    most = encoded(*(MAX_IMAGES * [b"i"]))
    assert len(parsed(tensor(MAX_IMAGES, data=most))[0].images) == MAX_IMAGES
    too_many = 413, "TooManyImages"
    for count in (MAX_IMAGES + 1, 2**62, 2**70):
        # Before the images are read.
        assert refusal(parsed, tensor(count, data=[])) in (too_many, BAD)
        assert refusal(parsed_binary, b"1234", count) in (too_many, BAD)
    assert refusal(parsed, tensor(MAX_IMAGES + 1, data=[])) == too_many
    large = (MAX_BYTES * 4 // 3 + 8) * "A"
    [image, other] = parsed(tensor(2, data=[large, "aQ=="]))[0].images
    assert isinstance(image, InputError)
    assert (image.code, image.type, other) == (413, "ImageTooLarge", b"i")


def test_what_is_not_base64_is_an_error_in_its_place() -> None:
    payload, _ = parsed(tensor(3, data=["aQ==", "a", "ä"]))
    assert payload.images[0] == b"i"
    assert all(isinstance(each, InputError) and each.code == 400 for each in payload.images[1:])


@pytest.mark.parametrize(
    ("binary", "count"),
    [
        (packed(b"a"), 2),
        (packed(b"a", b"b"), 1),
        (packed(b"abc")[:-1], 1),
        (packed(b"abc") + b"\0", 1),
        (b"\1\0\0", 1),
        (b"\xff\xff\xff\xff" + b"a", 1),
        (packed(b"a") + b"\xff\xff\xff\x7f", 2),
    ],
)
def test_a_binary_tensor_must_have_the_elements_of_its_shape(binary: bytes, count: int) -> None:
    assert refusal(parsed_binary, binary, count) == BAD


@pytest.mark.parametrize("size", [None, 0, -1, 4, 6, 5.0, "5", True, 2**70])
def test_the_size_of_the_binary_data_must_be_right(size: Any) -> None:
    inputs = tensor(parameters={"binary_data_size": size})
    assert refusal(parsed, inputs, binary=packed(b"a")) == BAD


def test_an_input_has_one_kind_of_data() -> None:
    assert refusal(parsed_binary, packed(b"a"), data=["aQ=="]) == BAD


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({}, Wanted()),
        ({"id": "mine", "outputs": []}, Wanted(id="mine")),
        ({"id": MAX_ID * "a"}, Wanted(id=MAX_ID * "a")),
        ({"parameters": {"binary_data_output": True}}, Wanted(dict.fromkeys(OUTPUTS, True))),
        (
            {
                "parameters": {"binary_data_output": True, "timeout": 1},
                "outputs": [
                    {"name": "verdict", "parameters": {"binary_data": False}},
                    {"name": "label"},
                ],
            },
            Wanted({"verdict": False, "label": True}),
        ),
    ],
)
def test_outputs_and_id_are_as_requested(members: dict[str, Any], wanted: Wanted) -> None:
    found = parsed(ONE, **members)[1]
    assert found == wanted
    assert list(found.outputs) == list(wanted.outputs)


@pytest.mark.parametrize(
    "members",
    [
        {"id": 1},
        {"id": (MAX_ID + 1) * "a"},
        {"outputs": 1},
        {"outputs": ["label"]},
        {"outputs": [{"name": "labels"}]},
        {"outputs": [{"name": ["label"]}]},
        {"outputs": 2 * [{"name": "label"}]},
        {"outputs": 5 * [{"name": "label"}]},
        {"outputs": [{"name": "label", "parameters": 1}]},
        {"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
        {"outputs": [{"name": "label", "parameters": {"classification": 2}}]},
        {"outputs": [{"name": "label", "parameters": {"shared_memory_region": "a"}}]},
        {"parameters": []},
        {"parameters": {"binary_data_output": "yes"}},
        {"parameters": {"embedding": 1}},
    ],
)
def test_other_members_are_refused(members: dict[str, Any]) -> None:
    assert refusal(parsed, ONE, **members) == BAD


def test_embeddings_can_be_requested() -> None:
    assert parsed(ONE, parameters={"embedding": True})[0].embeddings


@given(JSON, JSON, JSON, st.binary(max_size=20), st.booleans())
def test_any_json_is_parsed_or_refused(
    value: Any, shape: Any, data: Any, binary: bytes, whole: bool
) -> None:
    documents = [
        value,
        {"inputs": value},
        {"inputs": [ONE | {"shape": shape, "data": data}]},
        {"inputs": [ONE], "outputs": value},
        {"inputs": [ONE | {"parameters": value}], "parameters": data},
    ]
    for document in documents:
        text = json.dumps(document).encode()
        with contextlib.suppress(InputError):
            payload, _ = parse(text + binary, None if whole else str(len(text)))
            assert 1 <= len(payload.images) <= MAX_IMAGES


@given(st.binary(max_size=60), st.integers(0, 130))
def test_any_binary_tensor_is_parsed_or_refused(binary: bytes, count: int) -> None:
    with contextlib.suppress(InputError):
        payload, _ = parsed_binary(binary, count)
        assert packed(*payload.images) == binary


ANSWER = {"label": "A", "verdict": "confident", "probabilities": {"A": 0.75, "B": 0.25}}
REJECTED = {"label": None, "verdict": "rejected", "probabilities": {"A": 0.5, "B": 0.5}}
FAILED = {"code": 400, "type": "CorruptImage", "message": "why"}
COLUMNS: dict[str, list[Any]] = {
    "label": ["A", "", ""],
    "verdict": ["confident", "rejected", "error"],
    "probabilities": [0.75, 0.25, 0.5, 0.5, 0, 0],
}


def test_answers_become_tensors() -> None:
    answers = [ANSWER, REJECTED, FAILED]
    body, length = encode("m", CARD, Wanted(id="mine"), answers)
    assert length is None
    document = json.loads(body)
    outputs = {each["name"]: each for each in document.pop("outputs")}
    assert document == {"model_name": "m", "model_version": "3.0", "id": "mine"}
    assert [json.loads(text) for text in outputs.pop("answer")["data"]] == answers
    assert {name: each["data"] for name, each in outputs.items()} == COLUMNS
    assert outputs["probabilities"]["shape"] == [3, 2]
    assert outputs["label"]["shape"] == [3]


def test_binary_outputs_follow_the_json_in_their_order() -> None:
    wanted = Wanted({"probabilities": True, "label": False, "verdict": True})
    body, length = encode("m", CARD, wanted, [ANSWER, REJECTED, FAILED])
    document = json.loads(body[:length])
    assert "id" not in document
    shares, labels, verdicts = document["outputs"]
    assert shares["parameters"] == {"binary_data_size": 24}
    assert (labels["data"], "data" in shares, "data" in verdicts) == (
        COLUMNS["label"],
        False,
        False,
    )
    tail = body[length:]
    assert [*struct.unpack("<6f", tail[:24])] == COLUMNS["probabilities"]
    assert tail[24:] == packed(b"confident", b"rejected", b"error")
    assert verdicts["parameters"] == {"binary_data_size": len(tail) - 24}


def test_metadata_names_tensors_and_classes() -> None:
    document = json.loads(metadata("m", CARD))
    assert (document["name"], document["versions"]) == ("m", ["3.0"])
    assert document["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert {each["name"]: each["datatype"] for each in document["outputs"]} == OUTPUTS
    assert document["outputs"][2]["shape"] == [-1, 2]
    assert document["parameters"] == {"classes": "A,B"}

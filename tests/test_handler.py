"""The archive in a worker process, over the wire protocol of TorchServe's Java side.

The worker has only the archive; here, `handler` is the repository's. So these tests compare what
is served with what training and evaluation compute.
"""

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VERSIONS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from worker_process import Running, infer_message, load_message

import handler
from handler import payload, pipelines
from handler.bounds import InputError
from handler.contract import KINDS, MAX_BYTES
from handler.inference_protocol import INFER, LENGTH, METADATA, PROTOCOL
from handler.payload import MAX_IMAGES, Payload, parse
from handler.pipelines import Pipeline
from handler.preprocessing import decode
from handler.verdict import Answer, answer
from scripts.draw_cells import draw_cell
from testing.formats import encoded
from training.protocol import FIELD_CLASSES

PACKAGE = Path(handler.__file__).parent
MODULES = {path.name for path in PACKAGE.glob("*.py")} - {"bloodcells_handler.py"}
ROOT = PACKAGE.parent
# Found, not imported: that leaves a file open, which warns.
SPEC = importlib.util.find_spec("ts")
assert SPEC
assert SPEC.origin
TORCHSERVE = Path(SPEC.origin).parent
BATCH_SIZE = 8
MARKER = "Xq7marker"
HOST = {"Host": "localhost"}


@dataclass
class Request:
    """Parameters are (name, content type, value), as TorchServe makes them of HTTP."""

    parameters: Sequence[tuple[str, str, bytes]] = ()
    headers: dict[str, str] = field(default_factory=lambda: HOST)


@dataclass
class Response:
    id: str
    content_type: str
    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def body(data: bytes, content_type: str = "", **headers: str) -> Request:
    return Request([("body", content_type, data)], HOST | headers)


def form(*images: bytes) -> Request:
    return Request([(f"image{at}", "image/png", data) for at, data in enumerate(images)])


def instances(*values: Any) -> Request:
    document = json.dumps({"instances": values}).encode()
    return body(document, "application/json")


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


class Worker(Running):
    """A worker's process, whose replies are read."""

    def __init__(self, model_dir: Path, folder: Path) -> None:
        super().__init__(ROOT / "serving" / "torchserve" / "worker.py", folder, model_dir)

    def load(self, model_dir: Path, batch_size: int = BATCH_SIZE) -> None:
        reply = BytesIO(self.ask(load_message(model_dir, batch_size, model="bloodcells")))
        loaded = number(reply), text(reply)
        assert loaded == (200, "loaded model bloodcells"), self.log.read_text()

    def answers(self, *requests: Request) -> list[Response]:
        """Send a batch; return the responses in its order."""
        message = infer_message(*((each.headers, each.parameters) for each in requests))
        reply = BytesIO(self.ask(message))
        assert (number(reply), text(reply)) == (200, "Prediction success")
        responses = [response(reply) for _ in requests]
        assert [each.id for each in responses] == [f"id-{at}" for at in range(len(requests))]
        assert number(reply) == -1
        return responses

    def answer(self, request: Request) -> Response:
        [only] = self.answers(request)
        return only


def number(reply: BytesIO) -> int:
    return int.from_bytes(reply.read(4), "big", signed=True)


def text(reply: BytesIO) -> str:
    return reply.read(number(reply)).decode()


def response(reply: BytesIO) -> Response:
    name, kind, status, phrase = text(reply), text(reply), number(reply), text(reply)
    headers = {text(reply): text(reply) for _ in range(number(reply))}
    return Response(name, kind, status, phrase, headers, reply.read(number(reply)))


# What does not depend on the networks is tested with those of one version.
ONE_VERSION = pytest.mark.parametrize("archive", VERSIONS[:1], indirect=True)


@pytest.fixture(scope="module", params=VERSIONS)
def archive(request: pytest.FixtureRequest) -> Path:
    return ROOT / "model_store" / f"bloodcells-{request.param}.mar"


@pytest.fixture(scope="module")
def model_dir(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the archive as TorchServe does."""
    folder = tmp_path_factory.mktemp("model")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def worker(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(model_dir, tmp_path_factory.mktemp("w")) as worker:
        worker.load(model_dir)
        yield worker
        assert worker.end() == 0


@pytest.fixture(scope="module")
def card(model_dir: Path) -> Any:
    return json.loads((model_dir / "card.json").read_text())


@pytest.fixture(scope="module")
def pipeline(model_dir: Path, card: Any) -> Pipeline:
    return pipelines.load(model_dir, card, BATCH_SIZE)


def picture(
    seed: int, kind: str = "PNG", size: tuple[int, int] = (320, 240), **options: Any
) -> bytes:
    """Draw a cell, different for each seed, paler than most: a bold one might be 100 % sure."""
    cell = drawn(seed)
    buffer = BytesIO()
    pale = Image.blend(cell, cell.resize((9, 9)).resize(cell.size), 0.3)
    pale.resize(size).save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def drawn(seed: int) -> Image.Image:
    return draw_cell(FIELD_CLASSES[seed % len(FIELD_CLASSES)], seed, (320, 240))


PICTURES = [picture(seed) for seed in range(2 * BATCH_SIZE + 3)]
GOOD = PICTURES[0]
CUT = GOOD[: len(GOOD) // 2]
GIF = picture(0, "GIF")
DAMAGED_EXIF = (
    b"Exif\0\0II*\0\x08\0\0\0\xff",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\xff\0\0\x1a\0\0\0\0\0\0\0",
)
BAD = [
    pytest.param(body(b""), 400, "EmptyImage", id="empty body"),
    pytest.param(Request(), 400, "EmptyImage", id="empty row"),
    pytest.param(body(CUT), 400, "CorruptImage", id="cut"),
    pytest.param(body(GIF), 415, "UnsupportedImage", id="GIF"),
    pytest.param(body(b"\xff\xfe", "text/plain"), 415, "UnsupportedImage", id="no text"),
    pytest.param(Request([("a", "", b"1")]), 415, "UnsupportedImage", id="urlencoded field"),
    pytest.param(body(bytes(MAX_BYTES + 1)), 413, "ImageTooLarge", id="too many bytes"),
    pytest.param(body(b"{", "application/json"), 400, "BadRequest", id="no JSON"),
    pytest.param(body(b"[]", "application/json"), 400, "BadRequest", id="JSON list"),
    pytest.param(body(b"{}", "application/json"), 400, "BadRequest", id="JSON without instances"),
    pytest.param(instances(), 400, "BadRequest", id="no instances"),
    pytest.param(
        body(b'{"instances": {"b64": ""}}', "application/json"),
        400,
        "BadRequest",
        id="instances no list",
    ),
    pytest.param(
        instances(*[b64(b"")] * (MAX_IMAGES + 1)), 413, "TooManyImages", id="too many instances"
    ),
    pytest.param(form(*[b""] * (MAX_IMAGES + 1)), 413, "TooManyImages", id="too many fields"),
]


def ask_directly(pipeline: Pipeline, card: Any, data: bytes) -> Answer:
    """Call the pipeline, as evaluation does."""
    [prediction] = pipeline.predict([decode(data, pipeline.fit)])
    return answer("bloodcells", card, prediction)


@pytest.fixture(scope="module")
def expected(pipeline: Pipeline, card: Any) -> list[Answer]:
    """Return the answers to PICTURES, one at a time."""
    answers = [ask_directly(pipeline, card, data) for data in PICTURES]
    rows = [tuple(np.round([*each["probabilities"].values()], 3)) for each in answers]
    assert len(set(rows)) > BATCH_SIZE, "With equal answers, tests of order could not fail."
    return answers


def are_close(document: Any, expected: Answer) -> bool:
    """Return whether two answers differ by no more than a batch's size rounds."""
    if isinstance(expected, dict):
        return document.keys() == expected.keys() and all(
            are_close(document[name], expected[name]) for name in expected
        )
    if isinstance(expected, list):
        return len(document) == len(expected) and all(map(are_close, document, expected))
    if isinstance(expected, float):
        return document == pytest.approx(expected, rel=0.002, abs=1e-4)  # type: ignore[no-any-return]
    return bool(document == expected)


# Without the repository, by TorchServe's own loader.
ALONE = """
import json, os, sys
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_loader import TsModelLoader

model_dir, metrics = sys.argv[1:]
cache = MetricsCacheYamlImpl(metrics)
cache.initialize_cache()
handler = "bloodcells_handler.py"
service = TsModelLoader().load("bloodcells", model_dir, handler, None, 8, None, True, cache)
service.set_cl_socket(None)
parameters = [{"name": "body", "contentType": "", "value": b"no image"}]
reply = service.predict([{"requestId": b"a", "headers": [], "parameters": parameters}])
unneeded = {"torchvision", "matplotlib", "onnx", "training", "serving", "frontend"}
foreign = sorted(unneeded & set(sys.modules))
ours = [each for name, each in sys.modules.items() if name.startswith(("handler", "bloodcells"))]
print(json.dumps({
    "files": sorted(os.path.relpath(module.__file__, model_dir) for module in ours),
    "foreign": foreign,
    "folder": os.listdir(),
    "unsupported": b'"UnsupportedImage"' in reply,
}))
"""


@ONE_VERSION
def test_the_archive_needs_nothing_else(model_dir: Path, tmp_path: Path) -> None:
    metrics = TORCHSERVE / "configs" / "metrics.yaml"
    process = subprocess.run(
        [sys.executable, "-c", ALONE, model_dir, metrics],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(model_dir)},
        capture_output=True,
    )
    assert process.returncode == 0, process.stderr.decode()
    files = sorted(["bloodcells_handler.py", *(f"handler/{name}" for name in MODULES)])
    assert json.loads(process.stdout) == {
        "files": files,
        "foreign": [],
        "folder": [],
        "unsupported": True,
    }


def test_an_answer_follows_the_contract(worker: Worker, card: Any) -> None:
    for response in worker.answers(*map(body, PICTURES[:4])):
        assert (response.status, response.phrase) == (200, "OK")
        assert response.headers == {
            "content-type": "application/json",
            "X-Model-Version": card["version"],
        }
        document = response.json
        cells = ["cells"] if card["finds_cells"] else []
        assert [*document] == ["model", "version", "label", "verdict", "probabilities", *cells]
        assert (document["model"], document["version"]) == ("bloodcells", card["version"])
        probabilities = document["probabilities"]
        assert list(probabilities) == card["classes"]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        likeliest = max(probabilities, key=probabilities.__getitem__)
        assert document["label"] == (None if document["verdict"] == "rejected" else likeliest)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_answered_as_in_evaluation(
    worker: Worker, pipeline: Pipeline, card: Any, kind: str
) -> None:
    """Whatever content type the client names."""
    data = picture(3, kind, (641, 479))
    for content_type in ("", "image/gif", "x/" + MARKER):
        document = worker.answer(body(data, content_type)).json
        assert are_close(document, ask_directly(pipeline, card, data))


@pytest.mark.parametrize("size", [1, 2, BATCH_SIZE])
def test_the_batch_does_not_change_an_answer(
    worker: Worker, expected: list[Answer], size: int
) -> None:
    responses = worker.answers(*map(body, PICTURES[:size]))
    assert all(are_close(response.json, expected[at]) for at, response in enumerate(responses))


@pytest.fixture
def reload(worker: Worker, model_dir: Path, tmp_path: Path) -> Iterator[Any]:
    """Load the archive with another card or batch size for one test."""

    def load(batch_size: int = BATCH_SIZE, **changes: Any) -> Worker:
        folder = tmp_path / "model"
        shutil.copytree(model_dir, folder, dirs_exist_ok=True)
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps(card | changes))
        worker.load(folder, batch_size)
        return worker

    yield load
    worker.load(model_dir)


@ONE_VERSION
def test_the_card_decides_version_verdict_and_temperature(reload: Any, card: Any) -> None:
    for confident, foreign, verdict in (
        (0, 1, "confident"),
        (1.1, 1, "uncertain"),
        (0, -1, "rejected"),
    ):
        limits = {"confident": confident, "foreign": foreign}
        worker = reload(version="7.5", thresholds=card["thresholds"] | limits)
        document = worker.answer(body(GOOD)).json
        assert (document["version"], document["verdict"]) == ("7.5", verdict)
        assert (document["label"] is None) == (verdict == "rejected")
    sharp, flat = (
        reload(temperature=card["temperature"] * factor).answer(body(GOOD)).json
        for factor in (0.5, 4)
    )
    assert max(sharp["probabilities"].values()) > max(flat["probabilities"].values())


@pytest.mark.parametrize("batch_size", [1, 3, BATCH_SIZE])
@ONE_VERSION
def test_more_images_than_the_batch_size_are_answered_in_order(
    reload: Any, expected: list[Answer], batch_size: int
) -> None:
    worker = reload(batch_size)
    for request in (form(*PICTURES), instances(*map(b64, PICTURES))):
        documents = worker.answer(request).json["predictions"]
        assert len(documents) == len(PICTURES)
        assert all(map(are_close, documents, expected))


@ONE_VERSION
@pytest.mark.parametrize(
    "request_",
    [
        form(GOOD),
        # TorchServe passes a field that is no file without a content type.
        Request([("note", "", b"a word"), ("image", "image/png", GOOD)]),
        Request([("explain", "image/png", GOOD)]),
        # A client's own header; only TorchServe describes.
        body(GOOD, describe="True"),
        Request([("body", "", GOOD)], {"describe": "True"}),
    ],
    ids=["form", "field beside it", "field named explain", "describe", "describe alone"],
)
def test_one_image_has_one_answer(worker: Worker, request_: Request) -> None:
    document = worker.answer(body(GOOD)).json
    assert "heat_map" not in document
    assert worker.answer(request_).json == document
    assert worker.answer(instances(b64(GOOD))).json == {"predictions": [document]}


def types(response: Response) -> list[str]:
    assert response.status == 200
    return [document.get("type", "answer") for document in response.json["predictions"]]


@ONE_VERSION
def test_an_invalid_image_is_an_error_in_its_place(worker: Worker) -> None:
    wrong: list[tuple[Any, str]] = [
        (b64(CUT), "CorruptImage"),
        (b64(GIF), "UnsupportedImage"),
        (b64(b""), "EmptyImage"),
        ({"b64": "A" * (MAX_BYTES * 4 // 3 + 8)}, "ImageTooLarge"),
        *((value, "BadRequest") for value in ({}, [], "", None, {"data": ""})),
        *(({"b64": value}, "BadRequest") for value in ("%%%", "é", b64(GOOD)["b64"] + "A", 7)),
    ]
    values = [b64(GOOD), *(value for value, _ in wrong), b64(GOOD) | {"name": MARKER}]
    expected = ["answer", *(error for _, error in wrong), "answer"]
    assert types(worker.answer(instances(*values))) == expected
    found = types(worker.answer(form(GOOD, CUT, GIF, b"", GOOD)))
    assert found == ["answer", "CorruptImage", "UnsupportedImage", "EmptyImage", "answer"]
    file = ("note", "text/plain; charset=utf-8", b"a word")
    beside = Request([file, ("image", "image/png", GOOD)])
    assert types(worker.answer(beside)) == ["UnsupportedImage", "answer"]


@ONE_VERSION
@pytest.mark.parametrize(("request_", "status", "error"), BAD)
def test_an_invalid_request_is_an_error_and_leaves_its_neighbours_alone(
    worker: Worker, card: Any, expected: list[Answer], request_: Request, status: int, error: str
) -> None:
    before, response, after = worker.answers(body(GOOD), request_, body(PICTURES[1]))
    assert [before.status, response.status, after.status] == [200, status, 200]
    assert are_close(before.json, expected[0])
    assert are_close(after.json, expected[1])
    assert response.phrase == HTTPStatus(status).phrase
    assert response.content_type == "application/json"
    assert response.headers["X-Model-Version"] == card["version"]
    document = response.json
    assert [*document] == ["code", "type", "message"]
    assert (document["code"], document["type"]) == (status, error)


@ONE_VERSION
def test_a_request_that_costs_too_much_is_put_off(worker: Worker, expected: list[Answer]) -> None:
    """A batch has one large image at most."""
    large = body(encoded(Image.new("L", (4000, 3900)), "PNG"))
    answered, put_off, small = worker.answers(large, large, body(PICTURES[0]))
    assert answered.status == 200
    assert (put_off.status, put_off.json["type"]) == (503, "ServiceBusy")
    assert put_off.headers["Retry-After"] == "1"
    assert are_close(small.json, expected[0])


@ONE_VERSION
def test_no_user_text_is_in_a_response(worker: Worker) -> None:
    marker = MARKER.encode()
    headers = {"Host": MARKER, "Authorization": f"Bearer {MARKER}", MARKER: MARKER}
    responses = worker.answers(
        Request([(MARKER, f"image/{MARKER}", GOOD)], headers),
        Request([(MARKER, "image/png", CUT + marker)], headers),
        Request([("body", "", marker)], headers),
        Request([("body", "text/plain", marker)], headers),
        Request([(MARKER, "text/plain", marker), (MARKER + "2", "image/png", marker)], headers),
        instances({MARKER: MARKER, "b64": MARKER}, MARKER, {"b64": MARKER + "%"}),
        body(json.dumps({MARKER: MARKER}).encode(), "application/json"),
        Request([("body", "", GOOD)], headers | {"explain": "True"}),
    )
    assert not any(marker in repr(response).encode() for response in responses)


@ONE_VERSION
def test_a_request_leaves_no_line_in_the_log(worker: Worker) -> None:
    before = worker.log.read_text()
    worker.answers(
        *map(body, (GOOD, CUT, GIF, picture(0, "TIFF")[:9000])),
        form(GOOD, b""),
        instances(b64(GOOD), 7),
    )
    for kind in ("JPEG", "PNG", "WEBP"):
        worker.answers(*(body(picture(0, kind, exif=exif)) for exif in DAMAGED_EXIF))
    assert worker.log.read_text().removeprefix(before) == ""


def heat_map(document: Any) -> Image.Image:
    image = Image.open(BytesIO(base64.b64decode(document["heat_map"])))
    assert image.format == "PNG"
    return image


@ONE_VERSION
def test_only_a_request_for_an_explanation_gets_one(reload: Any, expected: list[Answer]) -> None:
    """With the proportions of the upload."""
    # A worker that has just answered an explanation puts off the next one beside others.
    worker = reload()
    plain, explained, after = worker.answers(
        body(PICTURES[0]), body(PICTURES[1], explain="True"), body(PICTURES[2])
    )
    larger = worker.answer(body(picture(1, size=(1280, 960)), explain="True"))
    assert heat_map(explained.json).size == (320, 240)
    assert heat_map(larger.json).size == (640, 480)
    documents = plain.json, explained.json, after.json
    documents[1].pop("heat_map")
    assert all(map(are_close, documents, expected))


@ONE_VERSION
def test_each_image_of_a_request_is_explained(worker: Worker) -> None:
    request = Request(form(GOOD, CUT, PICTURES[1]).parameters, HOST | {"explain": "True"})
    first, damaged, last = worker.answer(request).json["predictions"]
    alone = [
        worker.answer(body(data, explain="True")).json["heat_map"] for data in (GOOD, PICTURES[1])
    ]
    assert [first["heat_map"], last["heat_map"]] == alone
    assert damaged["type"] == "CorruptImage"
    assert alone[0] != alone[1]


def inference(document: Any, binary: bytes = b"", protocol: str = INFER) -> Request:
    """Return a request of the Open Inference Protocol, as the edge sends it."""
    text = json.dumps(document).encode()
    headers = HOST | {PROTOCOL: protocol} | ({LENGTH: str(len(text))} if binary else {})
    return Request([("body", "application/octet-stream", text + binary)], headers)


def tensor(count: int, **members: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [count], **members}]}


@ONE_VERSION
def test_the_inference_protocol_in_a_batch(
    worker: Worker, card: Any, expected: list[Answer]
) -> None:
    texts = [b64(data)["b64"] for data in (GOOD, CUT, PICTURES[1])]
    binary = len(GOOD).to_bytes(4, "little") + GOOD
    sized = {"parameters": {"binary_data_size": len(binary)}}
    options = {"id": "mine", "outputs": [{"name": "verdict", "parameters": {"binary_data": True}}]}
    several, plain, one, failed, invalid, described = worker.answers(
        inference(tensor(3, data=texts)),
        body(PICTURES[2]),
        inference(tensor(1, **sized) | options, binary),
        inference(tensor(1, data=texts[1:2])),
        inference({"inputs": []}),
        inference(None, protocol=METADATA),
    )
    assert are_close(plain.json, expected[2])
    outputs = {each["name"]: each["data"] for each in several.json["outputs"]}
    first, damaged, last = map(json.loads, outputs["answer"])
    assert are_close(first, expected[0])
    assert are_close(last, expected[1])
    assert damaged["type"] == "CorruptImage"
    assert outputs["verdict"] == [expected[0]["verdict"], "error", expected[1]["verdict"]]
    assert several.content_type == "application/json"
    length = int(one.headers[LENGTH])
    assert json.loads(one.body[:length])["id"] == "mine"
    assert one.body[length + 4 :].decode() == expected[0]["verdict"]
    assert one.content_type == "application/octet-stream"
    for each, kind in ((failed, "CorruptImage"), (invalid, "BadRequest")):
        assert (each.status, each.json["type"]) == (400, kind)
        assert LENGTH not in each.headers
    assert described.json["parameters"]["classes"] == ",".join(card["classes"])
    assert {each.headers["X-Model-Version"] for each in (several, failed, described)} == {
        card["version"]
    }


@ONE_VERSION
def test_a_describe_request_returns_the_card(worker: Worker, card: Any) -> None:
    response = worker.answer(Request(headers={"describe": "True"}))
    assert (response.status, response.json) == (200, card)
    assert response.headers["X-Model-Version"] == card["version"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["instances", "b64", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)


def attempt(row: Any) -> Payload | InputError:
    """Parse to the images or the refusal; whatever else is raised fails the test."""
    try:
        return parse(row, {})
    except InputError as error:
        return error


@given(
    st.dictionaries(
        st.sampled_from(["body", "data", "note"]),
        JSON | st.binary(max_size=9) | st.binary(max_size=9).map(bytearray),
        max_size=3,
    )
)
def test_any_row_is_parsed_or_refused(row: Any) -> None:
    outcome = attempt(row)
    images = outcome.images if isinstance(outcome, Payload) else [outcome]
    assert images
    assert all(isinstance(image, (bytes, InputError)) for image in images)


def test_values_are_images_in_their_order() -> None:
    assert parse({"body": bytearray(b"1")}, {}) == Payload([b"1"], False)
    assert parse({"z": b"1", "a": b"2"}, {}) == Payload([b"1", b"2"], True)


def test_the_limits_are_inclusive() -> None:
    row = {str(index): b"image" for index in range(MAX_IMAGES)}
    assert len(parse(row, {}).images) == MAX_IMAGES
    values = [b64(b"image")] * MAX_IMAGES
    assert len(parse({"body": {"instances": values}}, {}).images) == MAX_IMAGES
    data = bytes(MAX_BYTES)
    assert parse({"body": {"instances": [b64(data)]}}, {}).images == [data]


def test_too_many_bytes_are_not_decoded_from_base64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload.pybase64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    (image,) = parse({"body": {"instances": [{"b64": "A" * (MAX_BYTES * 4 // 3 + 5)}]}}, {}).images
    assert isinstance(image, InputError)

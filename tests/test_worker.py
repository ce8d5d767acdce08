"""Our worker compared with TorchServe's: both must send the same reply to the same bytes.

Both are real processes that load the same small archive. Its handler answers with what it got, or
fails in each way in which a handler can.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import struct
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_process import (
    END_OF_LIST,
    Inputs,
    Running,
    field,
    infer_message,
    load_message,
)

from serving.settings import ROOT
from testing.service import free_ports

with warnings.catch_warnings():
    # ts leaves a file open as it is imported.
    warnings.simplefilter("ignore", ResourceWarning)
    from serving.torchserve import worker
    from serving.torchserve.worker import Hangup, Message

SPEC = importlib.util.find_spec("ts")
assert SPEC
assert SPEC.origin
TORCHSERVE = Path(SPEC.origin).parent
PROGRAMS = [
    TORCHSERVE / "model_service_worker.py",
    ROOT / "serving" / "torchserve" / "worker.py",
]

HANDLER = """
import json

from ts.utils.util import PredictionException


class Echo:
    def initialize(self, context):
        if context.model_yaml_config.get("refuse"):
            raise RuntimeError("refused")
        self.properties = context.system_properties
        self.config = context.model_yaml_config

    def handle(self, data, context):
        wish = context.get_request_header(0, "wish")
        if wish == "fail":
            raise KeyError("a secret")
        if wish == "refuse":
            raise PredictionException("too much", 413)
        if wish == "no memory":
            raise MemoryError
        if wish == "no memory on the GPU":
            raise RuntimeError("CUDA out of memory")
        if wish == "no list":
            return "a word"
        if wish == "too few":
            return []
        if wish == "no JSON":
            return [object()] * len(data)
        answers = []
        for index, row in enumerate(data):
            context.set_response_header(index, "X-Index", str(index))
            if index % 2:
                context.set_response_status(415, "Unsupported", index)
                context.set_response_content_type(index, "text/plain")
            values = {name: [type(v).__name__.replace("bytearray", "bytes"),
                             v.hex() if hasattr(v, "hex") and not isinstance(v, float) else v]
                      for name, v in row.items()}
            said = {"row": values, "header": context.get_all_request_header(index),
                    "id": context.get_request_id(index), "of": context.manifest["model"],
                    "batch size": self.properties["batch_size"], "gpu": self.properties["gpu_id"],
                    "config": self.config}
            answers.append([said, json.dumps(said), json.dumps(said).encode()][index % 3])
        return answers
"""


LOAD_FAILED = struct.pack("!i", 500) + field("Unknown exception") + END_OF_LIST


def archive_in(folder: Path, config: str = "answer: 42\n", handler: str = HANDLER) -> Path:
    folder.mkdir()
    (folder / "MAR-INF").mkdir()
    model = {"modelName": "echo", "handler": "echo_handler.py", "configFile": "config.yaml"}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": model}))
    (folder / "config.yaml").write_text(config)
    (folder / "echo_handler.py").write_text(handler)
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive_in(tmp_path_factory.mktemp("archive") / "echo")


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, archive: Path
) -> Iterator[tuple[Running, Running]]:
    """Run both workers, the archive loaded: theirs by a Unix socket, ours by a port."""
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PYTHONSAFEPATH", "1")
        theirs, ours = (
            stack.enter_context(Running(program, tmp_path_factory.mktemp("w"), archive, *port))
            for program, port in zip(PROGRAMS, ([], free_ports(1)), strict=True)
        )
        loaded = theirs.ask(load_message(archive))
        assert ours.ask(load_message(archive)) == loaded
        assert b"loaded model echo" in loaded
        yield theirs, ours
        assert (theirs.end(), ours.end()) == (0, 0)


def image(data: bytes = b"\xff\xd8\0", kind: str = "image/jpeg") -> Inputs:
    return [("body", kind, data)]


NUMBERS = b"[1, -0, 1e3, 1e400, NaN, -Infinity, 18446744073709551616, -9223372036854775809]"
BATCHES = {
    "one image": [({"Host": "here", "explain": "False"}, image())],
    "no input": [({}, [])],
    "several": [({"a": str(at)}, image(bytes([at]) * at)) for at in range(5)],
    "a form": [({}, [("a", "image/png", b"1"), ("b", "", b"2"), ("c", "text/plain", b"3")])],
    "a field twice": [({}, [("a", "image/png", b"1"), ("a", "image/png", b"2")])],
    "a field named as a header": [({"a": "header"}, [("a", "image/png", b"1")])],
    "JSON": [({}, image(b'{"instances": [1, null, "\xc3\xa9"]}', "application/json"))],
    "no JSON": [({}, image(b"{", "application/json"))],
    "JSON of another kind": [({}, image(b"{}", "application/json; charset=utf-8"))],
    "bytes called JSON": [({}, image(b"\xff\xfe", "application/json"))],
    "deep JSON": [({}, image(b"[" * 100_000, "application/json"))],
    "JSON of all kinds of numbers": [({}, image(NUMBERS, "application/json"))],
    "JSON with half a character": [({}, image(b'["\\ud800"]', "application/json"))],
    "text": [({}, image("é".encode(), "text/plain"))],
    "bytes called text": [({}, image(b"\xff\xfe", "text/plain"))],
    "8 MiB": [({}, image(bytes(8 << 20)))],
    **{
        wish: [({"wish": wish}, image()), ({}, image())]
        for wish in (
            "fail",
            "refuse",
            "no memory",
            "no memory on the GPU",
            "no list",
            "too few",
            "no JSON",
        )
    },
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_both_send_the_same_reply(both: tuple[Running, Running], batch: Any) -> None:
    theirs, ours = (running.ask(infer_message(*batch)) for running in both)
    assert ours == theirs
    assert b"a secret" not in ours


def test_ours_prints_what_java_expects_and_does_without_torch(
    both: tuple[Running, Running],
) -> None:
    ours = both[1]
    maps = Path(f"/proc/{ours.process.pid}/maps")
    assert not maps.exists() or "torch" not in maps.read_text()
    _metrics, pid, started, python, *_ = ours.log.read_text().splitlines()
    assert pid == f"[PID]{ours.process.pid}"
    assert started == "Torch worker started."
    assert python.startswith("Python runtime: 3.")


def test_a_model_loaded_again_has_its_new_settings(
    both: tuple[Running, Running], archive: Path
) -> None:
    theirs, ours = (running.ask(load_message(archive, 7, 0)) for running in both)
    assert ours == theirs
    replies = [running.ask(infer_message(*BATCHES["one image"])) for running in both]
    assert replies[0] == replies[1]
    assert b'"batch size": 7' in replies[1]
    assert b'"gpu": 0' in replies[1]


class Dribble:
    """A connection that returns its bytes in parts of these sizes."""

    def __init__(self, data: bytes, sizes: Sequence[int]) -> None:
        self._data, self._sizes = data, list(sizes)

    def receive(self, size: int) -> bytes:
        size = min(size, self._sizes.pop() if self._sizes else len(self._data))
        part, self._data = self._data[:size], self._data[size:]
        return part


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        # An envelope.
        (None, None, "service_envelope"),
        ("config.yaml", "refuse: true", "refused"),
        ("config.yaml", "a: [", r"config\.yaml.*, line 1"),
        ("config.yaml", None, r"No such file or directory: .*config\.yaml"),
        ("MAR-INF/MANIFEST.json", "{", "Expecting property name"),
        ("MAR-INF/MANIFEST.json", None, r"No such file or directory: .*MANIFEST\.json"),
        ("echo_handler.py", "import nowhere", "No module named 'nowhere'"),
        ("echo_handler.py", "def handle(data, context): ...", "a handler that is a function"),
        ("echo_handler.py", "class A:\n def initialize(*_): ...", "no attribute 'handle'"),
        ("echo_handler.py", "from pathlib import Path", "must define one class, not 0"),
        ("echo_handler.py", "class A: ...\nclass B: ...", "must define one class, not 2"),
    ],
)
def test_a_broken_archive_is_reported_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    file: str | None,
    content: str | None,
    why: str,
) -> None:
    broken = archive_in(tmp_path / "broken")
    message = load_message(broken)
    if file is None:
        message = message[: -len(field("") + b"\1")] + field("kserve") + b"\1"
    elif content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_text(content)
    monkeypatch.syspath_prepend(broken)
    monkeypatch.delitem(sys.modules, "echo_handler", raising=False)
    sent: list[bytes] = []
    with pytest.raises(Exception, match=f"(?s){why}"):
        worker.serve(Message(Dribble(message, []).receive), sent.append, SimpleNamespace())
    sys.modules.pop("echo_handler", None)
    assert sent == [LOAD_FAILED]
    assert re.search(f"^Failed to load model echo, exception .*{why}", caplog.messages[-1])
    assert "\n" not in caplog.messages[-1]


def read_all(data: bytes, sizes: Sequence[int]) -> list[worker.Request]:
    message = Message(Dribble(data, sizes).receive)
    assert message.raw(1) == b"I"
    return list(worker._requests(message))


REQUESTS = st.lists(
    st.tuples(
        st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=9), max_size=3),
        st.lists(
            st.tuples(
                st.text(min_size=1, max_size=9), st.just("image/png"), st.binary(max_size=50)
            ),
            max_size=3,
            unique_by=lambda each: each[0],
        ),
    ),
    max_size=4,
)


@given(REQUESTS, st.lists(st.integers(1, 40), max_size=50))
def test_messages_may_arrive_in_any_parts(requests: Any, sizes: list[int]) -> None:
    read = read_all(infer_message(*requests), sizes)
    assert [each.id for each in read] == [f"id-{index}" for index in range(len(requests))]
    for (headers, inputs), request in zip(requests, read, strict=True):
        assert request.row == {name: data for name, _kind, data in inputs}
        types = {name: {"content-type": kind} for name, kind, _data in inputs}
        assert request.headers == types | headers


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (struct.pack("!i", -2), "not a length"),
        (field("a header without a value"), "shorter"),
        (END_OF_LIST + field("an input") + field("without a value"), "shorter"),
    ],
)
def test_an_invalid_message_ends_the_worker(request_: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_all(b"I" + field("id") + request_ + 3 * END_OF_LIST, [])


@pytest.mark.parametrize("values", ["{},", "[],", "1,", '{"a":[1]},'])
def test_json_with_too_many_values_is_not_parsed(values: str) -> None:
    few, many = (f"[{values * count}1]".encode() for count in (4_000, 10_000))
    assert worker._decoded(few, "application/json") == json.loads(few)
    assert worker._decoded(many, "application/json") == many


@given(st.data())
def test_a_message_that_breaks_off_ends_the_worker(data: st.DataObject) -> None:
    whole = infer_message(({"a": "b"}, image()), ({}, image(b"123456")))
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(Hangup):
        read_all(whole[:length], [])

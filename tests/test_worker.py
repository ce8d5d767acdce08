"""Our worker beside TorchServe's own: to the same bytes they must say the same.

Both are real processes that load the same small archive, whose handler answers with what it was
given, or does what a handler may do wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.settings import ROOT
from testing.service import free_ports

with warnings.catch_warnings():
    # ts leaves a file open as it is imported.
    warnings.simplefilter("ignore", ResourceWarning)
    from serving.torchserve import worker
    from serving.torchserve.worker import END, Hangup, Message

SPEC = importlib.util.find_spec("ts")
assert SPEC
assert SPEC.origin
TORCHSERVE = Path(SPEC.origin).parent
PROGRAMS = {
    "TorchServe's": TORCHSERVE / "model_service_worker.py",
    "ours": ROOT / "serving" / "torchserve" / "worker.py",
}
PATIENCE = 60

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

# As the archives had them that torch served.
TORCH_HANDLER = """
import torch


class Network:
    def initialize(self, context):
        weights = context.system_properties["model_dir"] + "/weights.pt"
        self.network = torch.nn.Linear(3, 2)
        self.network.load_state_dict(torch.load(weights, weights_only=True))
        self.network.eval()

    def handle(self, data, context):
        pixels = torch.tensor([list(row["body"]) for row in data], dtype=torch.float32)
        with torch.inference_mode():
            return self.network(pixels).tolist()
"""


def field(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!i", len(data)) + data


END_OF_LIST = struct.pack("!i", END)


def load_message(folder: Path, batch_size: int = 4, gpu: int = -1) -> bytes:
    return b"".join(
        [
            b"L" + field("echo") + field(str(folder)) + struct.pack("!i", batch_size),
            field("echo_handler.py") + struct.pack("!i", gpu) + field("") + b"\1",
        ]
    )


Inputs = Sequence[tuple[str, str, bytes]]


def infer_message(*requests: tuple[dict[str, str], Inputs]) -> bytes:
    message = b"I"
    for index, (headers, inputs) in enumerate(requests):
        message += field(f"id-{index}")
        message += b"".join(field(text) for header in headers.items() for text in header)
        message += END_OF_LIST
        message += b"".join(field(name) + field(kind) + field(data) for name, kind, data in inputs)
        message += END_OF_LIST
    return message + END_OF_LIST


class Running:
    """A worker's process, with a connection to it."""

    def __init__(self, program: Path, folder: Path, archive: Path, port: int | None = None) -> None:
        self.log = folder / "log"
        self.name = folder / "sock.9"
        command: list[Any] = [sys.executable, "-u", program]
        command += ["--sock-type", "tcp", "--port", port] if port else []
        command += [] if port else ["--sock-type", "unix", "--sock-name", self.name]
        command += ["--metrics-config", ROOT / "serving" / "torchserve" / "metrics.yaml"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                env=os.environ | {"PYTHONPATH": str(archive)},
                stdout=log,
                stderr=log,
            )
        self.socket = self._connected(("127.0.0.1", port) if port else str(self.name))

    def _connected(self, address: str | tuple[str, int]) -> socket.socket:
        until = time.monotonic() + PATIENCE
        while True:
            attempt = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
            attempt.settimeout(PATIENCE)
            try:
                attempt.connect(address)
                return attempt
            except OSError:
                attempt.close()
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < until
                time.sleep(0.02)

    def ask(self, message: bytes) -> bytes:
        """Send a message and read the reply to it, whole."""
        self.socket.sendall(message)
        reply = self._some(4) + self._field()
        while (length := self._some(4)) != END_OF_LIST:
            reply += length + self._some(*struct.unpack("!i", length))
            reply += self._field() + self._some(4) + self._field()
            count = self._some(4)
            reply += count
            for _ in range(2 * struct.unpack("!i", count)[0]):
                reply += self._field()
            reply += self._field()
        return reply + length

    def end(self) -> int:
        """Hang up; return the exit code."""
        self.socket.close()
        return self.process.wait(PATIENCE)

    def _field(self) -> bytes:
        length = self._some(4)
        return length + self._some(*struct.unpack("!i", length))

    def _some(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            assert part, self.log.read_text()
            data += part
        return data


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
    """Run both workers, the archive loaded."""
    theirs, ours = (
        Running(program, tmp_path_factory.mktemp("w"), archive) for program in PROGRAMS.values()
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
def test_it_says_what_torchserves_worker_says(both: tuple[Running, Running], batch: Any) -> None:
    theirs, ours = (running.ask(infer_message(*batch)) for running in both)
    assert ours == theirs
    assert b"a secret" not in ours


def test_a_model_loaded_anew_has_its_new_settings(
    both: tuple[Running, Running], archive: Path
) -> None:
    theirs, ours = (running.ask(load_message(archive, 7, 0)) for running in both)
    assert ours == theirs
    replies = [running.ask(infer_message(*BATCHES["one image"])) for running in both]
    assert replies[0] == replies[1]
    assert b'"batch size": 7' in replies[1]
    assert b'"gpu": 0' in replies[1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_refused_load_is_told_and_ends_the_worker(tmp_path: Path, program: str) -> None:
    refused = archive_in(tmp_path / "refused", "refuse: true\n")
    running = Running(PROGRAMS[program], tmp_path, refused)
    reply = running.ask(load_message(refused))
    assert reply == struct.pack("!i", 500) + field("Unknown exception") + END_OF_LIST
    assert running.end() == 1
    assert "Failed to load model echo, exception refused" in running.log.read_text()
    assert not running.name.exists()


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("config.yaml", "a: [", r"config\.yaml.*, line 1"),
        ("config.yaml", None, r"No such file or directory: .*config\.yaml"),
        ("MAR-INF/MANIFEST.json", "{", "Expecting property name"),
        ("MAR-INF/MANIFEST.json", None, r"No such file or directory: .*MANIFEST\.json"),
        ("echo_handler.py", "import nowhere", "No module named 'nowhere'"),
        ("echo_handler.py", "def handle(data, context): ...", "no handler that is a function"),
        ("echo_handler.py", "class A:\n def initialize(*_): ...", "no attribute 'handle'"),
    ],
)
def test_what_is_wrong_with_an_archive_is_told_in_a_line(
    tmp_path: Path, file: str, content: str | None, why: str
) -> None:
    broken = archive_in(tmp_path / "broken")
    (broken / file).unlink()
    if content is not None:
        (broken / file).write_text(content)
    running = Running(PROGRAMS["ours"], tmp_path, broken)
    reply = running.ask(load_message(broken))
    assert reply == struct.pack("!i", 500) + field("Unknown exception") + END_OF_LIST
    assert running.end() == 1
    told = f"^Failed to load model echo, exception .*{why}"
    assert re.search(told, running.log.read_text(), re.MULTILINE)


def test_an_envelope_is_refused(tmp_path: Path, archive: Path) -> None:
    running = Running(PROGRAMS["ours"], tmp_path, archive)
    message = load_message(archive)
    running.ask(message[: -len(field("") + b"\1")] + field("kserve") + b"\1")
    assert running.end() == 1
    assert "knows no service_envelope" in running.log.read_text()


@pytest.mark.parametrize(("option", "environment"), [(["--async"], {}), ([], {"LOCAL_RANK": "0"})])
def test_what_it_does_not_do_it_does_not_begin(
    tmp_path: Path, option: list[str], environment: dict[str, str]
) -> None:
    name = tmp_path / "sock.9"
    command = [sys.executable, PROGRAMS["ours"], "--sock-type", "unix", "--sock-name", name]
    ended = subprocess.run(
        [*command, *option],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 1
    assert ended.stdout.startswith("Error: this worker knows neither --async nor torchrun")
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""
    assert not name.exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_java_may_also_ask_for_a_port(tmp_path: Path, archive: Path, program: str) -> None:
    (port,) = free_ports(1)
    running = Running(PROGRAMS[program], tmp_path, archive, port)
    assert b"loaded model echo" in running.ask(load_message(archive))
    assert b'"answer": 42' in running.ask(infer_message(*BATCHES["one image"]))
    assert running.end() == 0


def test_bodies_are_left_alone_where_java_says_so(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    theirs, ours = both_answer(tmp_path, archive, BATCHES["JSON"] + BATCHES["text"])
    assert ours == theirs
    assert ours.count(b'"bytes"') == 2


def test_an_archive_from_before_is_served_by_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    old = archive_in(tmp_path / "old", handler=TORCH_HANDLER)
    network = torch.nn.Linear(3, 2)
    torch.save(network.state_dict(), old / "weights.pt")
    theirs, ours = both_answer(tmp_path, old, [({}, image(b"\1\2\3")), ({}, image(b"\4\5\6"))])
    assert ours == theirs
    for answer in network(torch.tensor([[1.0, 2, 3], [4, 5, 6]])).tolist():
        assert json.dumps(answer, indent=2).encode() in ours


def both_answer(folder: Path, archive: Path, batch: Any) -> list[bytes]:
    """Start both workers, and return what they say to a batch."""
    answers = []
    for program in PROGRAMS.values():
        running = Running(program, folder, archive)
        assert b"loaded model echo" in running.ask(load_message(archive))
        answers.append(running.ask(infer_message(*batch)))
        assert running.end() == 0
    return answers


def test_a_safe_path_is_no_hindrance(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    running = Running(PROGRAMS["ours"], tmp_path, archive)
    assert b"loaded model echo" in running.ask(load_message(archive))
    assert running.end() == 0


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("message", [b"X", infer_message()], ids=["unknown", "before a load"])
def test_what_makes_no_sense_ends_the_worker(
    tmp_path: Path, archive: Path, program: str, message: bytes
) -> None:
    running = Running(PROGRAMS[program], tmp_path, archive)
    running.socket.sendall(message)
    assert running.socket.recv(1) == b""
    assert running.end() == 1
    assert "Backend worker process died." in running.log.read_text()


def test_it_prints_what_java_waits_for_and_no_more(tmp_path: Path, archive: Path) -> None:
    running = Running(PROGRAMS["ours"], tmp_path, archive)
    running.ask(load_message(archive))
    for _ in range(3):
        running.ask(infer_message(*BATCHES["several"]))
    assert running.end() == 0
    _metrics, pid, started, python = running.log.read_text().splitlines()
    assert pid == f"[PID]{running.process.pid}"
    assert started == "Torch worker started."
    assert python.startswith("Python runtime: 3.")


def test_it_leaves_torch_alone(tmp_path: Path, archive: Path) -> None:
    running = Running(PROGRAMS["ours"], tmp_path, archive)
    running.ask(load_message(archive))
    maps = Path(f"/proc/{running.process.pid}/maps")
    if not maps.exists():
        pytest.skip("This system does not tell what a process has loaded.")
    assert "torch" not in maps.read_text()
    running.end()


@pytest.mark.parametrize("classes", ["", "class A: pass\nclass B: pass\n"])
def test_an_archive_has_one_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: str
) -> None:
    name = f"handler_of_{len(classes)}"
    (tmp_path / f"{name}.py").write_text(f"from pathlib import Path\n{classes}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="must define one class"):
        worker._entry_class(f"{name}.py")


class Dribble:
    """A connection that hands out its bytes in parts of these sizes."""

    def __init__(self, data: bytes, sizes: Sequence[int]) -> None:
        self._data, self._sizes = data, list(sizes)

    def receive(self, size: int) -> bytes:
        size = min(size, self._sizes.pop() if self._sizes else len(self._data))
        part, self._data = self._data[:size], self._data[size:]
        return part


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


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(REQUESTS, st.lists(st.integers(1, 40), max_size=50))
def test_messages_are_read_however_they_are_cut(requests: Any, sizes: list[int]) -> None:
    read = read_all(infer_message(*requests), sizes)
    assert [each.id for each in read] == [f"id-{index}" for index in range(len(requests))]
    for (headers, inputs), request in zip(requests, read, strict=True):
        assert request.row == {name: data for name, _kind, data in inputs}
        types = {name: {"content-type": kind} for name, kind, _data in inputs}
        assert request.headers == types | headers


def test_what_can_be_no_length_ends_the_worker() -> None:
    with pytest.raises(ValueError, match="no length"):
        read_all(infer_message()[:-4] + field("id") + struct.pack("!i", -2), [])


@pytest.mark.parametrize(
    "begun",
    [field("a header without a value"), END_OF_LIST + field("an input") + field("without a value")],
)
def test_a_list_that_ends_within_an_item_ends_the_worker(begun: bytes) -> None:
    with pytest.raises(ValueError, match="shorter"):
        read_all(b"I" + field("id") + begun + 3 * END_OF_LIST, [])


def test_two_large_fields_are_read_one_after_the_other() -> None:
    """Each is longer than what is asked of the socket at once."""
    bodies = [bytes([at]) * (3 * worker.CHUNK + at) for at in range(2)]
    read = read_all(infer_message(*(({}, image(body)) for body in bodies)), [])
    assert [request.row["body"] for request in read] == bodies


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(JSON)
@example(2**64)
@example([{"a": [0, -(2**63) - 1]}])
@example([{"a": [0.5]}, "\ud800"])
def test_json_says_what_it_says_to_the_standard_library(document: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        try:
            expected = repr(json.loads(text.decode()))
        except ValueError:
            expected = repr(text)
        assert repr(worker._decoded(text, "application/json")) == expected


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text('0123456789+-.eE[]{},:" \\u\x00\ufeffa', max_size=12))
def test_what_is_no_json_stays_as_it_is(text: str) -> None:
    try:
        expected = repr(json.loads(text))
    except ValueError:
        expected = repr(text.encode())
    assert repr(worker._decoded(text.encode(), "application/json")) == expected


@pytest.mark.parametrize("values", ["{},", "[],", "1,", '{"a":[1]},'])
def test_json_of_too_many_values_is_not_parsed(values: str) -> None:
    few, many = (f"[{values * count}1]".encode() for count in (4_000, 10_000))
    assert worker._decoded(few, "application/json") == json.loads(few)
    assert worker._decoded(many, "application/json") == many


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_a_message_that_breaks_off_is_no_message(data: st.DataObject) -> None:
    whole = infer_message(({"a": "b"}, image()), ({}, image(b"123456")))
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(Hangup):
        read_all(whole[:length], [])

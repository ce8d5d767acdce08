"""The worker that TorchServe's Java starts: TorchServe's own protocol, without torch, and faster.

TorchServe's own worker (ts/model_service_worker.py, 0.12) imports torch, which costs two seconds
and 180 MB per worker. It also reads each field of a message by a call and logs several lines per
batch. For the same bytes both send the same reply (tests/test_worker.py), with these exceptions:
- `asyncCommunication`, `parallelType`, service envelopes, handlers that are functions and archives
  without a manifest are refused with a message;
- partial answers, tensors, the metric PredictionTime and TS_BENCHMARK are not supported;
- a handler gets bytes, not bytearrays;
- every failed load is reported to Java, not only RuntimeError and a lack of memory;
- an answer that can't be encoded fails its batch, not the worker.

The service copies this file to where Java looks for the worker, so it imports nothing of the
project. An archive's handler must be one class with `initialize` and `handle`.

A message consists of fields: an int (4 bytes, big-endian), or an int and that many bytes. -1 ends a
list. Java sends
    L  model name, folder, batch size (int), handler, gpu (int, -1: none), envelope, a flag (1 byte)
    I  a list of requests: id, a list of headers (name, value), a list of inputs (name, type, value)
The reply is a status (int), a message, and a list of answers: id, content type, status (int),
reason, headers (their number, then names and values), body.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import logging
import os
import platform
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ts import __version__
from ts.context import Context, RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.utils.util import PredictionException

LOAD, INFER = b"L", b"I"
END = -1
# The name of the process. A busy worker must not be stopped (serving/rollout/rest.py).
BUSY, IDLE = b"worker: busy", b"worker: idle"
# Seconds that Java may take to connect.
PATIENCE = 30
DECODES = os.environ.get("TS_DECODE_INPUT_REQUEST", "true") == "true"
# Limit of the commas, and of each opening bracket, in JSON; 128 images need some hundreds.
MOST_VALUES = 10_000
# Bytes to receive at once: a whole batch of small images.
CHUNK = 1 << 18
_INT = struct.Struct("!i")

Handle = Callable[[Sequence[Mapping[str, Any]], Context], Any]
Send = Callable[[bytes], None]


class Hangup(Exception):
    """Java has closed the connection."""


class InvalidOutput(Exception):
    """The handler returned no answer to its batch; the message goes to the client."""


@dataclass
class Request:
    """One request of a batch, as the handler gets it."""

    id: str
    row: dict[str, Any]
    headers: dict[str, Any]


class Message:
    """The fields that Java sends, read through a buffer."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self._data, self._at = b"", 0

    def raw(self, length: int) -> bytes:
        """Read `length` bytes; raise Hangup or ValueError."""
        if length < 0:
            raise ValueError(f"{length} is not a length.")
        if (missing := self._at + length - len(self._data)) > 0:
            self._fill(missing)
        start, self._at = self._at, self._at + length
        return self._data[start : self._at]

    def number(self) -> int:
        value: int = _INT.unpack(self.raw(4))[0]
        return value

    def text(self) -> str:
        return self.raw(self.number()).decode()

    def fields(self) -> list[bytes]:
        """Read a list to its end; return the fields of all its items in a row."""
        found: list[bytes] = []
        while missing := self._take(found):
            self._fill(missing)
        return found

    def _take(self, found: list[bytes]) -> int:
        """Take a list's fields from the buffer; return how many bytes are missing, 0 at its end.

        A batch has hundreds of fields, so there is no call for each.
        """
        data, at, size = self._data, self._at, len(self._data)
        number_at = _INT.unpack_from
        while (end := at + 4) <= size:
            (length,) = number_at(data, at)
            if length < 0:
                self._at = end
                if length == END:
                    return 0
                raise ValueError(f"{length} is not a length.")
            start, end = end, end + length
            if end > size:
                break
            found.append(data[start:end])
            at = end
        self._at = at
        return end - size

    def _fill(self, missing: int) -> None:
        """Receive at least `missing` bytes."""
        parts = [self._data[self._at :]]
        # Free what was read before waiting for Java: it may be large.
        self._data, self._at = b"", 0
        while missing > 0:
            parts.append(self._receive(CHUNK))
            if not parts[-1]:
                raise Hangup
            missing -= len(parts[-1])
        self._data = b"".join(parts)


class Model:
    """An archive's handler, initialized."""

    def __init__(self, context: Context, handle: Handle) -> None:
        self._context, self._handle = context, handle

    def answer(self, batch: Sequence[Request]) -> bytes:
        """Return the reply to a batch: an answer to each request, or one error for all."""
        ids = dict(enumerate(request.id for request in batch))
        self._context.request_ids = self._context.metrics.request_ids = ids
        self._context.request_processor = [RequestProcessor(each.headers) for each in batch]
        try:
            answers = self._handle([request.row for request in batch], self._context)
            return _success(ids, answers, self._context)
        except InvalidOutput as error:
            logging.error("%s", error)
            return _failure(ids, 503, str(error))
        except PredictionException as error:
            logging.exception("The handler refused a batch.")
            return _failure(ids, error.error_code, error.message)
        except Exception as error:
            logging.exception("The handler failed.")
            if _is_out_of_memory(error):
                return _failure(ids, 507, "Out of resources")
            return _failure(ids, 503, "Prediction failed")


def main() -> int:
    """Serve the one connection that Java makes; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sock-type", required=True, choices=("unix", "tcp"))
    for name in ("--sock-name", "--host", "--port", "--metrics-config"):
        parser.add_argument(name)
    parser.add_argument("--async", action="store_true", dest="asynchronous")
    options = parser.parse_args()
    # Java reads the output line by line.
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    if options.asynchronous or "LOCAL_RANK" in os.environ:
        # One line: serving/rollout/readiness.py looks for it.
        logging.error("Error: this worker supports neither --async nor torchrun (LOCAL_RANK).")
        return 1
    try:
        metrics = MetricsCacheYamlImpl(config_file_path=options.metrics_config)
        metrics.initialize_cache()
        with _listen(options) as listener:
            logging.info("[PID]%d", os.getpid())
            logging.info("Torch worker started.")
            logging.info("Python runtime: %s", platform.python_version())
            connection, _ = listener.accept()
        connection.setblocking(True)
        with connection, _process_name() as show:
            serve(Message(connection.recv), connection.sendall, metrics, show)
    except Hangup:
        return 0
    except Exception:
        logging.exception("Backend worker process died.")
    finally:
        if options.sock_name:
            Path(options.sock_name).unlink(missing_ok=True)
    return 1


def serve(
    message: Message, send: Send, metrics: Any, show: Callable[[bytes], object] = lambda state: None
) -> None:
    """Answer Java until it hangs up; raise Hangup, or ValueError for an invalid message."""
    model: Model | None = None
    while True:
        command = message.raw(1)
        if command == INFER and model:
            show(BUSY)
            send(model.answer(list(_requests(message))))
            show(IDLE)
        elif command == LOAD:
            model = _load(message, send, metrics)
        else:
            raise ValueError(f"{command!r} is not a command, or no model is loaded.")


@contextlib.contextmanager
def _process_name() -> Iterator[Callable[[bytes], object]]:
    """Yield a function that sets the name of this process, where /proc allows it."""
    with contextlib.ExitStack() as stack:
        show: Callable[[bytes], object] = lambda name: None  # noqa: E731
        with contextlib.suppress(OSError):
            show = stack.enter_context(open("/proc/self/comm", "wb", buffering=0)).write
        yield show


def _listen(options: argparse.Namespace) -> socket.socket:
    unix = options.sock_type == "unix"
    listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    listener.settimeout(PATIENCE)
    if unix:
        Path(options.sock_name).unlink(missing_ok=True)
        listener.bind(options.sock_name)
    else:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host or "127.0.0.1", int(options.port)))
    listener.listen(1)
    return listener


def _load(message: Message, send: Send, metrics: Any) -> Model:
    """Load an archive and report the result to Java; raise what failed."""
    name, folder = message.text(), Path(message.text())
    batch_size, handler, gpu = message.number(), message.text(), message.number()
    envelope, limit_pixels = message.text(), message.raw(1) != b"\0"
    metrics.model_name = name
    try:
        if envelope:
            raise RuntimeError(f"This worker does not support service_envelope ({envelope!r}).")
        manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
        config = {}
        if config_file := manifest["model"].get("configFile"):
            # Pass the file, not its text, so that an error names it.
            with (folder / config_file).open() as file:
                config = yaml.safe_load(file)
        system = (batch_size, gpu if gpu >= 0 else None, __version__, limit_pixels, metrics, config)
        context = Context(name, str(folder), manifest, *system)
        entry = _entry_class(handler)()
        entry.initialize(context)
        model = Model(context, entry.handle)
    except Exception as error:
        # One line: serving/rollout/readiness.py looks for it.
        logging.error("Failed to load model %s, exception %s", name, " ".join(str(error).split()))
        out = _is_out_of_memory(error)
        send(_status(507, "System out of memory") if out else _status(500, "Unknown exception"))
        raise
    # Loaded objects stay in memory: exclude them from garbage collection.
    gc.collect()
    gc.freeze()
    send(_status(200, f"loaded model {name}"))
    return model


def _entry_class(handler: str) -> type[Any]:
    name, _, function = handler.partition(":")
    module = importlib.import_module(Path(name).stem)
    if function or hasattr(module, "handle"):
        raise RuntimeError(f"{handler}: a handler that is a function is not supported.")
    named = vars(module).values()
    classes = [c for c in named if isinstance(c, type) and c.__module__ == module.__name__]
    if len(classes) != 1:
        raise RuntimeError(f"{handler} must define one class, not {len(classes)}.")
    return classes[0]


def _requests(message: Message) -> Iterator[Request]:
    # The id and the headers up to their end are one list of fields.
    while begun := message.fields():
        texts = map(bytes.decode, begun)
        request_id = next(texts)
        headers: dict[str, Any] = dict(zip(texts, texts, strict=True))
        inputs = iter(message.fields())
        row, types = {}, {}
        for field, kind, value in zip(inputs, inputs, inputs, strict=True):
            name, content_type = field.decode(), kind.decode()
            row[name] = _decoded(value, content_type)
            types[name] = {"content-type": content_type}
        yield Request(request_id, row, types | headers)


def _decoded(value: bytes, content_type: str) -> Any:
    """Decode JSON and text; return what can't be decoded, or is too much JSON, as it is."""
    # Deep JSON ends in a RecursionError.
    with contextlib.suppress(ValueError, RecursionError, MemoryError):
        if DECODES and content_type == "application/json" and not _has_too_many_values(value):
            return json.loads(value.decode())
        if DECODES and content_type.startswith("text"):
            return value.decode()
    return value


def _has_too_many_values(value: bytes) -> bool:
    """Return whether JSON has so many values that parsing it would take seconds."""
    # Each value but the first comes after a comma, or after the bracket that opens it. Base64 has
    # none of these, so this is fast for images.
    return any(len(value.split(mark, MOST_VALUES)) > MOST_VALUES for mark in (b",", b"[", b"{"))


def _success(ids: Mapping[int, str], answers: Any, context: Context) -> bytes:
    if not isinstance(answers, list):
        raise InvalidOutput("Invalid model predict output")
    if len(answers) != len(ids):
        raise InvalidOutput("number of batch response mismatched")
    parts = [_INT.pack(200), _field("Prediction success")]
    for index, answer in enumerate(answers):
        status, reason = context.get_response_status(index)
        headers = context.get_response_headers(index)
        parts += [_field(ids[index]), _field(headers.get("content-type", ""))]
        parts += [_INT.pack(status), _field(reason or ""), _INT.pack(len(headers))]
        parts += [_field(text) for header in headers.items() for text in header]
        parts.append(_field(_encoded(answer)))
    return b"".join([*parts, _INT.pack(END)])


def _failure(ids: Mapping[int, str], status: int, reason: str) -> bytes:
    """Return the reply to a failed batch: an error for each request."""
    answer = _field("") + _INT.pack(status) + _field("") + _INT.pack(0) + _field("error")
    answers = [_field(each) + answer for each in ids.values()]
    return b"".join([_INT.pack(status), _field(reason), *answers, _INT.pack(END)])


def _encoded(answer: Any) -> bytes | bytearray | str:
    if isinstance(answer, (bytes, bytearray, str)):
        return answer
    try:
        return json.dumps(answer, indent=2)
    except TypeError:
        raise InvalidOutput("Unsupported model output data type.") from None


def _status(status: int, message: str) -> bytes:
    return _INT.pack(status) + _field(message) + _INT.pack(END)


def _is_out_of_memory(error: Exception) -> bool:
    # CUDA raises its own exception.
    return isinstance(error, MemoryError) or "CUDA" in str(error)


def _field(value: bytes | bytearray | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _INT.pack(len(data)) + data


if __name__ == "__main__":
    sys.exit(main())

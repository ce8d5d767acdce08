"""The worker that TorchServe's Java starts: the same talk as its own, without torch and in haste.

TorchServe's own worker (ts/model_service_worker.py, 0.12) imports torch, which costs each worker
two seconds and 180 MB that the networks, run by ONNX Runtime, do not need; it reads each field of a
message by a call of its own, 31 for a lone request; and it prints lines for each batch. This one
does not. To the same bytes both say the same (tests/test_worker.py), but this one does less.

It refuses, and says so:
- what Java asks for by `asyncCommunication` (--async) and by `parallelType` (torchrun);
- service envelopes, and handlers that are functions, or TorchServe's own;
- an archive without a manifest.
It leaves out:
- answers in parts (`send_intermediate_predict_response`, `stopping_criteria`, `ts_stream_next`),
  and answers that are tensors;
- the metric PredictionTime, and the request id of what a handler measures while it loads;
- the profile that TS_BENCHMARK asks for;
- lines in the log: for each connection, load and batch, and each body that is no JSON or text.
It does otherwise:
- a handler is given bytes, not bytearrays;
- a load that fails in any way is told to Java, not only for want of memory or by a RuntimeError;
- an answer that can't be encoded fails its batch, not the worker.

`serving` copies this file to where Java looks for the worker. It knows nothing of the project, only
of `ts` and orjson, and of archives whose handler is one class with `initialize` and `handle`.

A message is made of fields: an int (4 bytes, big-endian), or an int and so many bytes. -1 ends a
list. Java sends
    L  model name, folder, batch size (int), handler, gpu (int, -1: none), envelope, a flag (1 byte)
    I  a list of requests: id, a list of headers (name, value), a list of inputs (name, type, value)
and is answered by a status (int), a message, and a list of answers: id, content type, status (int),
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml
from ts import __version__
from ts.context import Context, RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.utils.util import PredictionException

LOAD, INFER = b"L", b"I"
END = -1
# The name of the process, which shows what has to be finished before it may be stopped
# (serving/rollout/rest.py).
BUSY, IDLE = b"worker: busy", b"worker: idle"
# Java connects at once, or something is wrong with it.
PATIENCE = 30
DECODES = os.environ.get("TS_DECODE_INPUT_REQUEST", "true") == "true"
# So many commas, or opening brackets of a kind, JSON may have; 128 images need some hundreds.
MOST_VALUES = 10_000
# What is asked of the socket at once: a whole batch of small images.
CHUNK = 1 << 18
_INT = struct.Struct("!i")

Handle = Callable[[Sequence[Mapping[str, Any]], Context], Any]


class Hangup(Exception):
    """Java has closed the connection."""


class Useless(Exception):
    """What the handler returned is no answer to its batch; the message goes to the client."""


@dataclass
class Request:
    """One request of a batch, as a handler is given it."""

    id: str
    row: dict[str, Any]
    headers: dict[str, Any]


class Message:
    """The fields that Java sends, taken from a buffer that is filled again where it runs short."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self._data, self._at = b"", 0

    def raw(self, length: int) -> bytes:
        """Read so many bytes; raise Hangup, and ValueError if there can't be so many."""
        if length < 0:
            raise ValueError(f"{length} is no length.")
        if (lacking := self._at + length - len(self._data)) > 0:
            self._fill(lacking)
        start, self._at = self._at, self._at + length
        return self._data[start : self._at]

    def number(self) -> int:
        value: int = _INT.unpack(self.raw(4))[0]
        return value

    def text(self) -> str:
        return self.raw(self.number()).decode()

    def fields(self) -> list[bytes]:
        """Read a list to its end: the fields of all its items, in a row."""
        found: list[bytes] = []
        while lacking := self._take(found):
            self._fill(lacking)
        return found

    def _take(self, found: list[bytes]) -> int:
        """Take the fields of a list that are at hand; return how many bytes lack, 0 at its end.

        A batch has hundreds, so there is no call for each.
        """
        data, at, size = self._data, self._at, len(self._data)
        number_at = _INT.unpack_from
        while (end := at + 4) <= size:
            (length,) = number_at(data, at)
            if length < 0:
                self._at = end
                if length == END:
                    return 0
                raise ValueError(f"{length} is no length.")
            start, end = end, end + length
            if end > size:
                break
            found.append(data[start:end])
            at = end
        self._at = at
        return end - size

    def _fill(self, lacking: int) -> None:
        """Receive so many bytes, or more if they are there, behind what was not read yet."""
        parts = [self._data[self._at :]]
        # What was read is not kept while Java is waited for: it may have been large.
        self._data, self._at = b"", 0
        while lacking > 0:
            parts.append(self._receive(CHUNK))
            if not parts[-1]:
                raise Hangup
            lacking -= len(parts[-1])
        self._data = b"".join(parts)


class Model:
    """An archive's handler, initialized."""

    def __init__(self, context: Context, handle: Handle) -> None:
        self._context, self._handle = context, handle

    def answer(self, batch: Sequence[Request]) -> bytes:
        """Return the reply to a batch: an answer to each request, or to all of them what failed."""
        ids = dict(enumerate(request.id for request in batch))
        self._context.request_ids = self._context.metrics.request_ids = ids
        self._context.request_processor = [RequestProcessor(each.headers) for each in batch]
        try:
            answers = self._handle([request.row for request in batch], self._context)
            return _success(ids, answers, self._context)
        except Useless as useless:
            logging.error("%s", useless)
            return _failure(ids, 503, str(useless))
        except PredictionException as error:
            logging.exception("The handler refused.")
            return _failure(ids, error.error_code, error.message)
        except Exception as error:
            logging.exception("The handler failed.")
            # CUDA says by an error of its own that it is out of memory.
            if isinstance(error, MemoryError) or "CUDA" in str(error):
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
    # Java reads what is printed, line by line.
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    if options.asynchronous or "LOCAL_RANK" in os.environ:
        # One line: what waits for the workers looks for it (serving/rollout/readiness.py).
        logging.error("Error: this worker knows neither --async nor torchrun (LOCAL_RANK).")
        return 1
    try:
        metrics = MetricsCacheYamlImpl(config_file_path=options.metrics_config)
        metrics.initialize_cache()
        with _listen(options) as listener:
            logging.info("[PID]%d", os.getpid())
            logging.info("Torch worker started.")
            logging.info("Python runtime: %s", platform.python_version())
            connection = _accept(listener)
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
    message: Message,
    send: Callable[[bytes], None],
    metrics: Any,
    show: Callable[[bytes], object] = lambda state: None,
) -> None:
    """Answer Java until it hangs up: raises Hangup, and what makes no sense as ValueError."""
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
            raise ValueError(f"{command!r} is no command, or no model is loaded.")


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


def _accept(listener: socket.socket) -> socket.socket:
    try:
        return listener.accept()[0]
    except TimeoutError:
        raise TimeoutError(f"Nobody connected to this worker within {PATIENCE} s.") from None


def _load(message: Message, send: Callable[[bytes], None], metrics: Any) -> Model:
    """Load an archive, and tell Java how that went; raise what went wrong."""
    name, folder = message.text(), Path(message.text())
    batch_size, handler, gpu = message.number(), message.text(), message.number()
    envelope, limit_pixels = message.text(), message.raw(1) != b"\0"
    metrics.model_name = name
    try:
        if envelope:
            raise RuntimeError(f"This worker knows no service_envelope, as {envelope!r} is.")
        manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
        context = Context(
            name,
            str(folder),
            manifest,
            batch_size,
            gpu if gpu >= 0 else None,
            __version__,
            limit_pixels,
            metrics,
            _config(folder, manifest["model"].get("configFile")),
        )
        entry = _entry_class(handler)()
        entry.initialize(context)
        model = Model(context, entry.handle)
    except Exception as error:
        # One line: what waits for the workers looks for it (serving/rollout/readiness.py).
        logging.error("Failed to load model %s, exception %s", name, " ".join(str(error).split()))
        memory = isinstance(error, MemoryError) or "CUDA" in str(error)
        send(_status(507, "System out of memory") if memory else _status(500, "Unknown exception"))
        raise
    # What is loaded stays: the garbage collector need not look at it again.
    gc.collect()
    gc.freeze()
    send(_status(200, f"loaded model {name}"))
    return model


def _config(folder: Path, name: str | None) -> Any:
    if not name:
        return {}
    # The file itself, not its text: a complaint then names it.
    with (folder / name).open() as file:
        return yaml.safe_load(file)


def _entry_class(handler: str) -> type[Any]:
    name, _, function = handler.partition(":")
    module = importlib.import_module(Path(name).stem)
    if function or hasattr(module, "handle"):
        raise RuntimeError(f"This worker knows no handler that is a function, as {handler} has.")
    classes = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise RuntimeError(f"{handler} must define one class, not {len(classes)}.")
    return classes[0]


def _requests(message: Message) -> Iterator[Request]:
    # To the end of the headers, all that a request begins with are fields.
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
    """Return JSON (but endless one) and text as what they say, if they do; the rest as it is."""
    if DECODES and content_type == "application/json" and not _is_endless(value):
        # Recursion without end is refused by an error of its own.
        with contextlib.suppress(ValueError, RecursionError, MemoryError):
            return _from_json(value)
    if DECODES and content_type.startswith("text"):
        with contextlib.suppress(ValueError):
            return value.decode()
    return value


def _is_endless(value: bytes) -> bool:
    """Tell whether JSON has so many values that to parse it would take seconds.

    But for the first, each value comes after a comma, or opens with what it lies in. Base64 has
    none of these.
    """
    for mark in (b",", b"[", b"{"):
        at = -1
        for _ in range(MOST_VALUES):
            at = value.find(mark, at + 1)
            if at < 0:
                break
        else:
            return True
    return False


def _from_json(value: bytes) -> Any:
    """Return what JSON says by json.loads, which orjson does in a quarter of the time.

    But orjson refuses some of it (NaN, half of a surrogate pair), and makes a float of an int of
    more than 64 bits.
    """
    with contextlib.suppress(ValueError):
        document = orjson.loads(value)
        if not _has_float(document):
            return document
    return json.loads(value.decode())


def _has_float(document: Any) -> bool:
    groups: list[Iterable[Any]] = [[document]]
    for group in groups:
        kinds = set(map(type, group))
        if float in kinds:
            return True
        if dict in kinds:
            groups += [each.values() for each in group if isinstance(each, dict)]
        if list in kinds:
            groups += [each for each in group if isinstance(each, list)]
    return False


def _success(ids: Mapping[int, str], answers: Any, context: Context) -> bytes:
    if not isinstance(answers, list):
        raise Useless("Invalid model predict output")
    if len(answers) != len(ids):
        raise Useless("number of batch response mismatched")
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
    """Reply to a whole batch that it failed."""
    parts = [_INT.pack(status), _field(reason)]
    for each in ids.values():
        parts += [_field(each), _field(""), _INT.pack(status), _field(""), _INT.pack(0)]
        parts.append(_field("error"))
    return b"".join([*parts, _INT.pack(END)])


def _encoded(answer: Any) -> bytes | str:
    if isinstance(answer, bytearray):
        return bytes(answer)
    if isinstance(answer, (bytes, str)):
        return answer
    try:
        return json.dumps(answer, indent=2)
    except TypeError:
        raise Useless("Unsupported model output data type.") from None


def _status(status: int, said: str) -> bytes:
    return _INT.pack(status) + _field(said) + _INT.pack(END)


def _field(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _INT.pack(len(data)) + data


if __name__ == "__main__":
    sys.exit(main())

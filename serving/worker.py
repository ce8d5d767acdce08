"""The worker that TorchServe's Java starts: the same talk as its own, without torch and in haste.

TorchServe's own worker (ts/model_service_worker.py, 0.12) imports torch, which costs each worker
two seconds and 180 MB that the networks, run by ONNX Runtime, do not need; it reads each field of a
message by a call of its own, 31 for a lone request; and it prints a line for each batch. This one
does not, and is otherwise the same: tests/test_worker.py has both say the same to the same bytes.

`serving` copies this file to where Java looks for the worker. It knows nothing of the project, only
of `ts`, and of archives whose handler is one class with `initialize` and `handle`.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from ts import __version__
from ts.context import Context, RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.utils.util import PredictionException

LOAD, INFER = b"L", b"I"
END = -1
# Java connects at once, or something is wrong with it.
PATIENCE = 30
DECODES = os.environ.get("TS_DECODE_INPUT_REQUEST", "true") == "true"
_INT = struct.Struct("!i")

Handle = Callable[[Sequence[Mapping[str, Any]], Context], Any]


class Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


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
    """The fields that Java sends."""

    def __init__(self, stream: Reads) -> None:
        self._stream = stream

    def raw(self, length: int) -> bytes:
        """Read so many bytes; raise Hangup, and ValueError if there can't be so many."""
        if length < 0:
            raise ValueError(f"{length} is no length.")
        data = self._stream.read(length)
        if len(data) < length:
            raise Hangup
        return data

    def number(self) -> int:
        value: int = _INT.unpack(self.raw(4))[0]
        return value

    def field(self) -> bytes:
        return self.raw(self.number())

    def text(self) -> str:
        return self.field().decode()

    def texts(self) -> Iterator[str]:
        """Yield the first field of each item of a list, whose other fields are read in between."""
        while (length := self.number()) != END:
            yield self.raw(length).decode()


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
    for name in ("--sock-type", "--sock-name", "--host", "--port", "--metrics-config"):
        parser.add_argument(name)
    options, _others = parser.parse_known_args()
    # Java reads what is printed, line by line.
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    try:
        metrics = MetricsCacheYamlImpl(config_file_path=options.metrics_config)
        metrics.initialize_cache()
        with _listen(options) as listener:
            logging.info("[PID]%d", os.getpid())
            logging.info("Torch worker started.")
            logging.info("Python runtime: %s", platform.python_version())
            connection = _accept(listener)
        connection.setblocking(True)
        with connection, connection.makefile("rb", 1 << 18) as stream:
            serve(Message(stream), connection.sendall, metrics)
    except Hangup:
        return 0
    except Exception:
        logging.exception("Backend worker process died.")
    finally:
        if options.sock_name:
            Path(options.sock_name).unlink(missing_ok=True)
    return 1


def serve(message: Message, send: Callable[[bytes], None], metrics: Any) -> None:
    """Answer Java until it hangs up: raises Hangup, and what makes no sense as ValueError."""
    model: Model | None = None
    while True:
        command = message.raw(1)
        if command == INFER and model:
            send(model.answer([_request(message, each) for each in message.texts()]))
        elif command == LOAD:
            model = _load(message, send, metrics)
        else:
            raise ValueError(f"{command!r} is no command, or no model is loaded.")


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
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
    config = manifest["model"].get("configFile")
    metrics.model_name = name
    context = Context(
        name,
        str(folder),
        manifest,
        batch_size,
        gpu if gpu >= 0 else None,
        __version__,
        limit_pixels,
        metrics,
        yaml.safe_load((folder / config).read_text()) if config else {},
    )
    try:
        if envelope:
            raise RuntimeError(f"This worker knows no service_envelope, as {envelope!r} is.")
        entry = _entry_class(handler)()
        entry.initialize(context)
    except Exception as error:
        # One line: what waits for the workers looks for it (serving/readiness.py).
        logging.error("Failed to load model %s, exception %s", name, " ".join(str(error).split()))
        memory = isinstance(error, MemoryError) or "CUDA" in str(error)
        send(_status(507, "System out of memory") if memory else _status(500, "Unknown exception"))
        raise
    # What is loaded stays: the garbage collector need not look at it again.
    gc.collect()
    gc.freeze()
    send(_status(200, f"loaded model {name}"))
    return Model(context, entry.handle)


def _entry_class(handler: str) -> type[Any]:
    module = importlib.import_module(Path(handler).stem)
    classes = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise RuntimeError(f"{handler} must define one class, not {len(classes)}.")
    return classes[0]


def _request(message: Message, request_id: str) -> Request:
    """Read the rest of a request, whose id was read."""
    headers = {name: message.text() for name in message.texts()}
    row, types = {}, {}
    for name in message.texts():
        content_type = message.text()
        row[name] = _decoded(message.field(), content_type)
        types[name] = {"content-type": content_type}
    return Request(request_id, row, types | headers)


def _decoded(value: bytes, content_type: str) -> Any:
    """Return JSON and text as what they say, if they do; the rest as it is."""
    if DECODES and content_type == "application/json":
        # Recursion without end is refused by an error of its own.
        with contextlib.suppress(ValueError, RecursionError, MemoryError):
            return json.loads(value.decode())
    if DECODES and content_type.startswith("text"):
        with contextlib.suppress(ValueError):
            return value.decode()
    return value


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

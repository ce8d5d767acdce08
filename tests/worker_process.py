"""A worker process and its protocol, as on TorchServe's Java side."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.settings import ROOT

PATIENCE = 60


def field(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!i", len(data)) + data


END_OF_LIST = struct.pack("!i", -1)


def load_message(folder: Path, batch_size: int = 4, gpu: int = -1, model: str = "echo") -> bytes:
    return b"".join(
        [
            b"L" + field(model) + field(str(folder)) + struct.pack("!i", batch_size),
            field(f"{model}_handler.py") + struct.pack("!i", gpu) + field("") + b"\1",
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
                if self.process.poll() is not None or time.monotonic() > until:
                    self.process.kill()
                    self.process.wait()
                    raise AssertionError(self.log.read_text()) from None
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

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()

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

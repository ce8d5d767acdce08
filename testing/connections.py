"""Misbehaving clients: slow, leaving early, or many at once; and the bodies they send.

HTTP libraries do not support this. Each client returns a status, "closed" for a connection that
ends without one, "refused", or "nothing" after a timeout.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import resource
import selectors
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from urllib3 import encode_multipart_formdata

PATIENCE = 60.0
# Bytes that a slow client sends at once, and seconds that it then waits.
TRICKLE, PACE = 8, 0.5
# The same for all forms, so that one content type fits them.
BOUNDARY = "end-of-a-field-6f1d2c"


@dataclass(frozen=True)
class Call:
    """A POST request."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    # Of the server, for an https address.
    certificate: Path | None = None
    # The address to send from, such as another of this machine.
    source: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    @property
    def head(self) -> bytes:
        """Return the request line and the headers."""
        host, port = self.address
        given = {"Host": f"{host}:{port}", "Content-Length": str(len(self.body)), **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        return f"POST {urlsplit(self.url).path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


def in_form(images: Sequence[bytes]) -> tuple[str, bytes]:
    """Return content type and body of a form of images; a single one is named `image`."""
    names = ["image"] if len(images) == 1 else [f"image{at}" for at in range(len(images))]
    files = [(name, (name, data, "image/jpeg")) for name, data in zip(names, images, strict=True)]
    body, content_type = encode_multipart_formdata(files, BOUNDARY)
    return content_type, body


def in_json(images: Sequence[bytes]) -> tuple[str, bytes]:
    """Return content type and body of images in KServe's JSON."""
    instances = [{"b64": base64.b64encode(image).decode()} for image in images]
    return "application/json", json.dumps({"instances": instances}).encode()


def ask(call: Call) -> str:
    """Send one request over plain HTTP; return the status, with the type of an error."""
    connection = http.client.HTTPConnection(*call.address, timeout=PATIENCE)
    with contextlib.closing(connection):
        try:
            connection.request("POST", urlsplit(call.url).path, call.body, dict(call.headers))
            response = connection.getresponse()
            body = response.read()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "nothing"
        except (OSError, http.client.HTTPException):
            return "closed"
    if response.status == 200:
        return "200"
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return f"{response.status} {json.loads(body)['type']}"
    return str(response.status)


def once(call: Call) -> str:
    """Send one request; return the status."""
    [status] = at_once(call, 1)
    return status


def at_once(call: Call, count: int) -> Counter[str]:
    """Send many requests at once, each on its own connection."""
    return _all(count, lambda: _ask(call))


def slow(call: Call, count: int, seconds: float) -> Counter[str]:
    """Trickle a body over many connections, and close them after some seconds ("let go")."""
    return _all(count, lambda: _trickle(call, seconds))


def held(call: Call, head: bytes, count: int, seconds: float) -> Counter[str]:
    """Keep connections open for some seconds, a hundred new ones at a time, and send nothing more.

    With a head, each sends it and returns the status. Without, "open" is a connection that was
    accepted, and nothing is said on it, not even TLS.
    """
    if not head:
        call = replace(call, certificate=None)
    _allow_files(count)
    ending = asyncio.Event()

    async def hold(opening: asyncio.Semaphore) -> str:
        async with opening:
            reader, writer = await _open(call)
            writer.write(head)
            said = await _status(reader) if head else "open"
        await ending.wait()
        writer.close()
        return said

    async def gather() -> list[str]:
        opening = asyncio.Semaphore(100)
        asyncio.get_running_loop().call_later(seconds, ending.set)
        return await asyncio.gather(*(_told(hold(opening)) for _ in range(count)))

    return Counter(asyncio.run(gather()))


def _allow_files(count: int) -> None:
    """Let this process open so many files more, where it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 1024 <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + 1024, hard))


def half_sent(call: Call, count: int) -> Counter[str]:
    """Send half of a body, then disconnect."""
    return _all(count, lambda: _leave(call, len(call.body) // 2))


def leaving(call: Call, count: int) -> Counter[str]:
    """Send a body, and disconnect before the answer."""
    return _all(count, lambda: _leave(call, len(call.body)))


def _all(count: int, one: Callable[[], Awaitable[str]]) -> Counter[str]:
    async def gather() -> list[str]:
        return await asyncio.gather(*(_told(one()) for _ in range(count)))

    return Counter(asyncio.run(gather()))


async def _told(asked: Awaitable[str]) -> str:
    try:
        return await asyncio.wait_for(asked, PATIENCE)
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "nothing"
    except OSError:
        return "closed"


async def _open(call: Call) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    secure = ssl.create_default_context(cafile=call.certificate) if call.certificate else None
    source = (call.source, 0) if call.source else None
    return await asyncio.open_connection(*call.address, ssl=secure, local_addr=source)


async def _ask(call: Call) -> str:
    reader, writer = await _open(call)
    try:
        writer.write(call.head + call.body)
        await writer.drain()
        return await _status(reader)
    finally:
        writer.close()


async def _trickle(call: Call, seconds: float) -> str:
    reader, writer = await _open(call)
    try:
        writer.write(call.head)
        answer = asyncio.ensure_future(_status(reader))
        for at in range(int(seconds / PACE)):
            writer.write(call.body[at * TRICKLE : (at + 1) * TRICKLE])
            await writer.drain()
            done, _ = await asyncio.wait([answer], timeout=PACE)
            if done:
                return answer.result()
        answer.cancel()
        return "let go"
    finally:
        writer.close()


async def _leave(call: Call, sent: int) -> str:
    _, writer = await _open(call)
    writer.write(call.head + call.body[:sent])
    await writer.drain()
    # With a reset, like a program that is killed.
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.close()
    return "left"


async def _status(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    return line.split()[1].decode() if line.startswith(b"HTTP/") else "closed"


def readable(files: Iterable[Any], seconds: float) -> list[Any]:
    """Wait until any of the files can be read; return those, none after so many seconds.

    Unlike select.select, it takes files with descriptors above 1023.
    """
    with selectors.DefaultSelector() as selector:
        for each in files:
            selector.register(each, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(seconds)]

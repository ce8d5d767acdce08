"""Clients that behave badly: slow ones, ones that leave, ones that come all at once.

They speak HTTP by hand, as no library behaves so. Each is told by what it saw: a status,
"closed" without one, "refused", or "nothing" until patience ended.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 60.0
# Bytes that a slow client sends at once, and the seconds between.
TRICKLE, PACE = 8, 0.5


@dataclass(frozen=True)
class Call:
    """A POST: where to, with what."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    # What an https address is known by.
    certificate: Path | None = None

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


def at_once(call: Call, count: int) -> Counter[str]:
    """Ask so many times at once, each by its own connection."""
    return _all(count, lambda: _ask(call))


def slow(call: Call, count: int, seconds: float) -> Counter[str]:
    """Trickle a body over so many connections, and let go of them after some seconds."""
    return _all(count, lambda: _trickle(call, seconds))


def half_sent(call: Call, count: int) -> Counter[str]:
    """Send half of a body so many times, and leave."""
    return _all(count, lambda: _leave(call, len(call.body) // 2))


def leaving(call: Call, count: int) -> Counter[str]:
    """Send a body so many times, and leave before the answer."""
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
    return await asyncio.open_connection(*call.address, ssl=secure)


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
    # By a reset, as a program that was killed leaves.
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.close()
    return "left"


async def _status(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    return line.split()[1].decode() if line.startswith(b"HTTP/") else "closed"

"""Requests that the HTTP parser of TorchServe's netty misreads, and that the edge must not pass on.

SECURITY.md lists the advisories.
"""

from __future__ import annotations

import pytest
from edges import Asker

# The programs' path and the page's.
PATHS = ("/predictions/bloodcells", "/api/predictions")
LENGTH, CHUNKED = "Content-Length: 1", "Transfer-Encoding: chunked"
# The second request is within the first or after it, depending on the header that counts.
SMUGGLED = b"0\r\n\r\nGET /models HTTP/1.1\r\nHost: a\r\n\r\n"
# nginx ignores empty lines before a request, as RFC 9112 allows.
CONTROLS = [bytes([code]) for code in (*range(0x20), 0x7F) if code not in b"\r\n"]


@pytest.mark.live
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", [(LENGTH, CHUNKED), (CHUNKED, LENGTH), (CHUNKED,)])
def test_chunks_over_http_1_0_are_refused(edge: Asker, path: str, headers: tuple[str, ...]) -> None:
    """CVE-2026-42581."""
    head = edge.head(*headers, path=path).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n")
    answer = edge.exchange(head + SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert edge.stand_in
    assert edge.stand_in.requests == []


@pytest.mark.live
@pytest.mark.parametrize("path", PATHS)
def test_control_bytes_before_a_request_are_refused(edge: Asker, path: str) -> None:
    """CVE-2026-50020."""
    assert edge.stand_in
    request = edge.head("Content-Length: 1", path=path) + b"x"
    for before in (*CONTROLS, b"\0\r\n", b"\r\n\0"):
        answer = edge.exchange(before + request)
        assert answer.startswith(b"HTTP/1.1 400 "), before
        assert answer.count(b"HTTP/1.1 ") == 1
    assert edge.stand_in.requests == []
    # Also between two requests on a connection.
    answer = edge.exchange(request + b"\x00" + request)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in answer
    assert [asked for asked, _ in edge.stand_in.requests] in (
        ["/predictions/bloodcells/1.0"],
        [path],
    )

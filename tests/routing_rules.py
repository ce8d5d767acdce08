"""What serving/client.py and the edge do with each answer of TorchServe: one table for both.

The routing gives all clients the canary 3.0, or serves 1.0 alone where `canary` is false.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

OK: tuple[Any, ...] = (200, b"{}")
CLIENT, EDGE = "client", "edge"


def error(status: int, kind: str, *headers: tuple[str, str]) -> tuple[Any, ...]:
    document = {"code": status, "type": kind, "message": "why"}
    return status, json.dumps(document).encode(), *headers


DIED = error(500, "InternalServerException")
OUT_OF_MEMORY = error(507, "OutOfMemoryException")
FULL = error(503, "ServiceUnavailableException")
FAILED = error(503, "InternalServerException")
BAD_IMAGE = error(415, "UnsupportedImage", ("X-Model-Version", "3.0"))
PUT_OFF = error(503, "ServiceBusy", ("X-Model-Version", "3.0"))
RETIRED = error(404, "ModelVersionNotFoundException")
# The second one is renewed while it is refused.
BAD_TOKEN = error(400, "InvalidKeyException")
OLD_TOKEN = error(400, "InvalidKeyException", ("X-Renewed", "true"))


def disconnect(request: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer, like a killed Java."""
    request.connection.shutdown(socket.SHUT_RDWR)


def disconnect_midway(request: BaseHTTPRequestHandler) -> None:
    """Close the connection in the middle of the answer."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-Model-Version: 3.0\r\n\r\n{")
    disconnect(request)


@dataclass(frozen=True)
class Rule:
    """One situation, and the expected result."""

    situation: str
    # Answers of TorchServe, in order; the last one is repeated.
    answers: list[Any]
    # The versions that get a request, in order.
    asked: list[str]
    # The outcomes that are recorded for the canary: a version, and whether it failed.
    outcomes: list[tuple[str, bool]]
    # The type of the error that the client gets.
    error: str | None = None
    # Its status at the edge.
    status: int = 200
    endpoint: str = "predictions"
    named: str | None = None
    canary: bool = True
    only: str | None = None


GOOD_CANARY, BAD_CANARY = ("3.0", False), ("3.0", True)
GOOD, BAD = ("1.0", False), ("1.0", True)
UNAVAILABLE = ("ServiceUnavailable", 503)

RULES = [
    Rule("the canary answers", [OK], ["3.0"], [GOOD_CANARY]),
    # The canary is at fault: the default version answers.
    Rule("the canary fails", [FAILED, OK], ["3.0", "1.0"], [BAD_CANARY, GOOD]),
    Rule("both fail", [FAILED], ["3.0", "1.0"], [BAD_CANARY, BAD], *UNAVAILABLE),
    Rule("its worker dies", [DIED, OK], ["3.0", "1.0"], [BAD_CANARY, GOOD]),
    Rule("no memory", [OUT_OF_MEMORY, OK], ["3.0", "1.0"], [BAD_CANARY, GOOD]),
    Rule("its queue is full", [FULL, OK], ["3.0", "1.0"], [BAD_CANARY, GOOD]),
    Rule(
        "a strange status", [error(405, "")], ["3.0", "1.0"], [BAD_CANARY, BAD], "ServiceError", 502
    ),
    # An image that kills workers is sent twice at most.
    Rule("a fatal image", [DIED], ["3.0", "1.0"], [BAD_CANARY, BAD], *UNAVAILABLE),
    # The service is at fault, or no one.
    Rule("all queues are full", [FULL], ["3.0", "1.0"], [], "ServiceBusy", 429),
    Rule("Java restarts", [disconnect, OK], ["3.0", "1.0"], [GOOD]),
    Rule("Java dies midway", [disconnect_midway, OK], ["3.0", "1.0"], [GOOD]),
    Rule("Java dies twice", [disconnect], ["3.0", "1.0"], [], *UNAVAILABLE),
    Rule("the canary is retired", [RETIRED, OK], ["3.0", "1.0"], [GOOD]),
    Rule("the token is renewed", [OLD_TOKEN, OK], ["3.0"] * 2, [GOOD_CANARY]),
    Rule("renewed twice", [OLD_TOKEN, OLD_TOKEN, OK], ["3.0"] * 3, [GOOD_CANARY]),
    Rule("the token is refused", [BAD_TOKEN], ["3.0"], [], "ServiceError", 502),
    Rule("the worker puts it off", [PUT_OFF, OK], ["3.0"] * 2, [GOOD_CANARY]),
    # The client is at fault.
    Rule("a bad image", [BAD_IMAGE], ["3.0"], [GOOD_CANARY], "UnsupportedImage", 415),
    Rule("too many bytes", [error(413, "")], ["3.0"], [GOOD_CANARY], "ImageTooLarge", 413),
    # A named version is not replaced.
    Rule("named, fails", [FAILED], ["3.0"], [BAD_CANARY], *UNAVAILABLE, named="3.0"),
    Rule("named, busy", [FULL], ["3.0"], [], "ServiceBusy", 429, named="3.0"),
    Rule("named, dies", [DIED, OK], ["3.0", "3.0"], [BAD_CANARY, GOOD_CANARY], named="3.0"),
    Rule("named, restarts", [disconnect, OK], ["3.0", "3.0"], [GOOD_CANARY], named="3.0"),
    Rule("named, retired", [RETIRED], ["3.0"], [], "NotServed", 404, named="3.0"),
    Rule("named, unknown", [OK], [], [], "NotServed", 404, named="9.9"),
    Rule("named, neither canary nor default", [OK], ["4.0"], [], named="4.0"),
    # Without a canary no outcome is recorded.
    Rule("the default answers", [OK], ["1.0"], [], canary=False),
    Rule("the default fails", [FAILED], ["1.0"], [], *UNAVAILABLE, canary=False),
    Rule("the default is busy", [FULL], ["1.0"], [], "ServiceBusy", 429, canary=False),
    Rule("the default dies", [DIED, OK], ["1.0", "1.0"], [], canary=False),
    # Explanations take longer, so their outcomes are not recorded.
    Rule("explained", [OK], ["3.0"], [], named="3.0", endpoint="explanations"),
    Rule("explained, dies", [DIED, OK], ["3.0"] * 2, [], named="3.0", endpoint="explanations"),
    Rule("explained, fails", [FAILED, OK], ["3.0", "1.0"], [], endpoint="explanations", only=EDGE),
    # The edge does not parse answers.
    Rule("no JSON", [(200, b"<")], ["3.0", "1.0"], [BAD_CANARY, BAD], "ServiceError", only=CLIENT),
]

"""How many uploads one address may send."""

import math
import time
from ipaddress import IPv4Address, ip_address, ip_network

from flask import Flask, request
from flask.typing import ResponseReturnValue
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from .errors import upload_problem


def init_app(app: Flask) -> None:
    """Limit the POST requests of each address to RATE_LIMIT; further ones get 429."""
    limiter = Limiter(
        address,
        app=app,
        application_limits=[app.config["RATE_LIMIT"]],
        application_limits_exempt_when=lambda: request.method != "POST",
        strategy="sliding-window-counter",
        storage_uri="memory://",
    )

    def too_many(error: Exception) -> ResponseReturnValue:
        limit = limiter.current_limit
        # Not limit.reset_at: it rounds up by a whole second.
        wait = limit.window.reset_time - time.time() if limit else 0
        return upload_problem("TooManyRequests", max(1, math.ceil(wait)))

    app.register_error_handler(429, too_many)


def address() -> str:
    """Return the address of the visitor: behind the edge, the one that the edge reports.

    Direct requests come from loopback only, where a client may claim any address. Of IPv6, the
    network: a visitor has all addresses of one.
    """
    try:
        found = ip_address(request.headers.get("X-Real-IP") or get_remote_address())
    except ValueError:
        return get_remote_address()
    if isinstance(found, IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ip_network((found, 64), strict=False))

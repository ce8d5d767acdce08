"""How fast one address may ask."""

import time

from flask import Flask, request
from flask.typing import ResponseReturnValue
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from .errors import upload_problem


def init_app(app: Flask) -> None:
    """Limit the POST requests of each address to RATE_LIMIT; one more is answered 429."""
    limiter = Limiter(
        visitor,
        app=app,
        application_limits=[app.config["RATE_LIMIT"]],
        application_limits_exempt_when=lambda: request.method != "POST",
        strategy="sliding-window-counter",
        storage_uri="memory://",
    )

    def too_many(error: Exception) -> ResponseReturnValue:
        limit = limiter.current_limit
        seconds = int(limit.reset_at - time.time()) + 1 if limit else 1
        return upload_problem("TooManyRequests", seconds)

    app.register_error_handler(429, too_many)


def visitor() -> str:
    """Return the address of who asks: behind the edge, the one that it tells.

    Where the page is asked directly, which is on loopback only, anyone may claim one.
    """
    return request.headers.get("X-Real-IP") or get_remote_address()

"""Whether the service answers a known image correctly, checked at most once a second."""

import threading
import time
from collections.abc import Callable

from flask import Flask, current_app

from serving.client import ServiceError

# Each check runs the model: visitors and probes share one result for this many seconds.
SECONDS = 1.0


class Readiness:
    """The latest result of `check`, which raises ServiceError if the service is not ready."""

    def __init__(
        self, check: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._check, self._clock = check, clock
        self._lock = threading.Lock()
        self._expires = float("-inf")
        self._error: ServiceError | None = None

    def error(self) -> ServiceError | None:
        """Return why the service is not ready, or None. Concurrent callers wait for one check."""
        with self._lock:
            if self._clock() >= self._expires:
                try:
                    self._check()
                    self._error = None
                except ServiceError as error:
                    self._error = error
                self._expires = self._clock() + SECONDS
            return self._error


def init_app(app: Flask) -> None:
    """Let `app` check the service behind it."""
    app.extensions["readiness"] = Readiness(lambda: app.config["CLIENT"].check_ready())


def error() -> ServiceError | None:
    """Return why the service behind this page is not ready, or None."""
    readiness: Readiness = current_app.extensions["readiness"]
    return readiness.error()

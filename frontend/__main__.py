"""Serve the page by waitress until SIGTERM or SIGINT: `python -m frontend`."""

import logging
import signal
import sys
import time
from types import FrameType
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.server import create_server

from serving.settings import HOST, Settings, SettingsError

from . import create_app

# Bodies up to this are read, so that a too large image gets a friendly page; above it, waitress
# answers in plain text. Times CONNECTIONS, it is the most memory that uploads can take.
MAX_BODY = 24 * 1024 * 1024
CONNECTIONS = 50
# Longer than the client of the service waits for an answer.
GRACE_SECONDS = 25

logger = logging.getLogger("frontend")


def main() -> None:
    """Serve the page on the port of the settings."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        port = Settings.from_environment().frontend_port
        app = create_app()
    except SettingsError as error:
        sys.exit(str(error))
    try:
        server = bind(app, port)
    except OSError as error:
        sys.exit(f"Cannot listen on {HOST}:{port}: {error.strerror}. Set FRONTEND_PORT to another.")
    run(server)


def bind(app: Flask, port: int) -> Any:
    """Return a waitress server for `app` that keeps every request and answer in memory."""
    return create_server(
        app,
        host=HOST,
        port=port,
        threads=8,
        connection_limit=CONNECTIONS,
        max_request_body_size=MAX_BODY,
        # Above these sizes waitress would write to temporary files.
        inbuf_overflow=2 * MAX_BODY,
        outbuf_overflow=2 * MAX_BODY,
        ident=None,
    )


def run(server: Any) -> None:
    """Serve until a signal asks to stop, then finish what is in flight."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        server.pull_trigger()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    logger.info("serving on http://%s:%s", server.effective_host, server.effective_port)
    while not stopping:
        wasyncore.loop(timeout=1, map=server._map, count=1)
    drain(server)
    logger.info("stopped")


def drain(server: Any) -> None:
    """Stop listening, and wait for the open requests, but not for ever.

    waitress's own shutdown drops what is queued and what its threads have not sent yet.
    """
    wasyncore.dispatcher.close(server)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(map(in_flight, server.active_channels.values())):
        wasyncore.loop(timeout=0.1, map=server._map, count=1)
    server.task_dispatcher.shutdown(timeout=1)
    wasyncore.close_all(server._map)


def in_flight(channel: Any) -> bool:
    """Return whether a connection still receives, computes or sends."""
    return bool(channel.request or channel.requests or channel.total_outbufs_len)


if __name__ == "__main__":
    main()

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

from . import THREADS, create_app

# Larger bodies get waitress's own 413 in plain text; smaller ones that exceed the limit get a page
# that explains it. MAX_BODY times CONNECTIONS bounds the memory that uploads can take.
MAX_BODY = 24 * 1024 * 1024
CONNECTIONS = 50
# Longer than the client waits for the service.
GRACE_SECONDS = 25

logger = logging.getLogger("frontend")


def main() -> None:
    """Serve the page on the configured port."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # It would log a line for each request that waits for a thread.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    try:
        port = Settings.from_environment().frontend_port
        app = create_app()
    except SettingsError as error:
        sys.exit(str(error))
    try:
        server = bind(app, port)
    except OSError as error:
        sys.exit(
            f"Cannot listen on {HOST}:{port}: {error.strerror}. Set FRONTEND_PORT to another port."
        )
    run(server)


def bind(app: Flask, port: int) -> Any:
    """Return a waitress server for `app` that keeps requests and answers in memory."""
    return create_server(
        app,
        host=HOST,
        port=port,
        threads=THREADS,
        connection_limit=CONNECTIONS,
        max_request_body_size=MAX_BODY,
        # Above these sizes waitress writes temporary files.
        inbuf_overflow=2 * MAX_BODY,
        outbuf_overflow=2 * MAX_BODY,
        ident=None,
        # create_app() decides which of them to trust.
        clear_untrusted_proxy_headers=False,
    )


def run(server: Any) -> None:
    """Serve until SIGTERM or SIGINT, then finish the open requests."""
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
    """Stop listening, then wait up to GRACE_SECONDS for the open requests.

    waitress's own shutdown drops queued requests and unsent answers.
    """
    wasyncore.dispatcher.close(server)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(map(in_flight, server.active_channels.values())):
        wasyncore.loop(timeout=0.1, map=server._map, count=1)
    server.task_dispatcher.shutdown(timeout=1)
    wasyncore.close_all(server._map)


def in_flight(channel: Any) -> bool:
    """Return whether a connection still receives, processes or sends."""
    return bool(channel.request or channel.requests or channel.total_outbufs_len)


if __name__ == "__main__":
    main()

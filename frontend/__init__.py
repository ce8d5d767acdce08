"""The web page: choose images and see which white blood cells the model finds in them.

It holds no model and stores nothing: an upload stays in memory for the time of its request.
"""

import os
import secrets
from typing import Any

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from handler.contract import KINDS, MAX_BYTES
from serving.client import InferenceClient
from serving.settings import Settings

from . import (
    api,
    errors,
    forms,
    headers,
    languages,
    limits,
    metrics,
    models,
    readiness,
    versions,
    views,
)

# The edge passes on 24 uploads at a time, which may all wait for the service.
THREADS = 32
# By suffix, too: some browsers do not know all the media types.
ACCEPT = [name for kind in KINDS.values() for name in (kind.media_type, *kind.suffixes)]


class Page(Flask):
    """A Flask application that reads its requests in memory."""

    request_class = forms.MemoryRequest


def create_app(config: dict[str, Any] | None = None) -> Flask:
    """Build the page; `config` overrides the environment."""
    app = Page(__name__)
    app.config.from_mapping(
        SECRET_KEY=os.environ.get("FRONTEND_SECRET_KEY") or secrets.token_hex(32),
        SESSION_COOKIE_NAME="page",
        SESSION_COOKIE_SAMESITE="Lax",
        MAX_IMAGE_BYTES=MAX_BYTES,
        ACCEPT=",".join(ACCEPT),
        # The token, the image, the version and the sample.
        MAX_FORM_PARTS=4,
        # Werkzeug parses in blocks of 64 KiB, and keeps the rest of one while it reads the next.
        MAX_FORM_MEMORY_SIZE=3 * 64 * 1024,
        MAX_IMAGES=1000,
        RATE_LIMIT=os.environ.get("FRONTEND_RATE_LIMIT") or "3000 per minute",
        # Tokens last as long as their session: a page left open overnight still works.
        WTF_CSRF_TIME_LIMIT=None,
    )
    app.config.update(config or {})
    # The image and the rest of its form: an image of exactly the limit is accepted.
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_IMAGE_BYTES"] + forms.ALLOWANCE
    if "CLIENT" not in app.config:
        app.config["CLIENT"] = InferenceClient(Settings.from_environment(), pool_size=THREADS)

    # The edge sends X-Forwarded-Proto, so that the CSRF check also compares the referrer. No other
    # header of a proxy is trusted, and a direct client that sends this one gains no more than that.
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=0, x_proto=1)  # type: ignore[method-assign]
    # A redirect to the path without double slashes would name the host of the request.
    app.url_map.merge_slashes = False
    # Classes keep the order of their version.
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    # First, to measure also the requests that the others refuse.
    metrics.init_app(app)
    limits.init_app(app)
    forms.Protection(app)
    languages.init_app(app)
    versions.init_app(app)
    readiness.init_app(app)
    errors.init_app(app)
    headers.init_app(app)
    app.register_blueprint(views.bp)
    app.register_blueprint(api.bp)
    app.register_blueprint(models.bp)
    return app

"""Which version answers a person: one of their choice, or the one that the routing gives them."""

import re
import secrets

from flask import Flask, current_app, request, session
from werkzeug.exceptions import RequestEntityTooLarge


def init_app(app: Flask) -> None:
    """Let the form of `app` offer the versions."""
    app.jinja_env.globals.update(serving_versions=serving, chosen_version=chosen)


def serving() -> list[str]:
    """Return the versions that answer, newest first; none while the service is not ready."""
    routing = current_app.config["CLIENT"].routing.read()
    return sorted(routing.versions, key=age, reverse=True) if routing else []


def age(version: str) -> list[int | str]:
    """Return what orders versions by their numbers.

    >>> sorted(["10.0", "2.1", "2.0"], key=age)
    ['2.0', '2.1', '10.0']
    """
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", version)]


def chosen() -> str:
    """Return the version that the form asks for; empty where the routing is to decide."""
    try:
        return request.form.get("version", "")
    except RequestEntityTooLarge:
        # The page about that shows the form, too.
        return ""


def visitor_id() -> str:
    """Return the name by which the routing knows this browser, and nobody else does."""
    if "visitor_id" not in session:
        session["visitor_id"] = secrets.token_hex(8)
    name: str = session["visitor_id"]
    return name

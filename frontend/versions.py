"""Which version answers: the one that the visitor chose, or the routing's."""

import re
import secrets

from flask import Flask, current_app, request, session
from werkzeug.exceptions import RequestEntityTooLarge

from .errors import UploadError


def init_app(app: Flask) -> None:
    """Offer the versions in the form of `app`."""
    app.jinja_env.globals.update(serving_versions=serving, chosen_version=chosen)


def serving() -> list[str]:
    """Return the serving versions, newest first; none while the service is not ready."""
    routing = current_app.config["CLIENT"].routing.read()
    return sorted(routing.versions, key=age, reverse=True) if routing else []


def age(version: str) -> list[int | str]:
    """Return a sort key that orders versions by their numbers.

    >>> sorted(["10.0", "3.1", "3.0"], key=age)
    ['3.0', '3.1', '10.0']
    """
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", version)]


def chosen() -> str:
    """Return the version that the form names, or "" to leave the choice to the routing."""
    try:
        return request.form.get("version", "")
    except (RequestEntityTooLarge, UploadError):
        # The pages of these errors show the form again.
        return ""


def visitor_id() -> str:
    """Return a random id of this browser, by which the routing keeps it on one version."""
    if "visitor_id" not in session:
        session["visitor_id"] = secrets.token_hex(8)
    visitor: str = session["visitor_id"]
    return visitor

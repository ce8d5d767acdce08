"""The routes of the page."""

from typing import Any

from flask import Blueprint, abort, redirect, render_template, request, send_file, url_for
from flask.typing import ResponseReturnValue

from . import images, models, readiness, samples, texts, uploads
from .languages import COOKIE, LANGUAGES

bp = Blueprint("page", __name__)

YEAR = 365 * 24 * 3600


@bp.app_context_processor
def words() -> dict[str, Any]:
    """Pass the samples, the texts, and the hashes and recipes of the versions to the templates."""
    return {
        "samples": samples,
        "texts": texts,
        "hashes": models.hashes,
        "recipes": models.recipes,
    }


@bp.get("/")
def index() -> str:
    """Show the form."""
    return render_template("page/index.html")


@bp.post("/")
def classify() -> ResponseReturnValue:
    """Show an uploaded image and the model's answer."""
    upload = uploads.read()
    answer = uploads.predict(upload.image)
    page = render_template(
        "page/result.html", answer=answer, file_name=upload.name, picture=images.shown(upload.image)
    )
    return page, answer.headers


@bp.get("/samples/<name>")
def sample(name: str) -> ResponseReturnValue:
    """Return a sample image of the data set."""
    found = samples.find(name)
    if found is None:
        abort(404)
    return send_file(found.path)


@bp.get("/language/<code>")
def language(code: str) -> ResponseReturnValue:
    """Store the language in a cookie and redirect to the page that the visitor came from."""
    if code not in LANGUAGES:
        abort(404)
    response = redirect(came_from(), 303)
    response.set_cookie(COOKIE, code, max_age=YEAR, httponly=True, samesite="Lax")
    return response


def came_from() -> str:
    """Return the URL of one of our pages, never a URL from the request."""
    version = request.args.get("version")
    match request.args.get("to"):
        case "models.index":
            return url_for("models.index")
        case "models.version" if version:
            return url_for("models.version", version=version)
    return url_for("page.index")


@bp.get("/healthz")
def healthz() -> dict[str, str]:
    """Report that the process runs."""
    return {"status": "ok"}


@bp.get("/readyz")
def readyz() -> ResponseReturnValue:
    """Report whether the service behind the page answers."""
    if error := readiness.error():
        return {"status": "unavailable", "type": error.type}, 503
    return {"status": "ok"}

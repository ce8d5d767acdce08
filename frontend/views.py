"""The addresses of the page."""

from typing import Any

from flask import (
    Blueprint,
    abort,
    current_app,
    redirect,
    render_template,
    request,
    send_file,
    url_for,
)
from flask.typing import ResponseReturnValue

from serving.client import ServiceError

from . import images, samples, texts, uploads
from .languages import COOKIE, LANGUAGES

bp = Blueprint("page", __name__)

YEAR = 365 * 24 * 3600


@bp.app_context_processor
def words() -> dict[str, Any]:
    """Give the templates the samples and what is said of answers."""
    return {"samples": samples, "texts": texts}


@bp.get("/")
def index() -> str:
    """Show the form."""
    return render_template("page/index.html")


@bp.post("/")
def classify() -> ResponseReturnValue:
    """Ask the model about the uploaded image and show its answer beside it."""
    upload = uploads.read()
    answer = uploads.predict(upload.image)
    page = render_template(
        "page/result.html",
        answer=answer,
        file_name=upload.name,
        picture=images.shown(upload.image),
    )
    return page, answer.headers


@bp.get("/samples/<name>")
def sample(name: str) -> ResponseReturnValue:
    """Return an image of the data set that the gallery offers."""
    found = samples.find(name)
    if found is None:
        abort(404)
    return send_file(found.path)


@bp.get("/language/<code>")
def language(code: str) -> ResponseReturnValue:
    """Remember a language and return to the page that the reader came from."""
    if code not in LANGUAGES:
        abort(404)
    response = redirect(came_from(), 303)
    response.set_cookie(COOKIE, code, max_age=YEAR, httponly=True, samesite="Lax")
    return response


def came_from() -> str:
    """Return the address of a page of this application: never one that the request spells out."""
    version = request.args.get("version")
    match request.args.get("to"):
        case "models.index":
            return url_for("models.index")
        case "models.version" if version:
            return url_for("models.version", version=version)
    return url_for("page.index")


@bp.get("/healthz")
def healthz() -> dict[str, str]:
    """Tell that this process lives."""
    return {"status": "ok"}


@bp.get("/readyz")
def readyz() -> ResponseReturnValue:
    """Tell whether the service behind the page can answer."""
    try:
        current_app.config["CLIENT"].check_ready()
    except ServiceError as error:
        return {"status": "unavailable", "type": error.type}, 503
    return {"status": "ok"}

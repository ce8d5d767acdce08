"""The addresses of the page."""

from typing import Any, NamedTuple

from flask import Blueprint, abort, current_app, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from serving.client import ServiceError
from serving.settings import VERSION_NAME

from . import images, versions
from .errors import upload_problem
from .languages import CELLS, COOKIE, LANGUAGES

bp = Blueprint("page", __name__)

YEAR = 365 * 24 * 3600


class Row(NamedTuple):
    """One line of the table of probabilities."""

    name: Any
    share: float


class Answer(NamedTuple):
    """What the model said of an image, ready to be shown."""

    verdict: str
    name: Any
    rows: list[Row]
    model: str
    version: str


@bp.get("/")
def index() -> str:
    """Show the form."""
    return render_template("page/index.html")


@bp.post("/")
def classify() -> ResponseReturnValue:
    """Ask the model about the uploaded image and show its answer beside it."""
    upload = request.files.get("image")
    if upload is None or not upload.filename:
        return upload_problem("NoImage")
    image = upload.read()
    if not image:
        return upload_problem("EmptyImage")
    if len(image) > current_app.config["MAX_IMAGE_BYTES"]:
        return upload_problem("ImageTooLarge")
    version = versions.chosen()
    if version and not VERSION_NAME.fullmatch(version):
        return upload_problem("NotServed")
    try:
        answer = read_answer(
            current_app.config["CLIENT"].predict(
                image, version=version or None, client=versions.person()
            )
        )
    except ServiceError as error:
        current_app.logger.warning("no prediction: %s %s", error.status, error.type)
        return upload_problem(error.type)
    except (KeyError, TypeError, ValueError, AttributeError):
        current_app.logger.exception("the service answered out of contract")
        return upload_problem("ServiceError")
    page = render_template(
        "page/result.html", answer=answer, file_name=upload.filename, **picture(image)
    )
    named = VERSION_NAME.fullmatch(answer.version)
    return page, {"X-Model-Version": answer.version} if named else {}


def read_answer(answer: dict[str, Any]) -> Answer:
    """Return the answer of the service with its cells named and the likeliest first."""
    verdict = answer["verdict"]
    if verdict not in ("confident", "uncertain", "rejected"):
        raise ValueError(f"unknown verdict {verdict!r}")
    rows = [Row(CELLS[label], float(share)) for label, share in answer["probabilities"].items()]
    if any(not 0 <= row.share <= 1 for row in rows):
        raise ValueError("a probability outside 0 to 1")
    return Answer(
        verdict=verdict,
        name=None if verdict == "rejected" else CELLS[answer["label"]],
        rows=sorted(rows, key=lambda row: -row.share),
        model=str(answer["model"]),
        version=str(answer["version"]),
    )


def picture(image: bytes) -> dict[str, Any]:
    """Return the address under which the browser shows the image, and whether that is all of it."""
    kind = images.media_type(image)
    if kind is not None:
        return {"picture": images.data_uri(image, kind), "original": True}
    png = images.thumbnail(image)
    return {"picture": images.data_uri(png, "image/png") if png else None, "original": False}


@bp.get("/language/<code>")
def language(code: str) -> ResponseReturnValue:
    """Remember a language and return to the form."""
    if code not in LANGUAGES:
        abort(404)
    response = redirect(url_for("page.index"), 303)
    response.set_cookie(COOKIE, code, max_age=YEAR, httponly=True, samesite="Lax")
    return response


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

"""Everything that can go wrong, each with its status and its own sentence for a person."""

from typing import Any, NamedTuple

from flask import Flask, current_app, render_template, request
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _l
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException


class Problem(NamedTuple):
    """A status and what to tell a person about it."""

    status: int
    title: Any
    advice: Any


class UploadError(Exception):
    """An upload got no answer: one of the kinds in UPLOAD."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind if kind in UPLOAD else "ServiceError"


# What can be wrong with an upload: the types of ServiceError, and those of the page itself.
UPLOAD = {
    "NoImage": Problem(400, _l("No image was chosen"), _l("Choose an image first, then send it.")),
    "ExpiredForm": Problem(
        400,
        _l("This page was no longer valid"),
        _l("It has been renewed. Choose the image again and send it."),
    ),
    "EmptyImage": Problem(
        400, _l("The file is empty"), _l("There is nothing in it. Choose another image.")
    ),
    "CorruptImage": Problem(
        400,
        _l("The image cannot be read"),
        _l("The file is damaged or incomplete. Choose another image, or save this one again."),
    ),
    "ImageTooLarge": Problem(
        413,
        _l("The image is too large"),
        _l("Send a smaller one: at most %(limit)s MB, and not too many pixels."),
    ),
    "UnsupportedImage": Problem(
        415,
        _l("This kind of file is not supported"),
        _l("Send an image of one of these kinds: JPEG, PNG, BMP, TIFF or WebP."),
    ),
    "NotServed": Problem(
        409,
        _l("This version no longer answers"),
        _l("Send the image again: unless you choose another one, the recommended version answers."),
    ),
    "TooManyRequests": Problem(
        429,
        _l("Too many images at once"),
        _l("Wait a minute, then send the next one."),
    ),
    "ServiceUnavailable": Problem(
        503,
        _l("The model is not available at the moment"),
        _l("This has nothing to do with your image. Try again in a minute."),
    ),
    "ServiceBusy": Problem(
        503,
        _l("The model is busy"),
        _l("Many images are waiting. Try again in a few seconds."),
    ),
    "ServiceTimeout": Problem(
        504,
        _l("The model took too long to answer"),
        _l("Try again in a moment. A smaller image may help."),
    ),
    "PageUnreachable": Problem(
        503,
        _l("The server of this page cannot be reached"),
        _l("Check the connection, then try again. What is answered already stays."),
    ),
    "ServiceError": Problem(
        502,
        _l("The model gave no usable answer"),
        _l("The fault is ours. Try again in a minute."),
    ),
}

PAGES = {
    404: Problem(
        404, _l("There is no such page"), _l("The address may be mistyped or out of date.")
    ),
    405: Problem(
        405,
        _l("This page cannot be used like that"),
        _l("Start again from the first page."),
    ),
    500: Problem(
        500, _l("Something went wrong here"), _l("The fault is ours. Try again in a minute.")
    ),
}
BAD_REQUEST = Problem(
    400, _l("The request could not be understood"), _l("Start again from the first page.")
)


def init_app(app: Flask) -> None:
    """Show a friendly page for each error of `app`."""
    app.register_error_handler(UploadError, lambda error: upload_problem(error.kind))
    app.register_error_handler(CSRFError, lambda error: upload_problem("ExpiredForm"))
    app.register_error_handler(413, lambda error: upload_problem("ImageTooLarge"))
    app.register_error_handler(HTTPException, error_page)


def upload_problem(kind: str, seconds: int = 5) -> ResponseReturnValue:
    """Return what was wrong with an upload: its kind for the script, else the form under it.

    What may go better after some seconds says so.
    """
    current_app.logger.info("refused an upload: %s", kind)
    problem = UPLOAD[kind]
    headers = {"Retry-After": str(seconds)} if problem.status in (429, 503) else {}
    if request.blueprint == "api":
        return {"type": kind}, problem.status, headers
    return render_template("page/index.html", problem=problem), problem.status, headers


def error_page(error: HTTPException) -> ResponseReturnValue:
    """Return a page for an error outside the form."""
    response = error.get_response()
    if response.status_code < 400:
        return error
    fallback = PAGES[500] if response.status_code >= 500 else BAD_REQUEST
    problem = PAGES.get(response.status_code, fallback)
    # The headers of the error stay: a 405 says which methods are allowed.
    kept = {k: v for k, v in response.headers.items() if not k.startswith("Content-")}
    return render_template("error.html", problem=problem), response.status_code, kept

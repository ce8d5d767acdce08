"""Everything that can go wrong, each with its status and its own sentence for a person."""

from typing import Any, NamedTuple

from flask import Flask, current_app, render_template
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _l
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException


class Problem(NamedTuple):
    """A status and what to tell a person about it."""

    status: int
    title: Any
    advice: Any


# What can be wrong with an upload: the types of ServiceError, and two of the form itself.
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
    app.register_error_handler(CSRFError, expired_form)
    app.register_error_handler(413, too_large)
    app.register_error_handler(HTTPException, error_page)


def upload_problem(kind: str) -> ResponseReturnValue:
    """Return the form again, under what was wrong with the upload."""
    problem = UPLOAD.get(kind, UPLOAD["ServiceError"])
    page = render_template("page/index.html", problem=problem)
    return page, problem.status, {"Retry-After": "5"} if problem.status == 503 else {}


def expired_form(error: CSRFError) -> ResponseReturnValue:
    """Return a renewed form in place of one without a valid token."""
    current_app.logger.info("refused a form without a valid CSRF token")
    return upload_problem("ExpiredForm")


def too_large(error: HTTPException) -> ResponseReturnValue:
    """Return the form again after a body over the limit."""
    return upload_problem("ImageTooLarge")


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

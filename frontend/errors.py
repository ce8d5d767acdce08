"""The errors of the page: their status codes and messages."""

from typing import Any, NamedTuple

from flask import Flask, render_template, request
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _l
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import BadHost, HTTPException


class Problem(NamedTuple):
    """A status code and the message for the visitor."""

    status: int
    title: Any
    advice: Any


class UploadError(Exception):
    """An upload failed, for one of the reasons in UPLOAD."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind if kind in UPLOAD else "ServiceError"


# The types of ServiceError, WorkerDied, and those of the page itself.
UPLOAD = {
    "NoImage": Problem(400, _l("No image chosen"), _l("Choose an image and send it.")),
    "ExpiredForm": Problem(
        400,
        _l("This page has expired"),
        _l("It is valid again now. Choose the image again and send it."),
    ),
    "NoReferrer": Problem(
        400,
        _l("Your browser does not send the address of this page"),
        _l("Uploads require it for security. Allow the Referer header in your browser's settings."),
    ),
    "IncompleteUpload": Problem(
        400,
        _l("The upload is incomplete"),
        _l("The connection may have been interrupted. Send the image again."),
    ),
    "EmptyImage": Problem(
        400, _l("The file is empty"), _l("It contains no data. Choose another image.")
    ),
    "CorruptImage": Problem(
        400,
        _l("The image cannot be read"),
        _l("The file is damaged or incomplete. Choose another image, or save this one again."),
    ),
    "ImageTooLarge": Problem(
        413,
        _l("The image is too large"),
        _l(
            "Send an image of at most %(limit)s MB. "
            "An image with too many pixels is not accepted either."
        ),
    ),
    "UnsupportedImage": Problem(
        415, _l("This file type is not supported"), _l("Send a JPEG, PNG, BMP, TIFF or WebP image.")
    ),
    "NotServed": Problem(
        409,
        _l("This version is no longer available"),
        _l("Send the image again to the recommended version, or choose another one."),
    ),
    "TooManyRequests": Problem(
        429, _l("Too many images in a short time"), _l("Wait a minute, then send the next one.")
    ),
    "ServiceUnavailable": Problem(
        503,
        _l("The model is not available at the moment"),
        _l("Your image is not the cause. Try again in a minute."),
    ),
    # Not 503: the script must not send such an image again.
    "WorkerDied": Problem(
        500,
        _l("The model failed on this image"),
        _l("Other images are not affected. If it fails again, choose another one."),
    ),
    "ServiceBusy": Problem(
        503, _l("The model is busy"), _l("Many images are waiting. Try again in a few seconds.")
    ),
    "ServiceTimeout": Problem(
        504,
        _l("The model took too long to answer"),
        _l("Try again in a moment. A smaller image may help."),
    ),
    "PageUnreachable": Problem(
        503,
        _l("The server cannot be reached"),
        _l("Check your connection and try again. The results so far are kept."),
    ),
    "ServiceError": Problem(
        502,
        _l("The model did not return a valid answer"),
        _l("This is an error on our side. Try again in a minute."),
    ),
}

PAGES = {
    404: Problem(404, _l("Page not found"), _l("The address may be mistyped or out of date.")),
    405: Problem(405, _l("Request not allowed"), _l("Start again from the home page.")),
    500: Problem(
        500, _l("Something went wrong"), _l("This is an error on our side. Try again in a minute.")
    ),
}
BAD_REQUEST = Problem(400, _l("The request is not valid"), _l("Start again from the home page."))


def init_app(app: Flask) -> None:
    """Show a page with advice for each error of `app`."""
    app.register_error_handler(UploadError, lambda error: upload_problem(error.kind))
    app.register_error_handler(CSRFError, lambda error: upload_problem("ExpiredForm"))
    app.register_error_handler(413, lambda error: upload_problem("ImageTooLarge"))
    # Without a host, no page has addresses.
    app.register_error_handler(BadHost, lambda error: error)
    app.register_error_handler(HTTPException, error_page)


def upload_problem(kind: str, seconds: int = 1) -> ResponseReturnValue:
    """Return the error of an upload: its type for the script, else a page with the form.

    Errors that may pass carry Retry-After, in `seconds`.
    """
    problem = UPLOAD[kind]
    headers = {"Retry-After": str(seconds)} if problem.status in (429, 503) else {}
    if request.blueprint == "api":
        return {"type": kind}, problem.status, headers
    return render_template("page/index.html", problem=problem), problem.status, headers


def error_page(error: HTTPException) -> ResponseReturnValue:
    """Return the page of any other error."""
    response = error.get_response()
    if response.status_code < 400:
        return error
    fallback = PAGES[500] if response.status_code >= 500 else BAD_REQUEST
    problem = PAGES.get(response.status_code, fallback)
    # Keep the headers of the error, such as Allow of a 405.
    kept = {k: v for k, v in response.headers.items() if not k.startswith("Content-")}
    return render_template("error.html", problem=problem), response.status_code, kept

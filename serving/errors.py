"""The errors of TorchServe's clients, and the translation of TorchServe's answers into them."""

from __future__ import annotations

import json
from typing import Any

import requests
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

# The handler's own errors, which are the client's fault. The page has a sentence for each.
INPUT_ERRORS = ("EmptyImage", "CorruptImage", "ImageTooLarge", "UnsupportedImage")


class ServiceError(Exception):
    """A request failed: HTTP status, type for programs, sentence for the log."""

    # Whether the error is evidence about the requested version.
    about_version = True

    def __init__(self, status: int, type: str, message: str) -> None:
        super().__init__(message)
        self.status, self.type, self.message = status, type, message


class _Unavailable(ServiceError):
    kind = "ServiceUnavailable"

    def __init__(self, message: str) -> None:
        super().__init__(503, self.kind, message)


class Unreachable(_Unavailable):
    """Nothing was sent: TorchServe does not run or is not ready."""


class Disconnected(_Unavailable):
    """TorchServe closed the connection before the end of its answer."""

    about_version = False


class WorkerDied(_Unavailable):
    """The worker died with the request."""


class Busy(_Unavailable):
    """The version's queue is full."""

    kind = "ServiceBusy"


class PutOff(Busy):
    """The worker had too much to do in one batch: the same request may succeed soon."""


class NotServed(ServiceError):
    """The requested version does not serve."""

    about_version = False

    def __init__(self, version: str | None) -> None:
        super().__init__(404, "NotServed", f"Version {version} does not serve.")


class TokenRefused(ServiceError):
    """TorchServe refuses its token, also after a wait for a new one."""

    about_version = False


def document_of(response: requests.Response) -> Any:
    """Return the JSON of a successful answer; raise ServiceError."""
    if response.status_code != 200:
        raise error_of(response)
    try:
        return response.json()
    except ValueError as error:
        raise ServiceError(502, "ServiceError", "TorchServe's answer is not JSON.") from error


def only_answer(document: Any) -> dict[str, Any]:
    """Return the answer to the one image of a request in JSON; raise ServiceError."""
    try:
        [answer] = document["predictions"]
        if "code" not in answer:
            return dict(answer)
        status, kind, message = answer["code"], str(answer["type"]), str(answer["message"])
    except (ValueError, KeyError, TypeError) as error:
        raise ServiceError(502, "ServiceError", "TorchServe's answer is no list of one.") from error
    raise _of_handler(status, kind, message) or ServiceError(502, "ServiceError", message)


def error_of(response: requests.Response) -> ServiceError:
    """Return the error of an unsuccessful response, by the handler or by TorchServe."""
    status = response.status_code
    try:
        document = json.loads(response.content)
        kind, message = str(document["type"]), str(document["message"])
    except (ValueError, KeyError, TypeError):
        kind, message = "", ""
    if error := _of_handler(status, kind, message):
        return error
    if is_token_refused(response):
        return TokenRefused(502, "ServiceError", "TorchServe refuses its token.")
    if status == 404:
        return NotServed(response.url.rpartition("/")[2])
    if status == 413:
        return ServiceError(413, "ImageTooLarge", "The request is larger than TorchServe accepts.")
    if status in (500, 507):
        return WorkerDied(message)
    if status == 503 and kind == "ServiceUnavailableException":
        # TorchServe reports a full queue and a version without workers alike.
        return Busy(message)
    if status == 503:
        return ServiceError(503, "ServiceUnavailable", message)
    return ServiceError(502, "ServiceError", f"TorchServe answered {status} {kind}: {message}")


def _of_handler(status: int, kind: str, message: str) -> ServiceError | None:
    """Return an error of the handler, None if it is another's."""
    if kind in INPUT_ERRORS:
        return ServiceError(status, kind, message)
    return PutOff(message) if kind == "ServiceBusy" else None


def connection_error_of(error: requests.RequestException) -> ServiceError:
    """Return the error of a request without a complete response."""
    if isinstance(error, requests.ReadTimeout):
        return ServiceError(504, "ServiceTimeout", "TorchServe took too long.")
    cause = error.args[0] if error.args else None
    if isinstance(getattr(cause, "reason", None), (NewConnectionError, ConnectTimeoutError)):
        return Unreachable("TorchServe cannot be reached.")
    return Disconnected("TorchServe broke the connection.")


def is_token_refused(response: requests.Response) -> bool:
    return response.status_code == 400 and b"InvalidKeyException" in response.content

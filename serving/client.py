"""Clients of TorchServe's inference and management APIs: pooled, bounded in time, authorized."""

from __future__ import annotations

import json
import time
from typing import Any

import requests

from serving import golden
from serving.local import local_session
from serving.settings import MODEL, Settings
from serving.tokens import Kind, TokenError, Tokens

# Seconds to connect, and between two bytes of the answer.
TIMEOUT = (2.0, 20.0)
# Seconds from a refused token to the next one in the file.
RENEWAL_PATIENCE = 2.0
# The handler's own errors; whoever shows them to a person needs a sentence for each.
INPUT_ERRORS = ("EmptyImage", "CorruptImage", "ImageTooLarge", "UnsupportedImage")


class ServiceError(Exception):
    """The service gave no answer: HTTP status, type for machines, sentence for the log."""

    def __init__(self, status: int, type: str, message: str) -> None:
        super().__init__(message)
        self.status, self.type, self.message = status, type, message


class _Client:
    kind: Kind

    def __init__(
        self, settings: Settings, timeout: tuple[float, float] = TIMEOUT, pool_size: int = 16
    ) -> None:
        self.settings = settings
        self.tokens = Tokens(settings.run_dir)
        self._timeout = timeout
        self._session = local_session(pool_size)

    def _request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        """Send a request; raise ServiceError.

        It is sent once more if its token was renewed meanwhile, or if the connection broke: the
        pool may hold one that TorchServe has closed. What is sent changes nothing, so it may.
        """
        try:
            try:
                response = self._send(method, url, **kwargs)
            except requests.ConnectionError:
                return self._send(method, url, **kwargs)
            if _token_refused(response) and self._renewed(response):
                response = self._send(method, url, **kwargs)
            return response
        except (requests.ConnectionError, TokenError) as error:
            raise _unavailable(error) from error
        except requests.Timeout as error:
            raise ServiceError(504, "ServiceTimeout", "TorchServe took too long.") from error
        except requests.RequestException as error:
            raise ServiceError(502, "ServiceError", f"TorchServe broke off: {error}") from error

    def _renewed(self, refused: requests.Response) -> bool:
        """Wait for another token than the refused one: TorchServe honours it, then writes it."""
        used = refused.request.headers["Authorization"]
        deadline = time.monotonic() + RENEWAL_PATIENCE
        while time.monotonic() < deadline:
            if self.tokens.header(self.kind)["Authorization"] != used:
                return True
            time.sleep(0.01)
        return False

    def _send(
        self, method: str, url: str, headers: dict[str, str] | None = None, **kwargs: Any
    ) -> requests.Response:
        authorized = (headers or {}) | self.tokens.header(self.kind)
        return self._session.request(
            method, url, headers=authorized, timeout=self._timeout, **kwargs
        )


class InferenceClient(_Client):
    """Ask TorchServe what an image shows."""

    kind = "inference"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # By version: an archive may be built anew while the old one still serves.
        self._known: dict[str, golden.Probabilities] = {}

    def predict(self, image: bytes, version: str | None = None) -> dict[str, Any]:
        """Return the answer to one image (docs: POST /predictions); raise ServiceError."""
        path = f"/predictions/{MODEL}" + (f"/{version}" if version else "")
        response = self._request(
            "POST",
            self.settings.inference_url + path,
            data=image,
            headers={"Content-Type": "application/octet-stream"},
        )
        answer: dict[str, Any] = _document(response)
        return answer

    def check_ready(self) -> None:
        """Send a known image; raise ServiceError unless it is answered, and rightly."""
        name = "neutrophil.png"
        answer = self.predict((golden.SAMPLES / name).read_bytes())
        version = answer["version"]
        try:
            if version not in self._known:
                archive = golden.archive_of(self.settings, version)
                self._known[version] = golden.answers(archive)[name]
        except golden.UnknownAnswers as error:
            raise ServiceError(503, "ServiceUnavailable", str(error)) from error
        if not golden.agree(answer["probabilities"], self._known[version]):
            raise ServiceError(503, "ServiceUnavailable", f"{name} is answered wrongly.")


class ManagementClient(_Client):
    """Ask TorchServe how a model is; changes nothing."""

    kind = "management"

    def describe(self, version: str, customized: bool = False) -> dict[str, Any]:
        """Return TorchServe's description of one version; raise ServiceError."""
        response = self._request(
            "GET",
            f"{self.settings.management_url}/models/{MODEL}/{version}",
            params={"customized": "true"} if customized else None,
        )
        description: dict[str, Any] = _document(response)[0]
        return description


def _document(response: requests.Response) -> Any:
    if response.status_code != 200:
        raise _error(response)
    try:
        return response.json()
    except ValueError as error:
        raise ServiceError(502, "ServiceError", "TorchServe's answer is not JSON.") from error


def _unavailable(error: Exception) -> ServiceError:
    return ServiceError(503, "ServiceUnavailable", f"TorchServe can't be reached: {error}")


def _token_refused(response: requests.Response) -> bool:
    return response.status_code == 400 and b"InvalidKeyException" in response.content


def _error(response: requests.Response) -> ServiceError:
    """Tell an error of the handler from one of TorchServe itself."""
    try:
        document = json.loads(response.content)
        kind, message = str(document["type"]), str(document["message"])
    except (ValueError, KeyError, TypeError):
        kind, message = "", ""
    if kind in INPUT_ERRORS:
        return ServiceError(response.status_code, kind, message)
    if response.status_code == 413:
        return ServiceError(413, "ImageTooLarge", "The request is larger than TorchServe takes.")
    if response.status_code == 503:
        # TorchServe says the same of a full queue and of a version without workers.
        return ServiceError(503, "ServiceBusy", message)
    return ServiceError(502, "ServiceError", f"TorchServe answered {response.status_code}: {kind}")

"""Clients of TorchServe's inference and management APIs: pooled, bounded in time, authorized."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import requests
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from serving.deployment import archives, canary, in_flight, known_answers
from serving.deployment.archives import BadArchive
from serving.deployment.routing import Routing, RoutingFile
from serving.http import local_session
from serving.settings import MODEL, Settings
from serving.torchserve.tokens import Kind, TokenError, Tokens

# Seconds to connect, and between two bytes of the answer.
TIMEOUT = (2.0, 20.0)
# Seconds from a refused token to the next one in the file.
RENEWAL_PATIENCE = 2.0
# Seconds that a prediction waits for a service that starts anew, and between two looks.
PATIENCE = 15.0
PAUSE = 0.02
# Seconds that a service whose queue is full counts as ready after the last right answer.
WELL_FOR = 60.0
# Marks what is sent to see whether the service is well: the handler does not count it.
KNOWN = {"X-Known-Image": "true"}
# The handler's own errors; whoever shows them to a person needs a sentence for each.
INPUT_ERRORS = ("EmptyImage", "CorruptImage", "ImageTooLarge", "UnsupportedImage")


class ServiceError(Exception):
    """The service gave no answer: HTTP status, type for machines, sentence for the log."""

    def __init__(self, status: int, type: str, message: str) -> None:
        super().__init__(message)
        self.status, self.type, self.message = status, type, message


class Unreachable(ServiceError):
    """Nothing was sent: TorchServe is not there, or not ready."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "ServiceUnavailable", message)


class Interrupted(ServiceError):
    """The worker, or TorchServe itself, ended with the request in it."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "ServiceUnavailable", message)


class NotServed(ServiceError):
    """The version that was asked for does not serve."""

    def __init__(self, version: str | None) -> None:
        super().__init__(404, "NotServed", f"Version {version} does not serve.")


class _Client:
    kind: Kind

    def __init__(
        self, settings: Settings, timeout: tuple[float, float] = TIMEOUT, pool_size: int = 16
    ) -> None:
        self.settings = settings
        self.tokens = Tokens(settings.run_dir)
        self._timeout = timeout
        self._session = local_session(pool_size)

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._session.close()

    def _request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        """Send a request; raise ServiceError.

        It is sent once more if its token was renewed meanwhile, or if the connection broke: the
        pool may hold one that TorchServe has closed. Nothing that is sent here harms if it is
        sent twice.
        """
        try:
            try:
                response = self._send(method, url, **kwargs)
            except requests.ConnectionError:
                response = self._send(method, url, **kwargs)
            if _token_refused(response) and self._renewed(response):
                response = self._send(method, url, **kwargs)
            return response
        except TokenError as error:
            raise Unreachable(str(error)) from error
        except requests.ConnectionError as error:
            raise _disconnected(error) from error
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
    """Ask what an image shows."""

    kind = "inference"

    def __init__(self, settings: Settings, *, patience: float = PATIENCE, **kwargs: Any) -> None:
        super().__init__(settings, **kwargs)
        self.routing = RoutingFile(settings.run_dir)
        self._patience = patience
        self._name = uuid.uuid4().hex
        # By version: a known image's answer.
        self._known: dict[str, known_answers.Probabilities] = {}
        self._well_until = 0.0

    def predict(
        self, image: bytes, version: str | None = None, client: str | None = None
    ) -> dict[str, Any]:
        """Return the answer to one image (docs: POST /predictions); raise ServiceError.

        Unless a version is named, the routing chooses one: always the same for a `client`, any
        name of whoever asks; this object is one by itself. What a dying worker or a restart
        interrupts, and what a canary fails at, is sent again, and then to the default.
        """
        return self._patiently(self._observed, image, version, client)

    def explain(self, image: bytes, version: str) -> dict[str, Any]:
        """Return a version's answer with its heat map (docs: POST /explanations), as `predict`."""
        return self._patiently(self._explained, image, version, None)

    def ask(self, image: bytes, version: str) -> dict[str, Any]:
        """Return a version's answer, whatever the routing says; raise ServiceError."""
        return self._post("predictions", image, version)

    def ask_known(self, name: str, version: str) -> dict[str, Any]:
        """Return a version's answer to a known image, which is not counted; raise ServiceError."""
        return self._post(
            "predictions", (known_answers.SAMPLES / name).read_bytes(), version, KNOWN
        )

    def check_ready(self) -> None:
        """Send a known image; raise ServiceError unless it is answered at once, and rightly.

        A full queue is no fault for as long as one was answered within WELL_FOR: were a node that
        does all it can taken from its balancer, its load would fell the next one.
        """
        try:
            self._check_known()
            self._well_until = time.monotonic() + WELL_FOR
        except ServiceError as error:
            if error.type != "ServiceBusy" or time.monotonic() > self._well_until:
                raise

    def _check_known(self) -> None:
        routing = self.routing.read()
        if routing is None:
            raise Unreachable("The service is not ready.")
        version, name = routing.default, "neutrophil.png"
        answer = self.ask_known(name, version)
        try:
            if version not in self._known:
                archive = archives.deployed(self.settings, version)
                self._known[version] = known_answers.answers(archive)[name]
        except BadArchive as error:
            raise Unreachable(str(error)) from error
        if not known_answers.agree(answer["probabilities"], self._known[version]):
            raise ServiceError(503, "ServiceUnavailable", f"{name} is answered wrongly.")

    def _patiently(
        self,
        send: Callable[[Routing, bytes, str], dict[str, Any]],
        image: bytes,
        version: str | None,
        client: str | None,
    ) -> dict[str, Any]:
        deadline = time.monotonic() + self._patience
        who: str | None = client or self._name
        interruptions = 0
        while True:
            routing, chosen = self._wait_for_route(version, who, deadline)
            try:
                with in_flight.recorded(self.settings.run_dir, chosen):
                    # A pause that began meanwhile may have missed this request.
                    if self.routing.read() != routing:
                        continue
                    return send(routing, image, chosen)
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
            except ServiceError as error:
                on_trial = version is None and chosen == routing.canary and error.status >= 500
                # It may have been retired since the routing was read.
                retired = version is None and isinstance(error, NotServed)
                again = isinstance(error, Interrupted) or retired
                # An image that kills its worker must not kill them all.
                interruptions += again
                if not (on_trial or again) or interruptions > 1:
                    raise
                who = None
            time.sleep(PAUSE)

    def _wait_for_route(
        self, version: str | None, client: str | None, deadline: float
    ) -> tuple[Routing, str]:
        """Return the routing, and the version to ask; raise Unreachable or NotServed."""
        while True:
            routing = self.routing.read()
            if routing:
                chosen = version or (routing.choose(client) if client else routing.default)
                if chosen not in routing.versions:
                    raise NotServed(chosen)
                if not routing.is_paused(chosen):
                    return routing, chosen
            if time.monotonic() >= deadline:
                raise Unreachable("The service is not ready.")
            time.sleep(PAUSE)

    def _observed(self, routing: Routing, image: bytes, version: str) -> dict[str, Any]:
        """Ask a version; while a canary runs, note what came of it."""
        failed, started = False, time.monotonic()
        try:
            return self.ask(image, version)
        except ServiceError as error:
            failed = error.status >= 500
            raise
        finally:
            if routing.canary and version in (routing.canary, routing.default):
                # A full disk is no reason to refuse an answer.
                with contextlib.suppress(OSError):
                    canary.note(self.settings.run_dir, version, failed, time.monotonic() - started)

    def _explained(self, routing: Routing, image: bytes, version: str) -> dict[str, Any]:
        return self._post("explanations", image, version)

    def _post(
        self, kind: str, image: bytes, version: str, more: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        response = self._request(
            "POST",
            f"{self.settings.inference_url}/{kind}/{MODEL}/{version}",
            data=image,
            headers={"Content-Type": "application/octet-stream", **(more or {})},
        )
        answer: dict[str, Any] = _document(response)
        return answer


class ManagementClient(_Client):
    """TorchServe's management API: how the versions are, and changes to them."""

    kind = "management"

    def versions(self) -> dict[str, dict[str, Any]]:
        """Return TorchServe's description of each version that it holds; raise ServiceError."""
        response = self._request("GET", f"{self._models}/{MODEL}/all")
        if response.status_code == 404:
            return {}
        return {each["modelVersion"]: each for each in _document(response)}

    def describe(self, version: str, customized: bool = False) -> dict[str, Any]:
        """Return TorchServe's description of one version; raise NotServed or ServiceError."""
        response = self._request(
            "GET",
            f"{self._models}/{MODEL}/{version}",
            params={"customized": "true"} if customized else None,
        )
        description: dict[str, Any] = _document(response)[0]
        return description

    def default(self) -> str | None:
        """Return the version that answers where none is named; raise ServiceError."""
        # The description without a version is the default's.
        response = self._request("GET", f"{self._models}/{MODEL}")
        return None if response.status_code == 404 else _document(response)[0]["modelVersion"]

    def register(self, version: str, workers: int) -> None:
        """Have an archive of the model store loaded; its workers start later."""
        # By query parameters: with a body, TorchServe would set a batch delay of its own.
        parameters = {"url": f"{MODEL}-{version}.mar", "initial_workers": workers}
        self._change("POST", self._models, synchronous="false", **parameters)

    def scale(self, version: str, workers: int) -> None:
        """Set the number of workers: new ones start later, surplus ones are killed at once."""
        self._change(
            "PUT",
            f"{self._models}/{MODEL}/{version}",
            min_worker=workers,
            max_worker=workers,
            synchronous="false",
        )

    def set_default(self, version: str) -> None:
        """Let a version answer where none is named."""
        self._change("PUT", f"{self._models}/{MODEL}/{version}/set-default")

    def unregister(self, version: str) -> None:
        """Take a version away; its workers are killed at once."""
        self._change("DELETE", f"{self._models}/{MODEL}/{version}")

    @property
    def _models(self) -> str:
        return f"{self.settings.management_url}/models"

    def _change(self, method: str, address: str, **parameters: Any) -> None:
        response = self._request(method, address, params=parameters)
        if response.status_code not in (200, 202):
            raise _error(response)


def _document(response: requests.Response) -> Any:
    if response.status_code != 200:
        raise _error(response)
    try:
        return response.json()
    except ValueError as error:
        raise ServiceError(502, "ServiceError", "TorchServe's answer is not JSON.") from error


def _disconnected(error: requests.ConnectionError) -> ServiceError:
    """Tell a connection that was not made from one that broke, maybe with the request through."""
    cause = error.args[0] if error.args else None
    if isinstance(getattr(cause, "reason", None), (NewConnectionError, ConnectTimeoutError)):
        return Unreachable("TorchServe can't be reached.")
    return Interrupted("TorchServe broke off.")


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
    if response.status_code == 404:
        return NotServed(response.url.rpartition("/")[2])
    if response.status_code in (500, 507) and kind == "InternalServerException":
        return Interrupted(message)
    if response.status_code == 413:
        return ServiceError(413, "ImageTooLarge", "The request is larger than TorchServe takes.")
    if response.status_code == 503:
        # TorchServe says the same of a full queue and of a version without workers.
        busy = kind == "ServiceUnavailableException"
        return ServiceError(503, "ServiceBusy" if busy else "ServiceUnavailable", message)
    return ServiceError(
        502, "ServiceError", f"TorchServe answered {response.status_code} {kind}: {message}"
    )

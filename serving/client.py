"""Clients of TorchServe's inference and management APIs: pooled, with timeouts, authorized."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import pybase64
import requests

from serving.deployment import archives, canary, in_flight, known_answers
from serving.deployment.archives import BadArchive
from serving.deployment.routing import Routing, RoutingFile
from serving.errors import (
    INPUT_ERRORS,
    Busy,
    Disconnected,
    NotServed,
    PutOff,
    ServiceError,
    Unreachable,
    WorkerDied,
    connection_error_of,
    document_of,
    error_of,
    is_token_refused,
    only_answer,
)
from serving.http import local_session
from serving.settings import MODEL, Settings
from serving.torchserve.tokens import Kind, TokenError, Tokens

__all__ = [
    "INPUT_ERRORS",
    "InferenceClient",
    "ManagementClient",
    "NotServed",
    "ServiceError",
    "Unreachable",
]

# Seconds to connect, and between two bytes of the answer.
TIMEOUT = (2.0, 20.0)
# Seconds to wait for a new token after TorchServe refused one.
RENEWAL_PATIENCE = 2.0
# Seconds that a prediction waits for a service that is starting.
PATIENCE = 15.0
RETRY_INTERVAL = 0.02
PUT_OFF_INTERVAL = 0.5
# Seconds after a correct answer in which a full queue still counts as ready.
READY_MEMORY = 60.0
# Marks health checks, which the handler does not count.
KNOWN = {"X-Known-Image": "true"}


@dataclass(frozen=True)
class _Attempt:
    """One request to a version, and its outcome."""

    routing: Routing
    version: str
    error: ServiceError | None
    seconds: float


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
        """Close the pooled connections."""
        self._session.close()

    def _request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        """Send a request, and again whenever its token was renewed; raise ServiceError."""
        try:
            response = self._send(method, url, **kwargs)
            deadline = time.monotonic() + RENEWAL_PATIENCE
            # TorchServe accepts a new token before it writes it to its file.
            while is_token_refused(response) and time.monotonic() < deadline:
                used = response.request.headers["Authorization"]
                if self.tokens.header(self.kind)["Authorization"] == used:
                    time.sleep(RETRY_INTERVAL)
                else:
                    response = self._send(method, url, **kwargs)
            return response
        except TokenError as error:
            raise Unreachable(str(error)) from error
        except requests.RequestException as error:
            raise connection_error_of(error) from error

    def _send(
        self, method: str, url: str, headers: dict[str, str] | None = None, **kwargs: Any
    ) -> requests.Response:
        authorized = (headers or {}) | self.tokens.header(self.kind)
        return self._session.request(
            method, url, headers=authorized, timeout=self._timeout, **kwargs
        )


class InferenceClient(_Client):
    """Classify and explain images.

    tests/routing_rules.py has the rules of retries that this class and deploy/nginx/edge.js share.
    """

    kind = "inference"

    def __init__(self, settings: Settings, *, patience: float = PATIENCE, **kwargs: Any) -> None:
        super().__init__(settings, **kwargs)
        self.routing = RoutingFile(settings.run_dir)
        self._patience = patience
        self._name = uuid.uuid4().hex
        # A known image's answer, by the version and the time of its archive.
        self._known: dict[tuple[str, int], known_answers.Probabilities] = {}
        self._ready_until = 0.0

    def predict(
        self,
        image: bytes,
        version: str | None = None,
        client: str | None = None,
        embeddings: Container[str] = (),
    ) -> dict[str, Any]:
        """Return the answer to one image (docs: POST /predictions); raise ServiceError.

        Without a version, the routing chooses one, always the same for a `client`; the default
        client is this object. `embeddings` are the versions whose answers shall have the embedding
        of each cell. A request that a dying worker or a restart interrupts, or that a
        worker puts off, is sent again. A request that the canary fails is sent to the default
        version.
        """
        attempts: list[_Attempt] = []
        try:
            return self._post_routed("predictions", image, version, client, attempts, embeddings)
        finally:
            self._report(attempts)

    def explain(self, image: bytes, version: str) -> dict[str, Any]:
        """Return a version's answer with its heat map (docs: POST /explanations), as `predict`."""
        return self._post_routed("explanations", image, version, None, [])

    def ask_known(self, name: str, version: str) -> dict[str, Any]:
        """Return a version's answer to a known image, which is not counted; raise ServiceError."""
        image = (known_answers.SAMPLES / name).read_bytes()
        return self._post("predictions", image, version, KNOWN)

    def check_ready(self) -> None:
        """Send a known image; raise ServiceError unless the answer is correct.

        A full queue is ready if an answer was correct within READY_MEMORY. Otherwise a load
        balancer would remove a busy node, and its load would overwhelm the next one.
        """
        try:
            self._check_known()
            self._ready_until = time.monotonic() + READY_MEMORY
        except Busy:
            if time.monotonic() > self._ready_until:
                raise

    def _check_known(self) -> None:
        routing = self.routing.read()
        if routing is None:
            raise Unreachable("The service is not ready.")
        version, name = routing.default, "neutrophil.png"
        answer = self.ask_known(name, version)
        archive = archives.deployed(self.settings, version)
        try:
            # Another build of the version may have been deployed since.
            key = version, archive.stat().st_mtime_ns if archive.exists() else 0
            if key not in self._known:
                self._known[key] = known_answers.answers(archive)[name]
        except BadArchive as error:
            raise Unreachable(str(error)) from error
        if not known_answers.agree(answer["probabilities"], self._known[key]):
            raise ServiceError(503, "ServiceUnavailable", f"The answer to {name} is wrong.")

    def _post_routed(
        self,
        kind: str,
        image: bytes,
        version: str | None,
        client: str | None,
        attempts: list[_Attempt],
        embeddings: Container[str] = (),
    ) -> dict[str, Any]:
        deadline = time.monotonic() + self._patience
        who: str | None = client or self._name
        interruptions = 0
        while True:
            routing, chosen = self._wait_for_route(version, who, deadline)
            started = time.monotonic()
            try:
                with in_flight.recorded(self.settings.run_dir, chosen):
                    # A pause that began meanwhile may have missed this request.
                    if self.routing.read() != routing:
                        continue
                    if chosen in embeddings:
                        answer = self._post_for_embeddings(image, chosen)
                    else:
                        answer = self._post(kind, image, chosen)
                attempts.append(_Attempt(routing, chosen, None, time.monotonic() - started))
                return answer
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
            except PutOff:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(PUT_OFF_INTERVAL)
            except ServiceError as error:
                attempts.append(_Attempt(routing, chosen, error, time.monotonic() - started))
                failed = error.about_version and error.status >= 500
                canary_failed = failed and version is None and chosen == routing.canary
                # The version may have been retired since the routing was read.
                retired = version is None and isinstance(error, NotServed)
                interrupted = retired or isinstance(error, WorkerDied | Disconnected)
                # An image that kills its worker must not kill them all.
                interruptions += interrupted
                if interruptions > 1 or not (interrupted or canary_failed):
                    raise
                # No client: the default version.
                who = None
            time.sleep(RETRY_INTERVAL)

    def _wait_for_route(
        self, version: str | None, client: str | None, deadline: float
    ) -> tuple[Routing, str]:
        """Wait until a version accepts requests; raise Unreachable or NotServed."""
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
            time.sleep(RETRY_INTERVAL)

    def _report(self, attempts: list[_Attempt]) -> None:
        """While a canary runs, report the attempts to its watch.

        A full queue is the canary's fault only if the default version then answers.
        """
        last = attempts[-1].error if attempts else None
        answered = last is None or last.status < 500
        for each in attempts:
            error, routing = each.error, each.routing
            if not routing.canary or each.version not in (routing.canary, routing.default):
                continue
            if error and (not error.about_version or (isinstance(error, Busy) and not answered)):
                continue
            failed = error is not None and error.status >= 500
            # A full disk costs no answer.
            with contextlib.suppress(OSError):
                canary.note(self.settings.run_dir, each.version, failed, each.seconds)

    def _post(
        self, kind: str, image: bytes, version: str, more: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        response = self._request(
            "POST",
            self._address(kind, version),
            data=image,
            headers={"Content-Type": "application/octet-stream", **(more or {})},
        )
        answer: dict[str, Any] = document_of(response)
        return answer

    def _post_for_embeddings(self, image: bytes, version: str) -> dict[str, Any]:
        response = self._request(
            "POST",
            self._address("predictions", version),
            data=json.dumps(
                {
                    "instances": [{"b64": pybase64.b64encode(image).decode()}],
                    "parameters": {"embedding": True},
                }
            ),
            headers={"Content-Type": "application/json"},
        )
        return only_answer(document_of(response))

    def _address(self, kind: str, version: str) -> str:
        return f"{self.settings.inference_url}/{kind}/{MODEL}/{version}"


class ManagementClient(_Client):
    """Inspect and change the versions that TorchServe holds."""

    kind = "management"

    def versions(self) -> dict[str, dict[str, Any]]:
        """Return TorchServe's description of each version that it holds; raise ServiceError."""
        response = self._request("GET", f"{self._models}/{MODEL}/all")
        if response.status_code == 404:
            return {}
        return {each["modelVersion"]: each for each in document_of(response)}

    def describe(self, version: str, customized: bool = False) -> dict[str, Any]:
        """Return TorchServe's description of one version; raise NotServed or ServiceError."""
        response = self._request(
            "GET",
            f"{self._models}/{MODEL}/{version}",
            params={"customized": "true"} if customized else None,
        )
        description: dict[str, Any] = document_of(response)[0]
        return description

    def default(self) -> str | None:
        """Return TorchServe's default version, if any; raise ServiceError."""
        # The description without a version is the default's.
        response = self._request("GET", f"{self._models}/{MODEL}")
        return None if response.status_code == 404 else document_of(response)[0]["modelVersion"]

    def register(self, version: str, workers: int) -> None:
        """Load an archive of the model store; its workers start later."""
        # Query parameters, because TorchServe sets its own batch delay for a body.
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
        self._change("PUT", f"{self._models}/{MODEL}/{version}/set-default")

    def unregister(self, version: str) -> None:
        """Remove a version; its workers are killed at once."""
        self._change("DELETE", f"{self._models}/{MODEL}/{version}")

    @property
    def _models(self) -> str:
        return f"{self.settings.management_url}/models"

    def _change(self, method: str, address: str, **parameters: Any) -> None:
        response = self._request(method, address, params=parameters)
        if response.status_code not in (200, 202):
            raise error_of(response)

"""Who answers a prediction: the version that the routing says, whatever happens meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from stand_in import ROUTING, StandIn, problem

from serving.client import InferenceClient, Interrupted, NotServed, ServiceError, Unreachable
from serving.deployment import canary
from serving.deployment.routing import RoutingFile

# Nearly all clients get the canary, "first" among them.
TRIAL = replace(ROUTING, canary="2.0", percent=99.0)
DIED = problem(500, "InternalServerException", "Worker died.")


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[InferenceClient]:
    made = InferenceClient(stand_in.settings, patience=20)
    yield made
    made.close()


def dies(stand_in: StandIn, times: int) -> None:
    """Let the worker die with the first requests."""

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        return DIED if len(stand_in.requests) <= times else (200, b"{}")

    stand_in.answer = answer


def outcomes(run_dir: Path) -> list[tuple[str, bool]]:
    """Return version and failure of each outcome that was noted."""
    path = run_dir / canary.FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line.split()[1], line.split()[2] == "1") for line in lines]


def test_clients_are_asked_for_by_name(stand_in: StandIn, client: InferenceClient) -> None:
    routing = replace(TRIAL, percent=50.0)
    stand_in.routing.publish(routing)
    names = [f"client {number}" for number in range(20)]
    for name in names * 2:
        client.predict(b"image", client=name)
    assert stand_in.asked == [routing.choose(name) for name in names] * 2
    assert set(stand_in.asked) == {"1.0", "2.0"}


def test_without_a_name_a_client_is_one_by_itself(
    stand_in: StandIn, client: InferenceClient
) -> None:
    stand_in.routing.publish(replace(TRIAL, percent=50.0))
    for _ in range(10):
        client.predict(b"image")
    assert len(set(stand_in.asked)) == 1
    asked = set()
    for _ in range(40):
        other = InferenceClient(stand_in.settings)
        other.predict(b"image")
        other.close()
        asked.add(stand_in.asked[-1])
    assert asked == {"1.0", "2.0"}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_version_that_is_named_answers(
    stand_in: StandIn, client: InferenceClient, version: str
) -> None:
    stand_in.routing.publish(TRIAL)
    client.predict(b"image", version=version, client="first")
    assert stand_in.asked == [version]


@pytest.mark.parametrize("held", [False, True])
def test_a_version_that_does_not_serve_is_said_at_once(
    stand_in: StandIn, client: InferenceClient, held: bool
) -> None:
    if held:
        stand_in.routing.publish(replace(ROUTING, paused={"1.0": time.time() + 14}))
    with pytest.raises(NotServed, match=r"Version 3\.0 does not serve"):
        client.predict(b"image", version="3.0")
    assert stand_in.requests == []


def test_what_a_dying_worker_interrupts_is_sent_again(
    stand_in: StandIn, client: InferenceClient
) -> None:
    dies(stand_in, times=1)
    assert client.predict(b"image") == {}
    assert client.predict(b"image", version="2.0") == {}
    assert stand_in.asked == ["1.0", "1.0", "2.0"]


@pytest.mark.parametrize("version", [None, "2.0"])
def test_what_kills_two_workers_kills_no_third(
    stand_in: StandIn, client: InferenceClient, version: str | None
) -> None:
    dies(stand_in, times=9)
    with pytest.raises(Interrupted):
        client.predict(b"image", version=version)
    assert len(stand_in.requests) == 2


def test_what_interrupts_a_canary_goes_to_the_default(
    stand_in: StandIn, client: InferenceClient
) -> None:
    stand_in.routing.publish(TRIAL)
    dies(stand_in, times=1)
    client.predict(b"image", client="first")
    assert stand_in.asked == ["2.0", "1.0"]


@pytest.mark.parametrize(
    ("status", "kind", "asked"),
    [
        (500, "OutOfMemoryError", ["2.0", "1.0"]),
        (503, "ServiceUnavailableException", ["2.0", "1.0"]),
        (415, "UnsupportedImage", ["2.0"]),
        (400, "CorruptImage", ["2.0"]),
    ],
)
def test_what_a_canary_fails_at_goes_to_the_default_but_not_what_is_no_image(
    stand_in: StandIn, client: InferenceClient, status: int, kind: str, asked: list[str]
) -> None:
    stand_in.routing.publish(TRIAL)
    stand_in.refuse(status, kind)
    with pytest.raises(ServiceError):
        client.predict(b"image", client="first")
    assert stand_in.asked == asked


def test_a_canary_that_is_named_is_not_replaced(stand_in: StandIn, client: InferenceClient) -> None:
    stand_in.routing.publish(TRIAL)
    stand_in.refuse(503, "ServiceUnavailableException")
    with pytest.raises(ServiceError):
        client.predict(b"image", version="2.0")
    assert stand_in.asked == ["2.0"]


def test_an_error_of_the_default_is_not_sent_again(
    stand_in: StandIn, client: InferenceClient
) -> None:
    stand_in.routing.publish(replace(TRIAL, percent=1e-9))
    stand_in.refuse(503, "ServiceUnavailableException")
    with pytest.raises(ServiceError):
        client.predict(b"image", client="first")
    assert stand_in.asked == ["1.0"]


def later(routing: RoutingFile, to: object) -> threading.Timer:
    """Publish another routing while a prediction waits."""
    timer = threading.Timer(0.2, routing.publish, (to,))
    timer.start()
    return timer


def test_waits_while_its_version_is_held(stand_in: StandIn, client: InferenceClient) -> None:
    stand_in.routing.publish(replace(ROUTING, paused={"1.0": time.time() + 14}))
    client.predict(b"image", version="2.0")
    seen: list[bool] = []

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        routing = stand_in.routing.read()
        seen.append(routing is not None and routing.is_paused("1.0"))
        return 200, b"{}"

    stand_in.answer = answer
    released = later(stand_in.routing, ROUTING)
    client.predict(b"image")
    released.join()
    assert stand_in.asked == ["2.0", "1.0"]
    assert seen == [False]


def test_waits_while_the_service_starts_and_then_asks_who_answers_then(
    stand_in: StandIn, client: InferenceClient
) -> None:
    stand_in.routing.withdraw()
    ready = later(stand_in.routing, replace(ROUTING, default="2.0"))
    client.predict(b"image")
    ready.join()
    assert stand_in.asked == ["2.0"]


@pytest.mark.parametrize("held", [False, True])
def test_patience_ends(stand_in: StandIn, held: bool) -> None:
    if held:
        stand_in.routing.publish(replace(ROUTING, paused={"1.0": time.time() + 14}))
    else:
        stand_in.routing.withdraw()
    client = InferenceClient(stand_in.settings, patience=0.1)
    with pytest.raises(Unreachable, match="not ready"):
        client.predict(b"image")
    client.close()
    assert stand_in.requests == []


def test_a_version_retired_meanwhile_is_not_waited_for(
    stand_in: StandIn, client: InferenceClient
) -> None:
    stand_in.routing.publish(replace(ROUTING, paused={"2.0": time.time() + 14}))
    gone = later(stand_in.routing, replace(ROUTING, versions=("1.0",)))
    with pytest.raises(NotServed):
        client.predict(b"image", version="2.0")
    gone.join()
    assert stand_in.requests == []


def test_outcomes_are_noted_while_a_canary_runs(
    stand_in: StandIn, client: InferenceClient, tmp_path: Path
) -> None:
    client.predict(b"image")
    assert outcomes(tmp_path) == []
    stand_in.routing.publish(TRIAL)
    client.predict(b"image", client="first")
    client.predict(b"image", version="1.0")
    assert outcomes(tmp_path) == [("2.0", False), ("1.0", False)]
    # A version beside the trial tells nothing of it.
    stand_in.routing.publish(replace(TRIAL, versions=("1.0", "2.0", "3.0")))
    client.predict(b"image", version="3.0")
    assert len(outcomes(tmp_path)) == 2


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        (problem(415, "UnsupportedImage"), False),
        (problem(503, "ServiceUnavailableException"), True),
        (DIED, True),
        ((200, b"<html>"), True),
    ],
)
def test_a_failure_is_noted_but_not_a_bad_image(
    stand_in: StandIn,
    client: InferenceClient,
    tmp_path: Path,
    answer: tuple[int, bytes],
    failed: bool,
) -> None:
    stand_in.routing.publish(TRIAL)
    stand_in.answer = lambda request, body: answer
    with pytest.raises(ServiceError):
        client.predict(b"image", client="first")
    assert outcomes(tmp_path)[0] == ("2.0", failed)


def test_outcomes_that_cannot_be_noted_cost_no_answer(
    stand_in: StandIn, client: InferenceClient, tmp_path: Path
) -> None:
    stand_in.routing.publish(TRIAL)
    (tmp_path / canary.FILE).mkdir()
    stand_in.answer = lambda request, body: (200, json.dumps({"got": body.decode()}).encode())
    assert client.predict(b"image", client="first") == {"got": "image"}

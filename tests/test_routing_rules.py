"""serving/client.py and the edge route, retry, wait and report alike."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from edges import Asker
from routing_rules import BAD_TOKEN, CLIENT, EDGE, OLD_TOKEN, RULES, Rule
from stand_in import ROUTING, StandIn

from serving.client import InferenceClient, NotServed, ServiceError, Unreachable
from serving.deployment import canary
from serving.deployment.routing import Routing

ALL_SERVED = ("1.0", "3.0", "4.0")
CANARY = Routing("1.0", ALL_SERVED, "3.0", 100.0)
MARKS = {CLIENT: (), EDGE: pytest.mark.live}


class ByClient:
    """Sends requests through serving.client."""

    def __init__(self, stand_in: StandIn) -> None:
        self.client = InferenceClient(stand_in.settings, patience=60)

    def ask(self, rule: Rule) -> tuple[str | None, int]:
        """Return the type and the status (at the edge) of the error, if any."""
        try:
            if rule.endpoint == "explanations":
                assert rule.named
                self.client.explain(b"x", rule.named)
            else:
                self.client.predict(b"x", rule.named)
        except ServiceError as error:
            return error.type, rule.status
        return None, 200

    def predict_as(self, name: str) -> None:
        self.client.predict(b"x", client=name)


class ByEdge:
    """Sends requests through the edge."""

    def __init__(self, edge: Asker) -> None:
        self.edge = edge

    def ask(self, rule: Rule) -> tuple[str | None, int]:
        version = f"/{rule.named}" if rule.named else ""
        response = self.edge.ask(f"/{rule.endpoint}/bloodcells{version}")
        return response.json().get("type"), response.status_code

    def predict_as(self, name: str) -> None:
        assert self.edge.ask(key=self.edge.keys.add(name)).status_code == 200


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, marks in MARKS.items()])
def way(request: pytest.FixtureRequest) -> Iterator[ByClient | ByEdge]:
    """Yield each client; its stand-in for TorchServe is the fixture `torchserve`."""
    if request.param == EDGE:
        yield ByEdge(request.getfixturevalue("edge"))
    else:
        made = ByClient(request.getfixturevalue("stand_in"))
        yield made
        made.client.close()


@pytest.fixture
def torchserve(way: ByClient | ByEdge, request: pytest.FixtureRequest) -> StandIn:
    if isinstance(way, ByEdge):
        assert way.edge.stand_in
        return way.edge.stand_in
    found: StandIn = request.getfixturevalue("stand_in")
    return found


def outcomes(torchserve: StandIn) -> list[tuple[str, bool]]:
    path = torchserve.settings.run_dir / canary.FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line.split()[1], line.split()[2] == "1") for line in lines]


@pytest.mark.parametrize(
    ("way", "rule"),
    [
        pytest.param(name, rule, marks=MARKS[name], id=f"{name}: {rule.situation}")
        for name, rule in itertools.product(MARKS, RULES)
        if rule.only in (None, name)
    ],
    indirect=["way"],
)
def test_rule(
    rule: Rule, way: ByClient | ByEdge, torchserve: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rule.answers == [BAD_TOKEN]:
        monkeypatch.setattr("serving.client.RENEWAL_PATIENCE", 0.1)
    torchserve.routing.publish(CANARY if rule.canary else replace(ROUTING, versions=ALL_SERVED))
    answers = itertools.chain(rule.answers, itertools.repeat(rule.answers[-1]))

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> tuple[Any, ...]:
        found = next(answers)
        if callable(found):
            found(request)
            raise ConnectionAbortedError
        if found is OLD_TOKEN:
            torchserve.renew_token(f"renewed-{len(torchserve.requests)}")
        return tuple(found)

    torchserve.answer = answer
    assert way.ask(rule) == (rule.error, rule.status)
    assert torchserve.asked == rule.asked
    assert outcomes(torchserve) == rule.outcomes


def test_clients_are_chosen_by_name(way: ByClient | ByEdge, torchserve: StandIn) -> None:
    routing = replace(CANARY, percent=50.0)
    torchserve.routing.publish(routing)
    names = [f"client-{number}" for number in range(12)]
    for name in names:
        way.predict_as(name)
    assert torchserve.asked == [routing.choose(name) for name in names]
    assert set(torchserve.asked) == {"1.0", "3.0"}


@pytest.mark.parametrize("starting", [True, False])
def test_waits_for_a_paused_version_and_a_starting_service(
    way: ByClient | ByEdge, torchserve: StandIn, starting: bool
) -> None:
    if starting:
        torchserve.routing.withdraw()
    else:
        torchserve.routing.publish(replace(ROUTING, paused={"1.0": time.time() + 14}))
    ready = threading.Timer(0.2, torchserve.routing.publish, [replace(ROUTING, default="3.0")])
    ready.start()
    assert way.ask(RULES[0]) == (None, 200)
    ready.join()
    assert torchserve.asked == ["3.0"]


def test_only_the_paused_version_waits(way: ByClient | ByEdge, torchserve: StandIn) -> None:
    torchserve.routing.publish(replace(ROUTING, paused={"1.0": time.time() + 14}))
    assert way.ask(replace(RULES[0], named="3.0")) == (None, 200)
    assert torchserve.asked == ["3.0"]


def test_a_pause_of_an_hour_is_a_clock_that_was_set_back(
    way: ByClient | ByEdge, torchserve: StandIn
) -> None:
    torchserve.routing.publish(replace(ROUTING, paused={"1.0": time.time() + 3600}))
    assert way.ask(RULES[0]) == (None, 200)


def test_waits_for_the_first_token(way: ByClient | ByEdge, torchserve: StandIn) -> None:
    for name in ("key_file.json", "inference.header"):
        (torchserve.settings.run_dir / name).unlink()
    written = threading.Timer(0.2, torchserve.renew_token, ["first"])
    written.start()
    assert way.ask(RULES[0]) == (None, 200)
    written.join()
    assert torchserve.requests == [("/predictions/bloodcells/1.0", "Bearer first")]


def test_an_outcome_that_cannot_be_written_costs_no_answer(
    way: ByClient | ByEdge, torchserve: StandIn
) -> None:
    torchserve.routing.publish(CANARY)
    path = torchserve.settings.run_dir / canary.FILE
    path.mkdir()
    assert way.ask(RULES[0]) == (None, 200)
    path.rmdir()


class TestClient:
    def test_without_a_name_each_client_object_is_a_client(self, stand_in: StandIn) -> None:
        stand_in.routing.publish(replace(CANARY, percent=50.0))
        for _ in range(40):
            client = InferenceClient(stand_in.settings)
            for _ in range(2):
                client.predict(b"x")
            client.close()
        first, second = stand_in.asked[::2], stand_in.asked[1::2]
        assert first == second
        assert set(first) == {"1.0", "3.0"}

    @pytest.mark.parametrize("paused", [False, True])
    def test_patience_ends(self, stand_in: StandIn, paused: bool) -> None:
        if paused:
            stand_in.routing.publish(replace(ROUTING, paused={"1.0": time.time() + 14}))
        else:
            stand_in.routing.withdraw()
        client = InferenceClient(stand_in.settings, patience=0)
        with pytest.raises(Unreachable, match="not ready"):
            client.predict(b"x")
        client.close()
        assert stand_in.requests == []

    def test_does_not_wait_for_a_version_that_is_retired_meanwhile(self, stand_in: StandIn) -> None:
        client = InferenceClient(stand_in.settings, patience=60)
        stand_in.routing.publish(replace(ROUTING, paused={"3.0": time.time() + 14}))
        gone = threading.Timer(0.2, stand_in.routing.publish, [replace(ROUTING, versions=("1.0",))])
        gone.start()
        with pytest.raises(NotServed, match=r"Version 3\.0 does not serve"):
            client.predict(b"x", version="3.0")
        gone.join()
        client.close()
        assert stand_in.requests == []

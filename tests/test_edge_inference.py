"""The Open Inference Protocol at the edge: its paths, headers, errors and limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from edges import Asker, wait
from stand_in import ROUTING, StandIn, problem

from serving.deployment.canary import FILE
from serving.deployment.routing import Routing

pytestmark = pytest.mark.live

MODEL = "/v2/models/bloodcells"
INFER = f"{MODEL}/infer"
LENGTH = "Inference-Header-Content-Length"
VERSION = ("X-Model-Version", "1.0")


@pytest.fixture
def stand_in(edge: Asker) -> StandIn:
    """Return the stand-in behind the edge."""
    assert edge.stand_in
    return edge.stand_in


def error_of(response: requests.Response) -> tuple[int, str]:
    """Return status and message of an error, which must have the protocol's format."""
    document = response.json()
    assert set(document) == {"error"}
    assert response.headers["Content-Type"] == "application/json"
    return response.status_code, document["error"]


def test_paths_lead_to_predictions(edge: Asker, received: list[dict[str, str]]) -> None:
    for method, path, body in (
        ("POST", INFER, b"{}"),
        ("POST", f"{MODEL}/versions/3.0/infer", b"{}"),
        ("GET", MODEL, None),
        ("HEAD", f"{MODEL}/versions/3.0", None),
        ("GET", f"{MODEL}/ready", None),
        ("GET", f"{MODEL}/versions/3.0/ready", None),
    ):
        assert edge.ask(path, body, method).status_code == 200, path
    assert edge.stand_in
    assert edge.stand_in.asked == ["1.0", "3.0"] * 3
    assert {path.rpartition("/")[0] for path, _ in edge.stand_in.requests} == {
        "/predictions/bloodcells"
    }
    protocols = [each["X-Inference-Protocol"] for each in received]
    assert protocols == 2 * ["infer"] + 4 * ["metadata"]


@pytest.mark.parametrize(
    ("given", "passed"),
    [(None, None), ("0", "0"), ("99", "99"), ("-1", "invalid"), ("x", "invalid")],
)
def test_the_handler_gets_bytes_and_the_length_of_the_json(
    edge: Asker, received: list[dict[str, str]], given: str | None, passed: str | None
) -> None:
    for kind in (None, "application/json", "application/octet-stream", "multipart/form-data"):
        headers = {"Content-Type": kind, LENGTH: given, "X-Inference-Protocol": "metadata"}
        edge.ask(INFER, b"{}", headers={name: value for name, value in headers.items() if value})
        assert received[-1]["Content-Type"] == "application/octet-stream"
        assert received[-1]["X-Inference-Protocol"] == "infer"
        assert received[-1].get(LENGTH) == passed
    # Other paths have no such headers.
    edge.ask(headers={LENGTH: "1", "X-Inference-Protocol": "infer"})
    assert not {LENGTH, "X-Inference-Protocol"} & set(received[-1])


def test_binary_outputs_pass(edge: Asker, stand_in: StandIn) -> None:
    body = bytes(range(256))
    stand_in.answer = lambda *_: (200, body, (LENGTH, "9"), VERSION)
    response = edge.ask(INFER)
    assert response.content == body
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert (response.headers[LENGTH], response.headers["X-Model-Version"]) == ("9", "1.0")
    stand_in.answer = lambda *_: (200, b"{}", VERSION)
    response = edge.ask(INFER)
    assert response.headers["Content-Type"] == "application/json"
    assert LENGTH not in response.headers


def test_metadata_has_the_versions_that_serve(edge: Asker, stand_in: StandIn) -> None:
    stand_in.answer = lambda *_: (200, b'{"name": "bloodcells", "versions": ["1.0"]}', VERSION)
    known = {"name": "bloodcells", "versions": ["1.0", "3.0"]}
    for path in (MODEL, f"{MODEL}/versions/1.0"):
        assert edge.ask(path, None, "GET").json() == known
    response = edge.ask(f"{MODEL}/ready", None, "GET")
    assert response.json() == {"name": "bloodcells", "ready": True}


def test_health_and_server_metadata_need_no_key(edge: Asker, stand_in: StandIn) -> None:
    assert edge.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert edge.get("/v2/health/live").json() == {"live": True}
    assert edge.get("/v2/health/ready").json() == {"ready": True}
    assert edge.ask("/v2/health/ready", None, "HEAD", None).status_code == 200
    stand_in.refuse(503, "ServiceUnavailable")
    assert error_of(edge.get("/v2/health/ready")) == (503, "The service is not ready.")
    assert edge.get("/v2/health/live").status_code == 200


def test_errors_have_the_form_of_the_protocol(edge: Asker, stand_in: StandIn) -> None:
    limited = edge.keys.add("explainer", ["explain"])
    for status, path, options in (
        (401, INFER, {"key": None}),
        (401, MODEL, {"key": None, "method": "GET"}),
        (403, INFER, {"key": limited}),
        (404, f"{MODEL}/versions/9.9/infer", {}),
        (404, f"{MODEL}/versions/9.9/ready", {"method": "GET"}),
        (404, "/v2/models/other/infer", {}),
        (404, f"{MODEL}/config", {"method": "GET"}),
        (404, f"{MODEL}/versions//infer", {}),
        (404, "/v2/repository/index", {}),
        (405, INFER, {"method": "GET"}),
        (405, MODEL, {}),
        (405, f"{MODEL}/ready", {}),
        (405, "/v2", {}),
        (405, "/v2/health/ready", {}),
        (413, INFER, {"body": bytes(12 * 2**20 + 1)}),
        (415, INFER, {"headers": {"Content-Encoding": "gzip"}}),
    ):
        response = edge.ask(path, **options)
        assert error_of(response)[0] == status, path
        if status == 405:
            allowed = "POST" if path == INFER else "GET, HEAD"
            assert response.headers["Allow"] == allowed
    assert stand_in.requests == []


def test_errors_of_the_service_are_translated(edge: Asker, stand_in: StandIn) -> None:
    for answer, status, message in (
        ((*problem(415, "UnsupportedImage"), VERSION), 415, "why"),
        (problem(500, "InternalServerException"), 503, "The worker died."),
        (problem(404, "ModelNotFoundException"), 404, "This version does not serve."),
        ((400, b"no JSON", VERSION), 400, "The service failed."),
    ):
        stand_in.answer = lambda *_, answer=answer: answer  # type: ignore[misc]
        for path, method in ((INFER, "POST"), (MODEL, "GET"), (f"{MODEL}/ready", "GET")):
            assert error_of(edge.ask(f"{path}", None, method)) == (status, message)
    stand_in.refuse(503, "ServiceUnavailableException")
    response = edge.ask(INFER)
    assert error_of(response)[0] == 429
    assert response.headers["Retry-After"] == "1"


def test_a_request_that_is_put_off_is_sent_again(edge: Asker, stand_in: StandIn) -> None:
    answers: Iterator[Any] = iter([(*problem(503, "ServiceBusy"), VERSION), (200, b"{}", VERSION)])
    stand_in.answer = lambda *_: next(answers)
    assert edge.ask(INFER).status_code == 200
    assert len(stand_in.requests) == 2


def test_a_canary_answers_its_clients_and_is_watched(edge: Asker, stand_in: StandIn) -> None:
    stand_in.routing.publish(Routing("1.0", ("1.0", "3.0"), "3.0", 100.0))
    for path, method in ((INFER, "POST"), (MODEL, "GET"), (f"{MODEL}/ready", "GET")):
        assert edge.ask(path, None, method).status_code == 200
    assert stand_in.asked == 3 * ["3.0"]
    # Only an inference is evidence about a version.
    [outcome] = (edge.settings.run_dir / FILE).read_text().splitlines()
    assert outcome.split()[1:3] == ["3.0", "0"]
    stand_in.routing.publish(ROUTING)


def test_large_bodies_have_the_limit_of_several_images(edge: Asker, stand_in: StandIn) -> None:
    lines = "Expect: 100-continue", "Content-Length: 100000", "Content-Type: image/png"
    with contextlib.ExitStack() as stack:
        statuses = []
        for _ in range(11):
            connection = stack.enter_context(edge.connect())
            connection.sendall(edge.head(*lines, path=INFER))
            statuses.append(connection.recv(4096)[9:12])
    assert statuses == 10 * [b"100"] + [b"429"]
    # Wait until nginx has noticed that the clients are gone.
    wait(lambda: edge.ask(INFER, bytes(100_000)).status_code == 200)

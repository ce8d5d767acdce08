"""Probes and visitors share one check of the service."""

import threading

import pytest
from flask import Flask
from flask.testing import FlaskClient
from page_stand_in import StandIn, failure

from frontend.readiness import SECONDS, Readiness


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


def test_pages_and_probes_run_the_model_once(
    app: Flask, client: FlaskClient, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.extensions["readiness"], "_clock", lambda: 0.0)
    for path in ("/readyz", "/models", "/models/1.0", "/readyz"):
        assert client.get(path).status_code == 200
    assert stand_in.checks == 1


def test_result_expires(stand_in: StandIn) -> None:
    now = [0.0]
    readiness = Readiness(stand_in.check_ready, clock=lambda: now[0])
    assert readiness.error() is None
    stand_in.error = failure("ServiceUnavailable")
    now[0] = SECONDS / 2
    assert readiness.error() is None
    now[0] = SECONDS
    assert readiness.error() is stand_in.error
    stand_in.error = None
    now[0] = 2 * SECONDS
    assert readiness.error() is None


def test_concurrent_callers_wait_for_one_check() -> None:
    started, proceed, count = threading.Event(), threading.Event(), [0]

    def check() -> None:
        count[0] += 1
        started.set()
        assert proceed.wait(60)

    readiness = Readiness(check, clock=lambda: 0.0)
    threads = [threading.Thread(target=readiness.error) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert started.wait(60)
    proceed.set()
    for thread in threads:
        thread.join(60)
    assert count == [1]

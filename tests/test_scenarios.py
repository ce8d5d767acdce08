"""The scenario engine: requests of a step, reasons for failure, reports."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import chaos, cluster, drill, engine, load, nodes, outcome, soak
from benchmarks.cluster import Cluster
from benchmarks.outcome import FIELDS, Request, Result, Step, summary
from serving.settings import Settings


def request(
    time: float, milliseconds: float = 100, client: str = "a", by: str = "1.0", **other: Any
) -> Request:
    given = {"load": "users", "said": "200", "failed": False} | other
    return Request(time, milliseconds, client=client, by=by, **given)


def failure(time: float, **other: Any) -> Request:
    return request(time, by="", said="503 gone", failed=True, **other)


def nothing(target: Any, result: Result) -> None:
    pass


def step_at(started: float, ended: float, workers: tuple[int, ...] = (), **step: Any) -> Result:
    before, after = ({"workers": each, "megabytes": {"java": 180.4}} for each in ((1, 2), workers))
    made = Step("promote", nothing, **step)
    return Result(made, started, ended, before=before, after=after)


KEEPS = (1, 2)


@pytest.mark.parametrize(
    ("result", "asked", "problems"),
    [
        (step_at(20, 22, KEEPS), [failure(21)], ["promote: 1 requests of users failed, 0 may"]),
        (step_at(20, 22, KEEPS, may_fail={"users": 1}), [failure(21)], []),
        (
            step_at(20, 22, KEEPS, may_fail={"users": 1}),
            [failure(21, load="direct")],
            ["promote: 1 requests of direct failed, 0 may"],
        ),
        (
            step_at(20, 22, KEEPS),
            [failure(50)],
            ["1 requests of users failed while nothing was done"],
        ),
        (step_at(20, 22, (1, 3)), [request(21)], ["promote: 1 workers ended"]),
        (step_at(20, 22, (1, 3), workers_may_end=True), [request(21)], []),
        (step_at(20, 22, KEEPS), [], ["No request was sent."]),
    ],
)
def test_what_fails_a_run(result: Result, asked: list[Request], problems: list[str]) -> None:
    assert summary([result], asked)["problems"] == problems


def test_the_report_says_it_all() -> None:
    result = step_at(2, 4, (1, 3))
    result.watched, result.sent = (2, 4), Counter({"413": 3, "200": 1})
    result.notes = {"printed": "a | b", "seconds until ready": 1.26}
    asked = [request(0.5), request(2.9, 50, by="3.0"), failure(3), request(3, 7, load="direct")]
    about = {"name": "drill", "title": "The drill", "about": "Written by `make drill`."}
    machine = {"date": "2026-01-02", "machine": {"processor": "one", "cores": 2}}
    more = {"table": {"heads": ["nodes", "p50"], "rows": [[3, "8"]]}}
    page = outcome.page(about | machine | summary([result], asked) | more)
    for text in (
        "Written by `make drill`. 2026-01-02, 2 cores (one), which service and clients share.",
        "**1 of 3 requests of users failed** (between steps: p50 100.0, p99 100.0).",
        "| promote | 2 | users | 2 | 1 | 50.0 | 50.0 | 50.0 | 1 x 503 gone | 4: 1 x 200, 3 x 413 "
        "| 1 | 180 | 180 | a \\| b; seconds until ready: 1.3; 1 clients: 100.0 % by 3.0; "
        "requests: 100.0 % by 3.0; 0 clients saw two versions |",
        "|  |  | direct | 1 | 0 | 7.0 |",
        "| 3 | 8 |",
        "Problems:\n\n- promote: 1 workers ended\n- promote: 1 requests of users failed, 0 may",
    ):
        assert text in page


def test_a_direct_client_loses_what_torchserve_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key_file.json").write_text('{"inference": {"key": "secret"}}')
    direct = load.Direct(Settings(run_dir=tmp_path), 1, None)
    lost = ["503 InternalServerException", "503", "closed", "nothing"]
    for said in ("200", *load.NOT_ACCEPTED, *lost):
        monkeypatch.setattr(load.connections, "ask", lambda call, said=said: said)
        assert direct.ask(random.Random(0)) == ("", "", said, said in lost)


class Target(SimpleNamespace):
    """A target whose load is a program that writes one request."""

    def look(self) -> dict[str, Any]:
        return {"workers": [1], "megabytes": {"java": 100}}

    def requests(self) -> list[Request]:
        return [request(0), request(9.0)]


def test_the_engine_takes_each_step_and_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FOLDER", tmp_path / "run")
    monkeypatch.setattr(engine, "running", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(outcome, "AFTER", 0)
    taken: list[str] = []

    def inject(target: Any, result: Result) -> None:
        taken.append("inject")
        result.expect(True, "fine")
        result.expect(False, "it broke")
        result.sent = Counter({"200": 3, "500": 2})
        result.expect_sent("200", "503")

    step = Step(
        "one",
        inject,
        {},
        False,
        lambda _: taken.append("prepare"),
        lambda _: taken.append("clean up"),
    )
    scenario = engine.Scenario(
        "trial",
        "A trial",
        "Written by a test.",
        lambda folder: contextlib.nullcontext(Target()),
        {},
        [step, Step("two", nothing)],
        calm=0,
        conclude=lambda target, samples: ({"heads": ["x"], "rows": [[len(samples) > 0]]}, ["late"]),
    )
    assert engine.run(scenario, tmp_path) == ["one: it broke", "one: 2 x 500", "late"]
    assert taken == ["prepare", "inject", "clean up"]
    assert "| True |" in (tmp_path / "trial.md").read_text()
    assert (tmp_path / "trial.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("build", [drill.build, chaos.build, soak.build, nodes.build])
def test_a_quick_run_takes_the_same_steps(build: Callable[[bool], engine.Scenario]) -> None:
    quick, whole = build(True), build(False)
    assert len(quick.steps) == len(whole.steps) == len({step.name for step in whole.steps})


def memory(minutes: int, **grown: Callable[[float], float]) -> list[dict[str, Any]]:
    return [
        {"time": 60 * at, "megabytes": {kind: each(at) for kind, each in grown.items()}}
        for at in range(minutes + 1)
    ]


@pytest.mark.parametrize(
    ("minutes", "problems"), [(30, ["workers: 60 MB an hour more in the last third"]), (9, [])]
)
def test_a_leak_is_a_problem_unless_the_run_is_short(minutes: int, problems: list[str]) -> None:
    leaks = {"worker": lambda at: 500 + at, "python": lambda at: 200 + at / 2}
    samples = memory(minutes, java=lambda at: min(100 + 50 * at, 250), **leaks)
    found, said = soak.conclude(None, samples)  # type: ignore[arg-type]
    assert said == problems
    assert found["rows"][1] == ["Java", "100", "250", "+0 ± 0", "+0 ± 0"]


def test_haproxy_says_which_node_answers(tmp_path: Path) -> None:
    front = Cluster.__new__(Cluster)
    front.log, front.haproxy_log = tmp_path / "load.csv", tmp_path / "haproxy.log"
    front.haproxy_log.write_text(
        "[NOTICE] started\n"
        '{"request_id": "a", "node": "node2", "retries": "+1"}\n'
        '{"request_id": "b", "node": "node1", "retries": "0"}\n'
    )
    rows = [f"{at},10.0,clients,{client},,200,False" for at, client in enumerate("abc")]
    front.log.write_text("\n".join([",".join(FIELDS), *rows]))
    assert [each.by for each in front.requests()] == ["node2", "node1", ""]
    assert front.retried() == 1


@pytest.mark.skipif(bool(cluster.lacking()), reason=str(cluster.lacking()))
@pytest.mark.xdist_group("network")
def test_a_node_is_cut_off_and_found_again(tmp_path: Path) -> None:
    def listens() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((node.address, cluster.PORT), timeout=0.3).close()
            return True
        return False

    with cluster.network():
        node = cluster.Node(1, tmp_path, {})
        try:
            node.run(sys.executable, "-m", "http.server", str(cluster.PORT), "--bind", node.address)
            cluster.wait(listens, "node")
            node.set_link("down")
            assert not listens()
            node.set_link("up")
            cluster.wait(listens, "node")
            node.kill()
            assert node.cgroup.processes() == []
        finally:
            node.remove()
    links = subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
    assert cluster.BRIDGE not in links

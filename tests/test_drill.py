"""The drill's figures: what is counted to which step, and what is found wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from benchmarks import drill_report
from benchmarks.drill_report import Request, Step, between, figures, split, summary

ABOUT = {
    "date": "2026-01-02",
    "machine": {"processor": "one", "cores": 2, "torch": "2"},
    "users": 16,
    "token_life_seconds": 30.0,
    "tokens": 3,
}


def request(
    time: float, milliseconds: float = 100, person: str = "a", version: str = "1.0", error: str = ""
) -> Request:
    return Request(time, milliseconds, person, "" if error else version, error)


def test_a_request_belongs_to_each_moment_that_it_was_under_way() -> None:
    asked = [request(9.0, 500), request(9.0, 1500), request(10.5, 9000), request(11.5)]
    assert between(asked, 10, 11) == asked[1:3]


def test_failures_count_but_not_their_time() -> None:
    asked = [request(0, milliseconds) for milliseconds in range(1, 100)]
    found = figures([*asked, request(0, 20_000, error="503")])
    assert found == {"requests": 100, "failed": 1, "p50": 50.0, "p99": 98.0, "slowest": 99.0}
    assert figures([])["p99"] is None
    assert figures([request(0, error="503")])["slowest"] is None


def test_the_split_is_by_people_and_by_requests() -> None:
    asked = [request(0, person=name, version="2.0") for name in "aab"]
    asked += [request(0, person=name) for name in "bcde"]
    asked.append(request(0, person="f", error="503"))
    assert split(asked) == {
        "people": 5,
        "people who saw two versions": 1,
        "percent of people": {"1.0": 80.0, "2.0": 40.0},
        "percent of requests": {"1.0": 57.1, "2.0": 42.9},
    }


class TestSummary:
    STEP = Step("promote", started=20, ended=22)

    def test_a_step_stands_beside_the_time_before_it(self) -> None:
        # The second one was under way when the step began.
        asked = [request(2, 1), request(12, 50), request(19, 1100), request(21, 300)]
        asked += [request(26, 900), request(30, 70)]
        found = summary(ABOUT, [self.STEP], asked)
        row = found["steps"][0]
        assert (row["seconds"], row["before"]["p99"], row["during"]["p99"]) == (2, 50, 1096)
        assert row["during"]["requests"] == 3
        assert (found["all"]["requests"], found["calm"]["requests"]) == (6, 3)
        assert found["problems"] == []

    @pytest.mark.parametrize(
        ("moment", "lossless", "said"),
        [
            (21.0, True, ["promote: 1 requests failed"]),
            (21.0, False, []),
            (50.0, True, ["1 requests failed while nothing was done"]),
        ],
    )
    def test_a_failure_is_a_problem_where_none_may_be(
        self, moment: float, lossless: bool, said: list[str]
    ) -> None:
        step = Step("promote", lossless, started=20, ended=22)
        found = summary(ABOUT, [step], [request(1), request(moment, error="503 gone")])
        assert found["problems"] == said
        assert found["errors"] == {"503 gone": 1}

    def test_what_a_step_found_wrong_is_a_problem(self) -> None:
        step = Step("promote", started=20, ended=22)
        step.expect(True, "fine")
        step.expect(False, "2.0 is not the default")
        found = summary(ABOUT, [step], [request(1)])
        assert found["problems"] == ["promote: 2.0 is not the default"]


def test_all_of_it_is_written(tmp_path: Path) -> None:
    steps = [
        Step("a canary", started=2, ended=4, watched=(2, 4), seen={"said": "a | b", "took": 1.25})
    ]
    asked = [request(0.5), request(2.9, version="2.0"), request(3.0, error="503 gone")]
    problems = drill_report.write(tmp_path, ABOUT, steps, asked)
    assert problems == ["a canary: 1 requests failed"]
    assert json.loads((tmp_path / "drill.json").read_text())["all"]["failed"] == 1
    page = (tmp_path / "drill.md").read_text()
    for sentence in (
        "**1 of 3 requests failed.**",
        r"a \| b",
        "100.0 % were answered by 2.0",
        problems[0],
        "503 gone",
    ):
        assert sentence in page
    with (tmp_path / "drill.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["requests"] for row in rows] == ["1", "0", "2"]
    assert [row["by 2.0"] for row in rows] == ["0", "0", "1"]
    assert (tmp_path / "drill.png").read_bytes().startswith(b"\x89PNG")


def test_the_log_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    path.write_text(
        "time,milliseconds,person,version,error\n"
        "2.5,10.0,person-1,2.0,\n"
        '1.5,20.0,person-2,,"503 Gone: not there, sorry"\n'
    )
    assert drill_report.read_requests(path) == [
        Request(1.5, 20.0, "person-2", "", "503 Gone: not there, sorry"),
        Request(2.5, 10.0, "person-1", "2.0", ""),
    ]

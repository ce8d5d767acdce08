"""The watch over a canary: what is noted, what counts, and when it must go back."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from serving.deployment import Canary, canary
from serving.deployment.canary import ENOUGH, FILE, PARDONED, WINDOW, Outcome, Watch

TRIAL = Canary("2.0", 10.0, max_errors=2.0, max_p95=100.0)
PROCESSES, NOTES = 4, 500


def note_many(run_dir: Path, version: str) -> None:
    for number in range(NOTES):
        canary.note(run_dir, version, failed=number % 2 == 1, seconds=number / 1000)


def write(
    run_dir: Path, version: str, failures: int, of: int, milliseconds: float = 5.0, age: float = 0.0
) -> None:
    """Write outcomes as clients do, some time ago."""
    with (run_dir / FILE).open("a") as file:
        for number in range(of):
            failed = int(number < failures)
            file.write(f"{time.time() - age:.3f} {version} {failed} {milliseconds:.2f}\n")


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


def judged(watch: Watch, trial: Canary = TRIAL) -> str | None:
    watch.read()
    return watch.verdict(trial, "1.0")


def count(watch: Watch) -> int:
    watch.read()
    return len(watch._outcomes)


class TestNote:
    def test_several_processes_at_once_lose_no_line(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=note_many, args=(tmp_path, f"{number}.0"))
            for number in range(PROCESSES)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found = list(canary._parse((tmp_path / FILE).read_text().splitlines()))
        assert len(found) == PROCESSES * NOTES
        for number in range(PROCESSES):
            own = [each for each in found if each.version == f"{number}.0"]
            assert [each.milliseconds for each in own] == [float(i) for i in range(NOTES)]
            assert [each.failed for each in own] == [False, True] * (NOTES // 2)

    def test_tells_when_it_was(self, tmp_path: Path, watch: Watch) -> None:
        before = time.time()
        canary.note(tmp_path, "2.0", failed=True, seconds=0.0125)
        watch.read()
        (found,) = watch._outcomes
        assert found == Outcome(found.time, "2.0", True, 12.5)
        assert before - 0.001 <= found.time <= time.time() + 0.001

    def test_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        canary.note(tmp_path, "2.0", failed=False, seconds=1.0)
        assert (tmp_path / FILE).stat().st_mode & 0o077 == 0


class TestWatch:
    def test_reads_each_line_once_and_the_file_never_grows(
        self, tmp_path: Path, watch: Watch
    ) -> None:
        assert count(watch) == 0
        write(tmp_path, "2.0", 0, of=3)
        assert count(watch) == 3
        assert count(watch) == 3
        assert not (tmp_path / FILE).exists()
        write(tmp_path, "2.0", 0, of=2)
        assert count(watch) == 5

    def test_what_is_old_counts_no_more(
        self, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, "2.0", 0, of=4, age=WINDOW + 1)
        write(tmp_path, "2.0", 0, of=3, age=WINDOW / 2)
        write(tmp_path, "2.0", 0, of=2)
        assert count(watch) == 5
        later = time.time() + WINDOW * 0.75
        monkeypatch.setattr(time, "time", lambda: later)
        assert count(watch) == 2

    def test_forgets_what_it_read_and_what_it_did_not(self, tmp_path: Path, watch: Watch) -> None:
        write(tmp_path, "2.0", ENOUGH, of=ENOUGH)
        watch.read()
        write(tmp_path, "2.0", ENOUGH, of=ENOUGH)
        watch.forget()
        assert count(watch) == 0
        watch.forget()

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "\n",
            "17640000",
            "1764000000.000 2.0 1",
            "1764000000.000 2.0 1 5.00 more",
            "soon 2.0 1 5.00",
            "1764000000.000 2.0 1 1764000000.000 2.0 0 5.00",
        ],
    )
    def test_a_line_that_was_cut_off_is_passed_over(
        self, tmp_path: Path, watch: Watch, line: str
    ) -> None:
        write(tmp_path, "2.0", 0, of=1)
        with (tmp_path / FILE).open("a") as file:
            file.write(f"{line}\n")
        write(tmp_path, "2.0", 0, of=1)
        assert count(watch) == 2


class TestVerdict:
    def test_nothing_is_no_reason(self, watch: Watch) -> None:
        assert judged(watch) is None

    def test_few_answers_are_not_judged(self, tmp_path: Path, watch: Watch) -> None:
        write(tmp_path, "2.0", ENOUGH - 1, of=ENOUGH - 1, milliseconds=9999)
        assert judged(watch) is None
        write(tmp_path, "2.0", 1, of=1)
        assert judged(watch)

    @pytest.mark.parametrize(
        ("failures", "of", "goes"),
        [
            (PARDONED, ENOUGH, False),
            (PARDONED + 1, ENOUGH, True),
            (3, 150, False),
            (4, 150, True),
            (20, 1000, False),
            (21, 1000, True),
        ],
    )
    def test_goes_back_for_errors_above_the_bound(
        self, tmp_path: Path, watch: Watch, failures: int, of: int, goes: bool
    ) -> None:
        write(tmp_path, "2.0", failures, of)
        write(tmp_path, "1.0", 0, of=1000)
        why = judged(watch)
        assert (why is not None) is goes
        if why:
            assert why.startswith(f"{failures} of its last {of} requests failed (")
            assert "the default's 0.0 %; the bound is 2 % more" in why

    @pytest.mark.parametrize(("usual", "goes"), [(0, True), (7, True), (8, False), (100, False)])
    def test_what_the_default_fails_at_too_is_no_reason(
        self, tmp_path: Path, watch: Watch, usual: int, goes: bool
    ) -> None:
        write(tmp_path, "2.0", 10, of=100)
        write(tmp_path, "1.0", usual, of=100)
        assert (judged(watch) is not None) is goes

    @pytest.mark.parametrize("default", [0, 5])
    def test_a_default_that_nobody_asks_excuses_nothing(
        self, tmp_path: Path, watch: Watch, default: int
    ) -> None:
        write(tmp_path, "2.0", 10, of=100)
        write(tmp_path, "1.0", 0, of=default)
        assert judged(watch)

    def test_failures_of_other_versions_are_not_its_own(self, tmp_path: Path, watch: Watch) -> None:
        write(tmp_path, "2.0", 0, of=ENOUGH)
        for version in ("2.0.1", "3.0", "1.0"):
            write(tmp_path, version, 500, of=500, milliseconds=9999)
        assert judged(watch) is None

    @pytest.mark.parametrize(
        ("slow", "of", "goes"),
        [(1, 20, False), (2, 20, True), (5, 100, False), (6, 100, True), (100, 100, True)],
    )
    def test_goes_back_where_less_than_19_in_20_come_in_time(
        self, tmp_path: Path, watch: Watch, slow: int, of: int, goes: bool
    ) -> None:
        write(tmp_path, "2.0", 0, of=of - slow, milliseconds=99)
        write(tmp_path, "2.0", 0, of=slow, milliseconds=180)
        why = judged(watch)
        assert (why is not None) is goes
        if why:
            assert "180 ms (the bound is 100 ms)" in why

    def test_exactly_in_time_is_in_time(self, tmp_path: Path, watch: Watch) -> None:
        write(tmp_path, "2.0", 0, of=ENOUGH, milliseconds=100)
        assert judged(watch) is None

    @pytest.mark.parametrize(
        ("times", "percent", "expected"),
        [
            ([7], 95, 7),
            (range(1, 101), 95, 95),
            (range(1, 101), 100, 100),
            (range(1, 21), 95, 19),
            ([3, 1, 2], 50, 2),
            ([4, 3, 1, 2], 50, 2),
        ],
    )
    def test_a_percentile_is_what_so_many_took_at_most(
        self, times: Iterable[int], percent: float, expected: float
    ) -> None:
        outcomes = [Outcome(0.0, "2.0", False, each) for each in times]
        assert canary.percentile(outcomes, percent) == expected

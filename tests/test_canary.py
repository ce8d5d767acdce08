"""The outcomes of a canary's requests, and when it is rolled back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.deployment import Canary, canary
from serving.deployment.canary import FILE, MIN_ANSWERS, TOLERATED, WINDOW, Outcome, Watch

TRIAL = Canary("3.0", 10.0, max_errors=2.0, max_p95=100.0)


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


def verdict(watch: Watch) -> str | None:
    watch.read()
    return watch.verdict(TRIAL, "1.0")


def count(watch: Watch) -> int:
    watch.read()
    return len(watch._outcomes)


def test_several_clients_at_once_lose_no_line(tmp_path: Path, watch: Watch) -> None:
    def note(version: str) -> None:
        for number in range(500):
            canary.note(tmp_path, version, failed=number % 2 == 1, seconds=number / 1000)

    versions = ["1.0", "3.0", "4.0", "5.0"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(note, versions))
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    watch.read()
    for version in versions:
        own = [each for each in watch._outcomes if each.version == version]
        assert own == [
            Outcome(own[number].time, version, number % 2 == 1, float(number))
            for number in range(500)
        ]


class TestRead:
    def test_reads_each_line_once_and_keeps_the_file_small(
        self, tmp_path: Path, watch: Watch
    ) -> None:
        assert count(watch) == 0
        write(tmp_path, "3.0", 0, of=3)
        assert count(watch) == count(watch) == 3
        assert not (tmp_path / FILE).exists()
        write(tmp_path, "3.0", 0, of=2)
        assert count(watch) == 5

    def test_drops_old_outcomes(
        self, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)
        write(tmp_path, "3.0", 0, of=4, age=WINDOW + 1)
        write(tmp_path, "3.0", 0, of=3, age=WINDOW / 2)
        write(tmp_path, "3.0", 0, of=2)
        assert count(watch) == 5
        now += WINDOW * 0.75
        assert count(watch) == 2

    def test_forgets_also_what_it_has_not_read(self, tmp_path: Path, watch: Watch) -> None:
        write(tmp_path, "3.0", 0, of=2)
        watch.read()
        write(tmp_path, "3.0", 0, of=2)
        watch.forget()
        assert count(watch) == 0

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "17640000",
            "1764000000.000 3.0 1",
            "1764000000.000 3.0 1 5.00 more",
            "soon 3.0 1 5.00",
        ],
    )
    def test_skips_a_truncated_line(self, tmp_path: Path, watch: Watch, line: str) -> None:
        write(tmp_path, "3.0", 0, of=1)
        with (tmp_path / FILE).open("a") as file:
            file.write(f"{line}\n")
        write(tmp_path, "3.0", 0, of=1)
        assert count(watch) == 2


class TestVerdict:
    def test_needs_enough_answers(self, tmp_path: Path, watch: Watch) -> None:
        assert verdict(watch) is None
        write(tmp_path, "3.0", MIN_ANSWERS - 1, of=MIN_ANSWERS - 1, milliseconds=9999)
        assert verdict(watch) is None
        write(tmp_path, "3.0", 1, of=1)
        assert verdict(watch)

    @pytest.mark.parametrize(
        ("failures", "of", "rolled_back"),
        [
            (TOLERATED, MIN_ANSWERS, False),
            (TOLERATED + 1, MIN_ANSWERS, True),
            (3, 150, False),
            (4, 150, True),
            (20, 1000, False),
            (21, 1000, True),
        ],
    )
    def test_error_rate(
        self, tmp_path: Path, watch: Watch, failures: int, of: int, rolled_back: bool
    ) -> None:
        write(tmp_path, "3.0", failures, of)
        write(tmp_path, "1.0", 0, of=1000)
        why = verdict(watch)
        assert (why is not None) is rolled_back
        if why:
            assert why.startswith(f"{failures} of its last {of} requests failed (")
            assert "default version: 0.0 %; the limit is 2 % more" in why

    @pytest.mark.parametrize(
        ("failures", "of", "rolled_back"),
        [(0, 0, True), (0, 5, True), (0, 100, True), (7, 100, True), (8, 100, False)],
    )
    def test_error_rate_of_the_default_version(
        self, tmp_path: Path, watch: Watch, failures: int, of: int, rolled_back: bool
    ) -> None:
        write(tmp_path, "3.0", 10, of=100)
        write(tmp_path, "1.0", failures, of)
        assert (verdict(watch) is not None) is rolled_back

    def test_other_versions_do_not_count(self, tmp_path: Path, watch: Watch) -> None:
        write(tmp_path, "3.0", 0, of=MIN_ANSWERS)
        for version in ("2.0.1", "4.0", "1.0"):
            write(tmp_path, version, 500, of=500, milliseconds=9999)
        assert verdict(watch) is None

    @pytest.mark.parametrize(
        ("usual", "answers", "rolled_back"),
        [(139, MIN_ANSWERS, True), (141, MIN_ANSWERS, False), (141, MIN_ANSWERS - 1, True)],
    )
    def test_what_slows_both_versions_is_not_the_canary(
        self, tmp_path: Path, watch: Watch, usual: float, answers: int, rolled_back: bool
    ) -> None:
        write(tmp_path, "3.0", 0, of=100, milliseconds=210)
        write(tmp_path, "1.0", 0, of=answers, milliseconds=usual)
        assert bool(verdict(watch)) is rolled_back

    @pytest.mark.parametrize(
        ("slow", "of", "rolled_back"),
        [(1, 20, False), (2, 20, True), (5, 100, False), (6, 100, True)],
    )
    def test_response_time(
        self, tmp_path: Path, watch: Watch, slow: int, of: int, rolled_back: bool
    ) -> None:
        write(tmp_path, "3.0", 0, of=of - slow, milliseconds=100)
        write(tmp_path, "3.0", 0, of=slow, milliseconds=180)
        why = verdict(watch)
        assert (why is not None) is rolled_back
        if why:
            assert "180 ms (the limit is 100 ms)" in why

    @pytest.mark.parametrize(
        ("times", "percent", "expected"),
        [([7], 95, 7), (range(1, 101), 95, 95), (range(1, 21), 95, 19), ([4, 3, 1, 2], 50, 2)],
    )
    def test_percentile(self, times: Iterable[int], percent: float, expected: float) -> None:
        outcomes = [Outcome(0.0, "3.0", False, each) for each in times]
        assert canary.percentile(outcomes, percent) == expected

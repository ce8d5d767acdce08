"""Which version answers which client, as all clients read it."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.deployment import Canary, Deployment, VersionSpec, routing
from serving.deployment.routing import FILE, Routing, RoutingFile

PLAIN = Routing("1.0", ("1.0", "3.0", "4.0"))
CLIENTS = [f"client {number}" for number in range(10_000)]


def trial(percent: float, version: str = "3.0") -> Routing:
    return replace(PLAIN, canary=version, percent=percent)


def chosen(found: Routing) -> set[str]:
    """Return the clients that the canary gets."""
    return {client for client in CLIENTS if found.choose(client) != found.default}


class TestChoice:
    def test_without_a_canary_the_default_answers_all(self) -> None:
        assert chosen(PLAIN) == set()

    @pytest.mark.parametrize("percent", [0.5, 10, 33.3, 50, 99])
    def test_a_canary_gets_its_share(self, percent: float) -> None:
        share = percent / 100
        # Four standard errors of a sample of that size; the names are fixed.
        error = 4 * (share * (1 - share) / len(CLIENTS)) ** 0.5
        assert len(chosen(trial(percent))) / len(CLIENTS) == pytest.approx(share, abs=error)

    @given(st.text(), st.floats(0.01, 99.99), st.floats(0.01, 99.99))
    def test_a_larger_share_keeps_its_clients(self, client: str, a: float, b: float) -> None:
        small, large = sorted((a, b))
        if trial(small).choose(client) == "3.0":
            assert trial(large).choose(client) == "3.0"

    def test_another_canary_gets_other_clients(self) -> None:
        first, second = chosen(trial(10)), chosen(trial(10, "4.0"))
        assert len(first & second) / len(first) == pytest.approx(0.1, abs=0.05)

    def test_the_choice_is_the_same_in_all_processes(self) -> None:
        # The first 8 bytes of SHA-256("3.0 client 0").
        assert routing._place("3.0", "client 0") == pytest.approx(54.089725362008956)

    def test_shares_are_of_all_clients(self) -> None:
        found = trial(12.5)
        assert [found.share(version) for version in found.versions] == [87.5, 12.5, 0.0]
        assert [PLAIN.share(version) for version in PLAIN.versions] == [100.0, 0.0, 0.0]

    @pytest.mark.parametrize("canary", [None, Canary("3.0", 5.0)])
    def test_follows_the_deployment(self, canary: Canary | None) -> None:
        desired = Deployment("4.0", {"4.0": VersionSpec(1), "3.0": VersionSpec(1)}, canary)
        found = Routing.of(desired)
        assert (found.default, found.versions) == ("4.0", ("3.0", "4.0"))
        assert (found.canary, found.percent) == (("3.0", 5.0) if canary else (None, 0.0))


@pytest.fixture
def file(tmp_path: Path) -> RoutingFile:
    return RoutingFile(tmp_path)


class TestFile:
    @pytest.mark.parametrize("routing", [PLAIN, trial(12.5), replace(PLAIN, paused={"1.0": 5.25})])
    def test_exists_only_while_the_service_is_ready(
        self, file: RoutingFile, tmp_path: Path, routing: Routing
    ) -> None:
        other = RoutingFile(tmp_path)
        for _ in range(2):
            file.publish(routing)
            assert file.read() == other.read() == routing
            assert [path.name for path in tmp_path.iterdir()] == [FILE]
            other.withdraw()
            assert file.read() is other.read() is None
        file.withdraw()

    def test_readers_see_each_publication(self, file: RoutingFile, tmp_path: Path) -> None:
        """Also within one tick of a coarse clock, and when an inode number is used again."""
        reader = RoutingFile(tmp_path)
        for number in range(10):
            for times in (1, 2, 3):
                for each in range(times):
                    expected = Routing(f"{number}.{times}.{each}", ("1.0",))
                    file.publish(expected)
                    os.utime(tmp_path / FILE, ns=(1, 1))
                assert reader.read() == expected

    def test_several_threads_may_publish(self, file: RoutingFile, tmp_path: Path) -> None:
        published = [
            Routing("1.0", tuple(f"{each}" for each in range(count))) for count in (1, 900, 3000)
        ]
        threads = [
            threading.Thread(target=lambda each=each: [file.publish(each) for _ in range(30)])
            for each in published
        ]
        file.publish(PLAIN)
        for thread in threads:
            thread.start()
        seen = [RoutingFile(tmp_path).read() for _ in range(100)]
        for thread in threads:
            thread.join()
        assert all(each in (*published, PLAIN) for each in seen)
        assert file.read() in published
        assert [path.name for path in tmp_path.iterdir()] == [FILE]


class TestPause:
    @pytest.fixture(autouse=True)
    def published(self, file: RoutingFile) -> None:
        file.publish(PLAIN)

    def paused(self, file: RoutingFile) -> list[str]:
        found = file.read()
        assert found
        return [version for version in found.versions if found.is_paused(version)]

    def test_lasts_as_long_as_the_block(self, file: RoutingFile) -> None:
        with file.pause("1.0"):
            with file.pause("3.0"):
                assert self.paused(file) == ["1.0", "3.0"]
            assert self.paused(file) == ["1.0"]
        assert file.read() == PLAIN
        with pytest.raises(ZeroDivisionError), file.pause("3.0"):
            raise ZeroDivisionError
        assert file.read() == PLAIN

    @pytest.mark.parametrize("seconds", [routing.LONGEST_PAUSE, -3600])
    def test_ends_by_itself_and_when_the_clock_is_set_back(
        self, file: RoutingFile, monkeypatch: pytest.MonkeyPatch, seconds: float
    ) -> None:
        with file.pause("3.0"):
            then = time.time() + seconds
            monkeypatch.setattr(time, "time", lambda: then)
            assert self.paused(file) == []

    def test_keeps_what_is_published_meanwhile(self, file: RoutingFile) -> None:
        with file.pause("3.0"):
            now = file.read()
            assert now
            file.publish(replace(now, default="4.0"))
        assert file.read() == replace(PLAIN, default="4.0")

    def test_does_not_end_a_later_pause(self, file: RoutingFile) -> None:
        with file.pause("3.0"):
            file.publish(replace(PLAIN, paused={"3.0": time.time() + routing.LONGEST_PAUSE}))
        assert self.paused(file) == ["3.0"]

    def test_does_not_revive_a_service_that_stops(self, file: RoutingFile) -> None:
        with file.pause("3.0"):
            file.withdraw()
        assert file.read() is None

    def test_without_a_service_there_is_nothing_to_pause(
        self, file: RoutingFile, tmp_path: Path
    ) -> None:
        file.withdraw()
        with file.pause("3.0"):
            pass
        assert list(tmp_path.iterdir()) == []

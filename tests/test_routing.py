"""Which version answers whom, as all clients read it."""

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

PLAIN = Routing("1.0", ("1.0", "2.0", "3.0"))
CLIENTS = [f"client {number}" for number in range(10_000)]


def trial(percent: float, version: str = "2.0") -> Routing:
    return replace(PLAIN, canary=version, percent=percent)


def chosen(found: Routing) -> set[str]:
    """Return the clients that the canary gets."""
    return {client for client in CLIENTS if found.choose(client) != found.default}


class TestChoice:
    def test_without_a_canary_the_default_answers_all(self) -> None:
        assert chosen(PLAIN) == set()

    @pytest.mark.parametrize("percent", [0.5, 1, 5, 10, 33.3, 50, 90, 99])
    def test_a_canary_gets_its_share(self, percent: float) -> None:
        share = percent / 100
        # Four times the error of a sample of that size; the names are fixed, so this is no gamble.
        error = 4 * (share * (1 - share) / len(CLIENTS)) ** 0.5
        assert len(chosen(trial(percent))) / len(CLIENTS) == pytest.approx(share, abs=error)

    @given(st.text(), st.floats(0.01, 99.99))
    def test_a_client_stays_with_its_version(self, client: str, percent: float) -> None:
        first = trial(percent).choose(client)
        assert first in ("1.0", "2.0")
        # What has nothing to do with the trial changes nothing: not even a restart.
        again = replace(trial(percent), versions=("1.0", "2.0"), paused={"2.0": 1.0})
        assert again.choose(client) == first

    @given(st.text(), st.floats(0.01, 99.99), st.floats(0.01, 99.99))
    def test_a_larger_share_takes_nobody_back(self, client: str, a: float, b: float) -> None:
        small, large = sorted((a, b))
        if trial(small).choose(client) == "2.0":
            assert trial(large).choose(client) == "2.0"

    def test_another_canary_means_other_clients(self) -> None:
        first, second = chosen(trial(10)), chosen(trial(10, "3.0"))
        # As many as chance brings: a tenth of them.
        assert len(first & second) / len(first) == pytest.approx(0.1, abs=0.05)

    def test_a_choice_does_not_hang_on_the_process(self) -> None:
        """Python's own hash would be another one in each."""
        # The first 8 bytes of SHA-256("2.0 client 0").
        assert routing._place("2.0", "client 0") == pytest.approx(63.71263246535735)

    def test_shares_are_of_all_clients(self) -> None:
        found = trial(12.5)
        assert [found.share(version) for version in found.versions] == [87.5, 12.5, 0.0]
        assert [PLAIN.share(version) for version in PLAIN.versions] == [100.0, 0.0, 0.0]

    @pytest.mark.parametrize("canary", [None, Canary("2.0", 5.0)])
    def test_is_what_the_deployment_asks_for(self, canary: Canary | None) -> None:
        wanted = Deployment("3.0", {"3.0": VersionSpec(1), "2.0": VersionSpec(1)}, canary)
        found = Routing.of(wanted)
        assert (found.default, found.versions) == ("3.0", ("2.0", "3.0"))
        assert (found.canary, found.percent) == (("2.0", 5.0) if canary else (None, 0.0))


@pytest.fixture
def file(tmp_path: Path) -> RoutingFile:
    return RoutingFile(tmp_path)


class TestFile:
    @pytest.mark.parametrize("routing", [PLAIN, trial(12.5), replace(PLAIN, paused={"1.0": 5.25})])
    def test_what_is_published_is_read(
        self, file: RoutingFile, tmp_path: Path, routing: Routing
    ) -> None:
        file.publish(routing)
        assert file.read() == RoutingFile(tmp_path).read() == routing
        assert [path.name for path in tmp_path.iterdir()] == [FILE]

    def test_is_there_only_while_the_service_is_ready(
        self, file: RoutingFile, tmp_path: Path
    ) -> None:
        assert file.read() is None
        file.publish(PLAIN)
        assert file.read() == PLAIN
        RoutingFile(tmp_path).withdraw()
        assert file.read() is None
        file.withdraw()
        file.publish(PLAIN)
        assert file.read() == PLAIN

    def test_every_publication_is_seen(self, file: RoutingFile, tmp_path: Path) -> None:
        """Also in one tick of a coarse clock, and where a file gets the number of a former one."""
        reader = RoutingFile(tmp_path)
        for number in range(100):
            for times in (1, 2, 3):
                for each in range(times):
                    expected = Routing(f"{number}.{times}.{each}", ("1.0",))
                    file.publish(expected)
                    os.utime(tmp_path / FILE, ns=(1, 1))
                assert reader.read() == expected

    def test_half_a_file_is_never_seen(self, file: RoutingFile, tmp_path: Path) -> None:
        """While several threads publish what differs in length."""
        published = [
            Routing("1.0", tuple(f"{each}" for each in range(count))) for count in (1, 900, 3000)
        ]
        ending = threading.Event()
        failed: list[Exception] = []

        def publish(each: Routing) -> None:
            try:
                while not ending.is_set():
                    file.publish(each)
            except Exception as error:
                failed.append(error)

        file.publish(PLAIN)
        threads = [threading.Thread(target=publish, args=(each,)) for each in published]
        for thread in threads:
            thread.start()
        try:
            seen = [RoutingFile(tmp_path).read() for _ in range(500)]
        finally:
            ending.set()
            for thread in threads:
                thread.join()
        assert failed == []
        assert all(each in (*published, PLAIN) for each in seen)
        assert [path.name for path in tmp_path.iterdir()] == [FILE]


class TestHold:
    def test_lasts_as_long_as_the_block(self, file: RoutingFile, tmp_path: Path) -> None:
        file.publish(trial(10))
        reader = RoutingFile(tmp_path)
        with file.pause("2.0"):
            held = reader.read()
            assert held
            assert [held.is_paused(version) for version in PLAIN.versions] == [False, True, False]
            assert replace(held, paused={}) == trial(10)
        assert reader.read() == trial(10)

    def test_ends_also_where_the_block_fails(self, file: RoutingFile) -> None:
        file.publish(PLAIN)
        with pytest.raises(ZeroDivisionError), file.pause("2.0"):
            raise ZeroDivisionError
        assert file.read() == PLAIN

    def test_ends_by_itself(self, file: RoutingFile, monkeypatch: pytest.MonkeyPatch) -> None:
        """As when who holds is killed."""
        file.publish(PLAIN)
        with file.pause("2.0"):
            found = file.read()
            assert found
            assert found.is_paused("2.0")
            later = time.time() + routing.LONGEST_PAUSE
            monkeypatch.setattr(time, "time", lambda: later)
            assert not found.is_paused("2.0")

    def test_is_none_where_the_clock_was_set_back(
        self, file: RoutingFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file.publish(PLAIN)
        with file.pause("2.0"):
            found = file.read()
            assert found
            earlier = time.time() - 3600
            monkeypatch.setattr(time, "time", lambda: earlier)
            assert not found.is_paused("2.0")

    def test_two_at_once_do_not_end_each_other(self, file: RoutingFile) -> None:
        file.publish(PLAIN)
        with file.pause("1.0"):
            with file.pause("2.0"):
                pass
            found = file.read()
            assert found
            assert (found.is_paused("1.0"), found.is_paused("2.0")) == (True, False)
        assert file.read() == PLAIN

    def test_what_was_published_meanwhile_stays(self, file: RoutingFile) -> None:
        file.publish(PLAIN)
        with file.pause("2.0"):
            now = file.read()
            assert now
            file.publish(replace(now, default="3.0"))
        assert file.read() == replace(PLAIN, default="3.0")

    def test_does_not_end_the_hold_of_another(self, file: RoutingFile) -> None:
        """As of a change that follows one whose own hold has run out."""
        file.publish(PLAIN)
        with file.pause("2.0"):
            file.publish(replace(PLAIN, paused={"2.0": time.time() + routing.LONGEST_PAUSE}))
        found = file.read()
        assert found
        assert found.is_paused("2.0")

    def test_a_service_that_goes_down_meanwhile_stays_down(self, file: RoutingFile) -> None:
        file.publish(PLAIN)
        with file.pause("2.0"):
            file.withdraw()
        assert file.read() is None

    def test_without_a_service_there_is_nothing_to_hold(
        self, file: RoutingFile, tmp_path: Path
    ) -> None:
        with file.pause("2.0"):
            pass
        assert list(tmp_path.iterdir()) == []

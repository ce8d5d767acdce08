"""Changes to what is served: each is safe, and one that fails leaves the service as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_in import World, write_archive

from serving import deployment
from serving.deployment import Busy, Canary, History, VersionSpec, archives, change, in_flight, spec
from serving.deployment.routing import Routing, RoutingFile
from serving.rollout import changes as module
from serving.rollout import rest
from serving.rollout.changes import NotRunning, Refused, Rollout
from serving.rollout.readiness import NeverReady

Do = Callable[[Rollout], object]

TRIAL = Canary("2.0", 25.0)
# Each change, as it would succeed.
CHANGES: dict[str, Do] = {
    "deploy": lambda rollout: rollout.deploy("3.0", 1),
    "promote": lambda rollout: rollout.promote("2.0"),
    "canary": lambda rollout: rollout.canary(TRIAL),
    "scale": lambda rollout: rollout.scale("2.0", 3),
    "retire": lambda rollout: rollout.retire("2.0"),
}

DIFFERENCES: dict[str, Callable[[World], object]] = {
    "2.0 is not served": lambda world: world.management.workers.pop("2.0"),
    "3.0 is not in the file": lambda world: world.management.register("3.0", 1),
    "2.0 has 5 workers, not 2": lambda world: world.management.scale("2.0", 5),
    "the default version is 2.0, not 1.0": lambda world: world.management.set_default("2.0"),
    "clients are routed differently": lambda world: world.routing.publish(
        Routing("2.0", ("1.0", "2.0"))
    ),
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.fixture
def rollout(world: World) -> Iterator[Rollout]:
    made = Rollout(world.settings)
    yield made
    made.close()


def last(world: World) -> dict[str, Any]:
    """Return the history's last entry."""
    return History(world.settings.deployment).entries()[-1]


def refused(world: World, rollout: Rollout, do: Do, said: str | None = None) -> None:
    """Make a change that is refused, and see that it left nothing."""
    before = world.state
    with pytest.raises(Refused, match=said) as caught:
        do(rollout)
    assert world.state == before
    assert (last(world)["outcome"], last(world)["why"]) == ("failed", str(caught.value))


def settled(world: World, rollout: Rollout) -> None:
    """See that file, TorchServe and routing agree."""
    assert rollout.differences(world.desired) == []
    assert world.routing.read() == Routing.of(world.desired)
    assert last(world)["outcome"] == "done"
    assert last(world)["after"] == spec.to_document(world.desired)


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Let a function fail the next time, as a full disk would."""
    real = getattr(owner, name)

    def full(*_: object) -> None:
        monkeypatch.setattr(owner, name, real)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, name, full)


class TestEach:
    @pytest.mark.parametrize("name", CHANGES)
    def test_one_that_succeeds_is_in_the_file_and_in_the_history(
        self, world: World, rollout: Rollout, name: str
    ) -> None:
        before = world.desired
        CHANGES[name](rollout)
        settled(world, rollout)
        assert world.desired != before
        assert last(world)["action"] == name
        assert last(world)["before"] == spec.to_document(before)

    @pytest.mark.parametrize("name", [*CHANGES, "rollback", "apply", "end_canary"])
    def test_without_a_service_there_is_nothing_to_change(
        self, world: World, rollout: Rollout, name: str
    ) -> None:
        world.routing.withdraw()
        more: dict[str, Do] = {
            "rollback": lambda rollout: rollout.rollback(),
            "apply": lambda rollout: rollout.apply(),
            "end_canary": lambda rollout: rollout.end_canary("2.0", "why"),
        }
        before = world.state
        with pytest.raises(NotRunning, match="make run"):
            (CHANGES | more)[name](rollout)
        assert world.state == before
        assert world.management.done == []
        assert History(world.settings.deployment).entries() == []

    @pytest.mark.parametrize("name", CHANGES)
    def test_one_at_a_time(self, world: World, rollout: Rollout, name: str) -> None:
        before = world.state
        with change(world.settings, "apply"), pytest.raises(Busy, match="`apply`"):
            CHANGES[name](rollout)
        assert world.state == before
        assert world.management.done == []

    @pytest.mark.parametrize("name", [name for name in CHANGES if name != "retire"])
    @pytest.mark.parametrize("error", [NeverReady("no worker"), KeyboardInterrupt()])
    def test_one_that_is_never_ready_leaves_all_as_it_was(
        self, world: World, rollout: Rollout, name: str, error: BaseException
    ) -> None:
        """Also where someone loses patience."""
        before, world.never = world.state, error
        expected = Refused if isinstance(error, NeverReady) else KeyboardInterrupt
        with pytest.raises(expected):
            CHANGES[name](rollout)
        assert world.state == before
        assert last(world)["outcome"] == "failed"

    @pytest.mark.parametrize(
        ("name", "step"),
        [
            ("deploy", "register"),
            ("promote", "set_default"),
            ("scale", "scale"),
            ("retire", "unregister"),
        ],
    )
    def test_one_that_torchserve_refuses_leaves_all_as_it_was(
        self, world: World, rollout: Rollout, name: str, step: str
    ) -> None:
        world.management.failing = {step}
        refused(world, rollout, CHANGES[name], f"{step} fails")

    @pytest.mark.parametrize("name", CHANGES)
    @pytest.mark.parametrize(
        ("owner", "function"), [(deployment, "save"), (RoutingFile, "publish")]
    )
    def test_one_that_cannot_be_written_leaves_all_as_it_was(
        self,
        world: World,
        rollout: Rollout,
        name: str,
        owner: object,
        function: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        fail_once(monkeypatch, owner, function)
        refused(world, rollout, CHANGES[name], "No space left")


class TestDifferences:
    @pytest.mark.parametrize("name", CHANGES)
    @pytest.mark.parametrize("difference", DIFFERENCES)
    def test_no_change_is_made_on_top_of_one(
        self, world: World, rollout: Rollout, name: str, difference: str
    ) -> None:
        DIFFERENCES[difference](world)
        world.management.done.clear()
        refused(world, rollout, CHANGES[name], rf"differ \({difference}\): run `apply` first")
        assert world.management.done == []

    @pytest.mark.parametrize("difference", DIFFERENCES)
    def test_apply_fixes_it(self, world: World, rollout: Rollout, difference: str) -> None:
        archives.provide(world.settings, "3.0", None)
        DIFFERENCES[difference](world)
        assert rollout.differences(world.desired) == [difference]
        assert len(rollout.apply()) == 1
        assert world.desired == World.WANTED
        settled(world, rollout)

    def test_a_version_that_is_paused_is_none(self, world: World, rollout: Rollout) -> None:
        with world.routing.pause("2.0"):
            assert rollout.differences(world.desired) == []


class TestDeploy:
    def test_serves_beside_the_others_once_it_is_ready(
        self, world: World, rollout: Rollout
    ) -> None:
        def look(change: tuple[Any, ...]) -> None:
            # No client may be sent to what was not seen to answer.
            assert world.routing.read() == Routing.of(World.WANTED)

        world.management.look = look
        rollout.deploy("3.0", 4)
        assert world.management.done == [("register", "3.0", 4), ("ready", "3.0", 4)]
        sha256 = archives.digest(archives.built(world.settings, "3.0"))
        assert world.desired == World.WANTED.with_version("3.0", VersionSpec(4, sha256))
        assert last(world)["sha256"] == sha256
        settled(world, rollout)

    def test_an_archive_from_elsewhere(
        self, world: World, rollout: Rollout, tmp_path: Path
    ) -> None:
        elsewhere = tmp_path / "elsewhere" / "new.mar"
        sha256 = write_archive(elsewhere, "4.0")
        note = elsewhere.with_name("new.mar.sha256")
        note.unlink()
        refused(
            world,
            rollout,
            lambda rollout: rollout.deploy("4.0", 1, elsewhere),
            r"The SHA-256 of .*new\.mar is unknown: give --sha256",
        )
        rollout.deploy("4.0", 1, elsewhere, sha256.upper())
        assert archives.digest(archives.deployed(world.settings, "4.0")) == sha256
        assert world.desired.versions["4.0"] == VersionSpec(1, sha256)
        settled(world, rollout)

    @pytest.mark.parametrize(
        ("version", "workers", "sha256", "said"),
        [
            ("2.0", 1, None, "Version 2.0 serves already: a new build is a new version"),
            ("4.0", 1, None, "bloodcells-4.0.mar is missing: run `make mar`"),
            ("../3.0", 1, None, "'../3.0' is not a valid version name"),
            ("3.0", 0, None, "Version 3.0 must have 1 to 64 workers, not 0"),
            ("3.0", 65, None, "Version 3.0 must have 1 to 64 workers, not 65"),
            ("3.0", 1, "ab" * 32, "is not the expected one"),
        ],
    )
    def test_what_is_refused(
        self,
        world: World,
        rollout: Rollout,
        version: str,
        workers: int,
        sha256: str | None,
        said: str,
    ) -> None:
        refused(world, rollout, lambda it: it.deploy(version, workers, sha256=sha256), said)
        assert world.management.done == []

    @pytest.mark.parametrize("problem", ["damaged", "another version", "other hash beside it"])
    def test_an_archive_that_is_not_right(
        self, world: World, rollout: Rollout, problem: str
    ) -> None:
        built = archives.built(world.settings, "3.0")
        if problem == "damaged":
            built.write_bytes(built.read_bytes()[:100])
        elif problem == "another version":
            write_archive(built, "2.0")
        else:
            built.with_name(f"{built.name}.sha256").write_text("ab" * 32)
        refused(world, rollout, CHANGES["deploy"], "bloodcells-3.0.mar")
        assert world.management.done == []

    def test_may_be_tried_again(self, world: World, rollout: Rollout) -> None:
        world.never = NeverReady("no worker")
        refused(world, rollout, CHANGES["deploy"], "no worker")
        world.never = None
        rollout.deploy("3.0", 1)
        settled(world, rollout)

    def test_a_failure_leaves_the_archive_that_a_rollback_needs(
        self, world: World, rollout: Rollout
    ) -> None:
        rollout.promote("2.0")
        rollout.retire("1.0")
        first = archives.digest(archives.deployed(world.settings, "1.0"))
        write_archive(archives.built(world.settings, "1.0"), "1.0", note="a later build")
        world.never = NeverReady("no worker")
        refused(world, rollout, lambda it: it.deploy("1.0", 1), "no worker")
        world.never = None
        assert rollout.rollback() == "1.0"
        assert archives.digest(archives.deployed(world.settings, "1.0")) == first


class TestPromote:
    def test_answers_by_default_once_it_is_ready(self, world: World, rollout: Rollout) -> None:
        rollout.promote("2.0")
        assert world.management.done == [("ready", "2.0", 2), ("set_default", "2.0")]
        assert world.desired == replace(World.WANTED, default="2.0")
        assert last(world)["sha256"] == archives.digest(archives.deployed(world.settings, "2.0"))
        settled(world, rollout)

    def test_a_canary_that_is_promoted_is_none_any_more(
        self, world: World, rollout: Rollout
    ) -> None:
        rollout.canary(TRIAL)
        rollout.promote("2.0")
        assert (world.desired.default, world.desired.canary) == ("2.0", None)
        settled(world, rollout)

    def test_a_canary_stands_in_the_way_of_another(self, world: World, rollout: Rollout) -> None:
        rollout.deploy("3.0", 1)
        rollout.canary(TRIAL)
        rollout.canary(replace(TRIAL, percent=30.0))
        said = "Version 2.0 is the canary: promote it, or end it"
        refused(world, rollout, lambda it: it.promote("3.0"), said)
        refused(world, rollout, lambda it: it.canary(Canary("3.0", 5)), said)

    @pytest.mark.parametrize(
        ("version", "said"),
        [("1.0", "is the default already"), ("3.0", "does not serve: `deploy 3.0` first")],
    )
    def test_what_is_refused(self, world: World, rollout: Rollout, version: str, said: str) -> None:
        refused(world, rollout, lambda it: it.promote(version), said)
        assert world.management.done == []


class TestCanary:
    def test_answers_its_share_once_it_is_ready(self, world: World, rollout: Rollout) -> None:
        rollout.canary(TRIAL)
        assert world.management.done == [("ready", "2.0", 2)]
        assert world.desired == replace(World.WANTED, canary=TRIAL)
        found = world.routing.read()
        assert found
        assert (found.canary, found.percent) == ("2.0", 25.0)
        settled(world, rollout)
        # Its share may grow.
        rollout.canary(replace(TRIAL, percent=50.0))
        assert world.desired.canary == replace(TRIAL, percent=50.0)

    @pytest.mark.parametrize(
        ("canary", "said"),
        [
            (Canary("1.0", 10), "must be a version other than the default"),
            (Canary("3.0", 10), "does not serve"),
            (Canary("2.0", 0), "between 0 and 100"),
            (Canary("2.0", 10, max_errors=-1), "limits"),
        ],
    )
    def test_what_is_refused(
        self, world: World, rollout: Rollout, canary: Canary, said: str
    ) -> None:
        refused(world, rollout, lambda it: it.canary(canary), said)

    def test_goes_back_with_the_reason(self, world: World, rollout: Rollout) -> None:
        refused(world, rollout, lambda it: it.end_canary("2.0", "slow"), "2.0 is not the canary")
        rollout.canary(TRIAL)
        refused(world, rollout, lambda it: it.end_canary("1.0", "slow"), "1.0 is not the canary")
        rollout.end_canary("2.0", "slow")
        assert world.desired == World.WANTED
        assert (last(world)["action"], last(world)["why"]) == ("end canary", "slow")
        settled(world, rollout)


class TestRollback:
    def test_there_may_be_nothing_to_undo(self, world: World, rollout: Rollout) -> None:
        refused(world, rollout, lambda it: it.rollback(), "no promotion to undo")

    def test_undoes_promotions_one_after_the_other(self, world: World, rollout: Rollout) -> None:
        rollout.promote("2.0")
        rollout.deploy("3.0", 1)
        rollout.promote("3.0")
        rollout.scale("3.0", 2)
        for expected in ("2.0", "1.0"):
            assert rollout.rollback() == expected
            assert world.desired.default == world.management.default() == expected
            assert (last(world)["action"], last(world)["version"]) == ("rollback", expected)
            settled(world, rollout)
        # What was deployed meanwhile serves on.
        assert world.desired.versions["3.0"].workers == 2
        refused(world, rollout, lambda it: it.rollback(), "no promotion to undo")

    def test_ends_the_canary_first(self, world: World, rollout: Rollout) -> None:
        rollout.deploy("3.0", 1)
        rollout.promote("2.0")
        rollout.canary(Canary("3.0", 10))
        assert rollout.rollback() == "2.0"
        assert (world.desired.default, world.desired.canary) == ("2.0", None)
        assert (last(world)["action"], last(world)["version"]) == ("end canary", "3.0")
        settled(world, rollout)
        assert rollout.rollback() == "1.0"

    def test_brings_back_the_very_version_that_was_retired(
        self, world: World, rollout: Rollout
    ) -> None:
        rollout.scale("1.0", 3)
        rollout.promote("2.0")
        rollout.retire("1.0")
        first = archives.digest(archives.deployed(world.settings, "1.0"))
        write_archive(archives.built(world.settings, "1.0"), "1.0", note="a later build")
        world.management.done.clear()
        assert rollout.rollback() == "1.0"
        assert [each for each in world.management.done if each[0] != "ready"] == [
            ("register", "1.0", 3),
            ("set_default", "1.0"),
        ]
        assert world.management.done[1] == ("ready", "1.0", 3)
        assert archives.digest(archives.deployed(world.settings, "1.0")) == first
        assert world.desired.versions["1.0"] == VersionSpec(3, first)
        settled(world, rollout)

    @pytest.mark.parametrize("problem", ["register", "set_default", "ready", "archive"])
    def test_a_version_that_does_not_come_back_changes_nothing(
        self, world: World, rollout: Rollout, problem: str
    ) -> None:
        # Deployed, so that it is known which archive it was.
        rollout.deploy("3.0", 1)
        rollout.promote("3.0")
        rollout.promote("2.0")
        rollout.retire("3.0")
        present = archives.deployed(world.settings, "3.0")
        content = present.read_bytes()
        if problem == "archive":
            present.unlink()
            write_archive(archives.built(world.settings, "3.0"), "3.0", note="a later build")
        elif problem == "ready":
            world.never = NeverReady("no worker")
        else:
            world.management.failing = {problem}
        refused(world, rollout, lambda it: it.rollback())
        # The promotion still stands, to be undone when the problem is gone.
        present.write_bytes(content)
        world.never, world.management.failing = None, set()
        assert rollout.rollback() == "3.0"
        settled(world, rollout)

    @pytest.mark.parametrize("error", [NeverReady("no worker"), KeyboardInterrupt()])
    def test_a_version_that_is_not_ready_does_not_come_back(
        self, world: World, rollout: Rollout, error: BaseException
    ) -> None:
        rollout.promote("2.0")
        before, world.never = world.state, error
        with pytest.raises((Refused, KeyboardInterrupt)):
            rollout.rollback()
        assert world.state == before


class TestScale:
    @pytest.mark.parametrize("workers", [3, 64])
    def test_more_workers_pause_no_client(
        self, world: World, rollout: Rollout, workers: int
    ) -> None:
        paused = []
        world.management.look = lambda change: paused.append(
            Routing.is_paused(world.routing.read() or Routing.of(World.WANTED), "2.0")
        )
        world.management.queued["2.0"] = 5
        rollout.scale("2.0", workers)
        assert paused == [False, False]
        assert world.management.done == [("scale", "2.0", workers), ("ready", "2.0", workers)]
        assert world.desired.versions["2.0"].workers == last(world)["workers"] == workers
        settled(world, rollout)

    def test_surplus_workers_stop_at_rest_while_clients_are_paused(
        self, world: World, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queue = iter(["2 requests", "1 request", None, None])
        monkeypatch.setattr(module, "PAUSED_PATIENCE", 60)
        monkeypatch.setattr(rest.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(rest, "_why_busy", lambda *_: next(queue))
        seen = []

        def look(change: tuple[Any, ...]) -> None:
            found = world.routing.read()
            assert found
            seen.append((change[0], found.is_paused("2.0"), found.is_paused("1.0"), [*queue]))

        world.management.look = look
        rollout.scale("2.0", 1)
        assert seen == [("scale", True, False, []), ("ready", False, False, [])]
        settled(world, rollout)

    @pytest.mark.parametrize("force", [False, True])
    def test_only_force_stops_workers_amid_a_request(
        self, world: World, rollout: Rollout, force: bool
    ) -> None:
        with in_flight.recorded(world.settings.run_dir, "2.0"):
            if force:
                rollout.scale("2.0", 1, force=True)
                settled(world, rollout)
            else:
                refused(
                    world, rollout, lambda it: it.scale("2.0", 1), "not at rest: a client.*--force"
                )
                assert world.management.done == []

    @pytest.mark.parametrize(
        ("version", "workers", "why"),
        [
            ("3.0", 2, "does not serve"),
            ("2.0", 0, "1 to 64 workers"),
            ("2.0", 65, "1 to 64 workers"),
        ],
    )
    def test_refusals(
        self, world: World, rollout: Rollout, version: str, workers: int, why: str
    ) -> None:
        refused(world, rollout, lambda it: it.scale(version, workers), why)
        assert world.management.done == []


class TestRetire:
    def test_clients_go_elsewhere_before_it_comes_to_rest(
        self, world: World, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        routed = set()

        def look(*_: object) -> None:
            found = world.routing.read()
            routed.add(found.versions if found else None)

        monkeypatch.setattr(rest, "worker_state", look)
        world.management.look = look
        sha256 = archives.digest(archives.deployed(world.settings, "2.0"))
        rollout.retire("2.0")
        assert routed == {("1.0",)}
        assert world.management.done == [("unregister", "2.0")]
        assert world.desired == World.WANTED.without_version("2.0")
        assert last(world)["sha256"] == sha256
        settled(world, rollout)

    @pytest.mark.parametrize("force", [False, True])
    def test_only_force_retires_a_busy_version(
        self, world: World, rollout: Rollout, force: bool
    ) -> None:
        world.management.queued["2.0"] = 1
        if force:
            rollout.retire("2.0", force=True)
            assert world.desired.versions.keys() == {"1.0"}
            settled(world, rollout)
        else:
            refused(world, rollout, lambda it: it.retire("2.0"), "1 requests are queued.*--force")

    def test_the_default_and_the_canary_stay(self, world: World, rollout: Rollout) -> None:
        refused(world, rollout, lambda it: it.retire("1.0"), "promote another one first")
        refused(world, rollout, lambda it: it.retire("3.0"), "does not serve")
        rollout.canary(TRIAL)
        refused(world, rollout, lambda it: it.retire("2.0"), "2.0 is the canary")


class TestApply:
    def test_nothing_to_do_is_nothing_done(self, world: World, rollout: Rollout) -> None:
        assert rollout.apply() == []
        assert {each[0] for each in world.management.done} == {"ready"}
        settled(world, rollout)

    def test_does_what_is_needed_in_an_order_that_loses_nothing(
        self, world: World, rollout: Rollout
    ) -> None:
        """The default gives way to a new version: that must serve before, and it go after."""
        wanted = deployment.Deployment(
            "3.0", {"2.0": VersionSpec(3), "3.0": VersionSpec(2)}, Canary("2.0", 5.0)
        )
        deployment.save(wanted, world.settings.deployment)
        routed: dict[str, Routing | None] = {}

        def look(change: tuple[Any, ...]) -> None:
            routed[change[0]] = world.routing.read()

        world.management.look = look
        assert rollout.apply() == [
            "scaled 2.0 to 3",
            "deployed 3.0",
            "promoted 3.0",
            "routed",
            "retired 1.0",
        ]
        assert world.management.done == [
            ("scale", "2.0", 3),
            ("ready", "2.0", 3),
            ("register", "3.0", 2),
            ("ready", "3.0", 2),
            ("set_default", "3.0"),
            ("unregister", "1.0"),
        ]
        assert routed["set_default"] == Routing.of(World.WANTED)
        assert routed["unregister"] == Routing.of(wanted)
        assert world.desired == wanted
        settled(world, rollout)
        world.management.done.clear()
        assert rollout.apply() == []
        assert {each[0] for each in world.management.done} == {"ready"}

    def test_one_that_is_never_ready_takes_nothing_away(
        self, world: World, rollout: Rollout
    ) -> None:
        wanted = deployment.Deployment("3.0", {"3.0": VersionSpec(1)})
        deployment.save(wanted, world.settings.deployment)
        world.never = NeverReady("no worker")
        with pytest.raises(Refused, match="no worker"):
            rollout.apply()
        assert world.management.workers == {"1.0": 1, "2.0": 2}
        assert world.management.default() == "1.0"
        assert world.routing.read() == Routing.of(World.WANTED)
        world.never = None
        *done, first, second = rollout.apply()
        assert done == ["deployed 3.0", "promoted 3.0", "routed"]
        assert {first, second} == {"retired 1.0", "retired 2.0"}
        settled(world, rollout)

    @pytest.mark.parametrize("version", ["2.0", "3.0"])
    def test_an_archive_other_than_the_file_says_is_refused(
        self, world: World, rollout: Rollout, version: str
    ) -> None:
        """Also of a version that serves already."""
        wanted = World.WANTED.with_version(version, VersionSpec(2, "ab" * 32))
        deployment.save(wanted, world.settings.deployment)
        refused(world, rollout, lambda it: it.apply(), "SHA-256")
        assert "register" not in {each[0] for each in world.management.done}

    def test_a_file_that_cannot_be_read_is_refused(self, world: World, rollout: Rollout) -> None:
        world.settings.deployment.write_text("a: [")
        with pytest.raises(Refused, match="is not YAML"):
            rollout.apply()
        assert world.management.done == []

    @pytest.mark.parametrize("force", [False, True])
    def test_a_busy_version_is_taken_away_by_force_alone(
        self, world: World, rollout: Rollout, force: bool
    ) -> None:
        deployment.save(World.WANTED.without_version("2.0"), world.settings.deployment)
        world.management.queued["2.0"] = 1
        if force:
            assert rollout.apply(force=True) == ["routed", "retired 2.0"]
            settled(world, rollout)
        else:
            with pytest.raises(Refused, match="--force"):
                rollout.apply()
            assert world.management.workers == {"1.0": 1, "2.0": 2}


class TestStatus:
    def test_tells_how_it_stands(self, world: World, rollout: Rollout) -> None:
        rollout.canary(TRIAL)
        found = rollout.status()
        assert (found["ready"], found["default"], found["differences"]) == (True, "1.0", [])
        assert found["canary"]["percent"] == 25.0
        assert found["last_change"]["action"] == "canary"
        assert [
            (each["version"], each["workers"], each["ready"], each["clients_percent"])
            for each in found["versions"]
        ] == [("1.0", 1, 1, 75.0), ("2.0", 2, 2, 25.0)]
        assert not any(each["other_build"] for each in found["versions"])

    def test_tells_that_another_build_lies_in_the_store(
        self, world: World, rollout: Rollout
    ) -> None:
        served = archives.digest(archives.deployed(world.settings, "2.0"))
        write_archive(archives.built(world.settings, "2.0"), "2.0", note="a later build")
        found = {each["version"]: each for each in rollout.status()["versions"]}
        assert {version: each["other_build"] for version, each in found.items()} == {
            "1.0": False,
            "2.0": True,
        }
        assert found["2.0"]["sha256"] == served

    def test_tells_that_it_is_not_ready(self, world: World, rollout: Rollout) -> None:
        world.routing.withdraw()
        found = rollout.status()
        assert not found["ready"]
        assert {each["clients_percent"] for each in found["versions"]} == {0.0}

"""Changes to the deployed versions: one that fails leaves the service as it was."""

from __future__ import annotations

from collections.abc import Callable
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

TRIAL = Canary("3.0", 25.0)
# Each change, with arguments that succeed.
CHANGES: dict[str, Do] = {
    "deploy": lambda it: it.deploy("4.0", 1),
    "promote": lambda it: it.promote("3.0"),
    "canary": lambda it: it.canary(TRIAL),
    "scale": lambda it: it.scale("3.0", 3),
    "retire": lambda it: it.retire("3.0"),
}

DIFFERENCES: dict[str, Callable[[World], object]] = {
    "3.0 is not served": lambda world: world.management.workers.pop("3.0"),
    "4.0 is not in the file": lambda world: world.management.register("4.0", 1),
    "3.0 has 5 workers, not 2": lambda world: world.management.scale("3.0", 5),
    "the default version is 3.0, not 1.0": lambda world: world.management.set_default("3.0"),
    "clients are routed differently": lambda world: world.routing.publish(
        Routing("3.0", ("1.0", "3.0"))
    ),
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def last(world: World) -> dict[str, Any]:
    """Return the last entry of the history."""
    return History(world.settings.deployment).entries()[-1]


def refused(world: World, do: Do, why: str | None = None) -> None:
    """Check that a change is refused and leaves the service as it was."""
    before = world.state
    with pytest.raises(Refused, match=why) as caught:
        do(world.rollout)
    assert world.state == before
    assert (last(world)["outcome"], last(world)["why"]) == ("failed", str(caught.value))


def settled(world: World) -> None:
    """Check that file, TorchServe and routing agree."""
    assert world.rollout.differences(world.desired) == []
    assert world.routing.read() == Routing.of(world.desired)
    assert last(world)["outcome"] == "done"
    assert last(world)["after"] == spec.to_document(world.desired)


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Make a function fail once, as on a full disk."""
    real = getattr(owner, name)

    def full(*_: object) -> None:
        monkeypatch.setattr(owner, name, real)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, name, full)


class TestEach:
    def test_is_done_even_if_the_history_cannot_be_written(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        fail_once(monkeypatch, History, "add")
        world.rollout.promote("3.0")
        assert world.desired.default == "3.0"
        assert "The history lacks this change: [Errno 28]" in caplog.text

    @pytest.mark.parametrize("name", CHANGES)
    def test_is_written_to_the_file_and_the_history(self, world: World, name: str) -> None:
        before = world.desired
        # The default and the default's clients stay until the version is ready.
        ready: list[object] = []
        world.management.look = lambda change: ready.append((change[0], world.routing.read()))
        CHANGES[name](world.rollout)
        if name in ("deploy", "promote", "canary"):
            assert ("ready", Routing.of(before)) in ready
        settled(world)
        assert world.desired != before
        assert last(world)["action"] == name
        assert last(world)["before"] == spec.to_document(before)

    @pytest.mark.parametrize("name", [*CHANGES, "rollback", "apply", "end_canary"])
    def test_needs_a_running_service_and_no_other_change(self, world: World, name: str) -> None:
        more: dict[str, Do] = {
            "rollback": lambda it: it.rollback(),
            "apply": lambda it: it.apply(),
            "end_canary": lambda it: it.end_canary("3.0", "why"),
        }
        do, before = (CHANGES | more)[name], world.state
        with change(world.settings, "apply"), pytest.raises(Busy, match="`apply`"):
            do(world.rollout)
        assert world.state == before
        entries = History(world.settings.deployment).entries()
        world.routing.withdraw()
        with pytest.raises(NotRunning, match="make run"):
            do(world.rollout)
        assert world.management.done == []
        assert History(world.settings.deployment).entries() == entries

    @pytest.mark.parametrize("name", [name for name in CHANGES if name != "retire"])
    @pytest.mark.parametrize("error", [NeverReady("no worker"), KeyboardInterrupt()])
    def test_is_undone_if_the_version_never_gets_ready(
        self, world: World, name: str, error: BaseException
    ) -> None:
        before, world.never = world.state, error
        expected = Refused if isinstance(error, NeverReady) else KeyboardInterrupt
        with pytest.raises(expected):
            CHANGES[name](world.rollout)
        assert world.state == before
        assert last(world)["outcome"] == "failed"

    @pytest.mark.parametrize("name", CHANGES)
    @pytest.mark.parametrize(
        ("owner", "function"), [(deployment, "save"), (RoutingFile, "publish")]
    )
    def test_is_undone_if_the_disk_is_full_or_torchserve_fails(
        self,
        world: World,
        name: str,
        owner: object,
        function: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        fail_once(monkeypatch, owner, function)
        refused(world, CHANGES[name], "No space left")
        steps = {"deploy": "register", "promote": "set_default", "retire": "unregister"}
        if name != "canary":
            # The same holds if TorchServe fails.
            world.management.failing = {steps.get(name, name)}
            refused(world, CHANGES[name], " fails")


REFUSALS: list[tuple[Do, str]] = [
    (lambda it: it.deploy("3.0", 1), "Version 3.0 serves already: a new build is a new version"),
    (lambda it: it.deploy("5.0", 1), "bloodcells-5.0.mar is missing: run `make mar`"),
    (lambda it: it.deploy("../4.0", 1), "'../4.0' is not a valid version name"),
    (lambda it: it.deploy("4.0", 65), "Version 4.0 must have 1 to 64 workers, not 65"),
    (lambda it: it.deploy("4.0", 1, sha256="ab" * 32), "is not the expected one"),
    (lambda it: it.promote("1.0"), "is the default already"),
    (lambda it: it.promote("4.0"), "does not serve: `deploy 4.0` first"),
    (lambda it: it.canary(Canary("1.0", 10)), "must be a version other than the default"),
    (lambda it: it.canary(Canary("4.0", 10)), "does not serve"),
    (lambda it: it.canary(Canary("3.0", 0)), "between 0 and 100"),
    (lambda it: it.end_canary("3.0", "slow"), "3.0 is not the canary"),
    (lambda it: it.scale("4.0", 2), "does not serve"),
    (lambda it: it.scale("3.0", 0), "1 to 64 workers"),
    (lambda it: it.retire("1.0"), "promote another one first"),
    (lambda it: it.retire("4.0"), "does not serve"),
    (lambda it: it.rollback(), "no promotion to undo"),
]


@pytest.mark.parametrize(("do", "why"), REFUSALS)
def test_refusals(world: World, do: Do, why: str) -> None:
    refused(world, do, why)
    assert {each[0] for each in world.management.done} <= {"ready"}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_a_difference_stops_every_change_until_apply_removes_it(
    world: World, difference: str
) -> None:
    archives.provide(world.settings, "4.0", None)
    DIFFERENCES[difference](world)
    world.management.done.clear()
    for do in CHANGES.values():
        refused(world, do, rf"differ \({difference}\): run `apply` first")
    assert world.management.done == []
    assert world.rollout.differences(world.desired) == [difference]
    assert len(world.rollout.apply()) == 1
    # A pause is not a difference.
    with world.routing.pause("3.0"):
        assert world.rollout.differences(world.desired) == []
    assert world.desired == World.WANTED
    settled(world)


class TestDeploy:
    def test_an_archive_outside_the_store_needs_a_hash(self, world: World, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere" / "new.mar"
        sha256 = write_archive(elsewhere, "5.0")
        note = elsewhere.with_name("new.mar.sha256")
        note.unlink()
        refused(
            world,
            lambda it: it.deploy("5.0", 1, elsewhere),
            r"The SHA-256 of .*new\.mar is unknown: give --sha256",
        )
        world.rollout.deploy("5.0", 1, elsewhere, sha256.upper())
        assert archives.digest(archives.deployed(world.settings, "5.0")) == sha256
        assert world.desired.versions["5.0"] == VersionSpec(1, sha256)
        settled(world)


class TestPromote:
    def test_is_refused_while_another_version_is_the_canary(self, world: World) -> None:
        world.rollout.deploy("4.0", 1)
        world.rollout.canary(TRIAL)
        world.rollout.canary(replace(TRIAL, percent=30.0))
        why = "Version 3.0 is the canary: promote it, or end it"
        refused(world, lambda it: it.promote("4.0"), why)
        refused(world, lambda it: it.canary(Canary("4.0", 5)), why)
        refused(world, lambda it: it.retire("3.0"), "3.0 is the canary")
        # Promoting the canary ends it.
        world.rollout.promote("3.0")
        assert (world.desired.default, world.desired.canary) == ("3.0", None)
        settled(world)


class TestCanary:
    def test_is_ended_with_the_reason(self, world: World) -> None:
        world.rollout.canary(TRIAL)
        refused(world, lambda it: it.end_canary("1.0", "slow"), "1.0 is not the canary")
        world.rollout.end_canary("3.0", "slow")
        assert world.desired == World.WANTED
        assert (last(world)["action"], last(world)["why"]) == ("end canary", "slow")
        settled(world)


class TestRollback:
    def test_undoes_one_promotion_after_the_other(self, world: World) -> None:
        world.rollout.promote("3.0")
        world.rollout.deploy("4.0", 1)
        world.rollout.promote("4.0")
        world.rollout.scale("4.0", 2)
        # A canary is ended first.
        world.rollout.canary(TRIAL)
        assert world.rollout.rollback() == "4.0"
        assert (world.desired.default, world.desired.canary) == ("4.0", None)
        assert (last(world)["action"], last(world)["version"]) == ("end canary", "3.0")
        settled(world)
        for expected in ("3.0", "1.0"):
            assert world.rollout.rollback() == expected
            assert world.desired.default == world.management.default() == expected
            assert (last(world)["action"], last(world)["version"]) == ("rollback", expected)
            settled(world)
        # A version deployed meanwhile continues to serve.
        assert world.desired.versions["4.0"].workers == 2
        refused(world, lambda it: it.rollback(), "no promotion to undo")

    def test_ends_a_canary_that_was_stopped(self, world: World) -> None:
        """Its traffic ended while deployment.yaml could not be written."""
        world.rollout.canary(TRIAL)
        routing = RoutingFile(world.settings.run_dir)
        found = routing.read()
        assert found
        routing.publish(replace(found, canary=None, percent=0.0))
        refused(world, lambda it: it.promote("3.0"), "was stopped")
        assert world.rollout.rollback() == "1.0"
        assert world.desired.canary is None

    def test_deploys_a_retired_version_again(self, world: World) -> None:
        world.rollout.scale("1.0", 3)
        world.rollout.promote("3.0")
        world.rollout.retire("1.0")
        first = archives.digest(archives.deployed(world.settings, "1.0"))
        write_archive(archives.built(world.settings, "1.0"), "1.0", note="a later build")
        # A deployment that fails keeps the archive.
        world.never = NeverReady("no worker")
        refused(world, lambda it: it.deploy("1.0", 1), "no worker")
        world.never = None
        world.management.done.clear()
        assert world.rollout.rollback() == "1.0"
        assert [each for each in world.management.done if each[0] != "ready"] == [
            ("register", "1.0", 3),
            ("set_default", "1.0"),
        ]
        assert world.management.done[1] == ("ready", "1.0", 3)
        assert archives.digest(archives.deployed(world.settings, "1.0")) == first
        assert world.desired.versions["1.0"] == VersionSpec(3, first)
        settled(world)

    @pytest.mark.parametrize("problem", ["register", "set_default", "ready", "archive"])
    def test_is_undone_if_the_version_fails(self, world: World, problem: str) -> None:
        # Deployed, so that it is known which archive it was.
        world.rollout.deploy("4.0", 1)
        world.rollout.promote("4.0")
        world.rollout.promote("3.0")
        world.rollout.retire("4.0")
        present = archives.deployed(world.settings, "4.0")
        content = present.read_bytes()
        if problem == "archive":
            present.unlink()
            write_archive(archives.built(world.settings, "4.0"), "4.0", note="a later build")
        elif problem == "ready":
            world.never = NeverReady("no worker")
        else:
            world.management.failing = {problem}
        refused(world, lambda it: it.rollback())
        # The promotion still stands, to be undone when the problem is gone.
        present.write_bytes(content)
        world.never, world.management.failing = None, set()
        assert world.rollout.rollback() == "4.0"
        settled(world)


class TestScale:
    def test_more_workers_pause_no_client(self, world: World) -> None:
        paused = []
        world.management.look = lambda change: paused.append(
            Routing.is_paused(world.routing.read() or Routing.of(World.WANTED), "3.0")
        )
        world.management.queued["3.0"] = 5
        world.rollout.scale("3.0", 64)
        assert paused == [False, False]
        assert world.management.done == [("scale", "3.0", 64), ("ready", "3.0", 64)]
        assert world.desired.versions["3.0"].workers == last(world)["workers"] == 64
        settled(world)

    def test_surplus_workers_stop_at_rest_while_clients_are_paused(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queue = iter(["2 requests", "1 request", None, None])
        monkeypatch.setattr(module, "PAUSED_PATIENCE", 60)
        monkeypatch.setattr(rest.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(rest, "_why_busy", lambda *_: next(queue))
        seen = []

        def look(change: tuple[Any, ...]) -> None:
            found = world.routing.read()
            assert found
            seen.append((change[0], found.is_paused("3.0"), found.is_paused("1.0"), [*queue]))

        world.management.look = look
        world.rollout.scale("3.0", 1)
        assert seen == [("scale", True, False, []), ("ready", False, False, [])]
        settled(world)


class TestRetire:
    def test_clients_go_elsewhere_before_it_comes_to_rest(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        routed = set()

        def look(*_: object) -> None:
            found = world.routing.read()
            routed.add(found.versions if found else None)

        monkeypatch.setattr(rest, "worker_state", look)
        world.management.look = look
        sha256 = archives.digest(archives.deployed(world.settings, "3.0"))
        world.rollout.retire("3.0")
        assert routed == {("1.0",)}
        assert world.management.done == [("unregister", "3.0")]
        assert world.desired == World.WANTED.without_version("3.0")
        assert last(world)["sha256"] == sha256
        settled(world)

    def test_an_edit_during_the_wait_is_kept(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = world.settings.deployment
        edited = path.read_text() + "# an edit\n"

        def wait(*_: object) -> None:
            path.write_text(edited)
            raise rest.NotAtRest("a client waits")

        monkeypatch.setattr(module, "wait_until_at_rest", wait)
        with pytest.raises(Refused, match="a client waits"):
            world.rollout.retire("3.0")
        assert path.read_text() == edited


class TestApply:
    def test_order_of_the_steps(self, world: World) -> None:
        """A new default serves before the old one is retired."""
        desired = deployment.Deployment(
            "4.0", {"3.0": VersionSpec(3), "4.0": VersionSpec(2)}, Canary("3.0", 5.0)
        )
        deployment.save(desired, world.settings.deployment)
        # Nothing is removed if a version never gets ready.
        world.never = NeverReady("no worker")
        with pytest.raises(Refused, match="no worker"):
            world.rollout.apply()
        assert world.management.workers.keys() >= {"1.0", "3.0"}
        assert world.management.default() == "1.0"
        assert world.routing.read() == Routing.of(World.WANTED)
        world.never = None
        world.management.workers = {"1.0": 1, "3.0": 2}
        world.management.done.clear()
        routed: dict[str, Routing | None] = {}

        def look(change: tuple[Any, ...]) -> None:
            routed[change[0]] = world.routing.read()

        world.management.look = look
        assert world.rollout.apply() == [
            "scaled 3.0 to 3",
            "deployed 4.0",
            "promoted 4.0",
            "routed",
            "retired 1.0",
        ]
        assert world.management.done == [
            ("scale", "3.0", 3),
            ("ready", "3.0", 3),
            ("register", "4.0", 2),
            ("ready", "4.0", 2),
            ("set_default", "4.0"),
            ("unregister", "1.0"),
        ]
        assert routed["set_default"] == Routing.of(World.WANTED)
        assert routed["unregister"] == Routing.of(desired)
        assert world.desired == desired
        settled(world)
        world.management.done.clear()
        assert world.rollout.apply() == []
        assert {each[0] for each in world.management.done} == {"ready"}

    @pytest.mark.parametrize("version", ["3.0", "4.0"])
    def test_an_archive_with_another_hash_is_refused(self, world: World, version: str) -> None:
        desired = World.WANTED.with_version(version, VersionSpec(2, "ab" * 32))
        deployment.save(desired, world.settings.deployment)
        refused(world, lambda it: it.apply(), "SHA-256")
        assert "register" not in {each[0] for each in world.management.done}


FORCED: list[tuple[Callable[[Rollout, bool], object], str]] = [
    (lambda it, force: it.scale("3.0", 1, force=force), "scale"),
    (lambda it, force: it.retire("3.0", force=force), "unregister"),
    (lambda it, force: it.apply(force=force), "unregister"),
]


@pytest.mark.parametrize(("do", "step"), FORCED, ids=["scale", "retire", "apply"])
def test_only_force_stops_workers_amid_a_request(
    world: World, request: pytest.FixtureRequest, do: Callable[[Rollout, bool], object], step: str
) -> None:
    if "apply" in request.node.name:
        deployment.save(World.WANTED.without_version("3.0"), world.settings.deployment)
    with in_flight.recorded(world.settings.run_dir, "3.0"):
        with pytest.raises(Refused, match=r"a client waits.*--force"):
            do(world.rollout, False)
        assert world.management.workers == {"1.0": 1, "3.0": 2}
        do(world.rollout, True)
    assert step in {each[0] for each in world.management.done}
    settled(world)

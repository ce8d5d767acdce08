"""What is to be served: deployment.yaml, the lock of its changes, and their history."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serving import deployment
from serving.deployment import (
    Busy,
    Canary,
    Deployment,
    DeploymentError,
    History,
    VersionSpec,
    change,
    spec,
)
from serving.deployment.spec import MAX_WORKERS, to_document
from serving.files import Locked, lock, lock_holder
from serving.settings import Settings

TWO = Deployment("1.0", {"1.0": VersionSpec(1), "2.0": VersionSpec(2, "ab" * 32)})
TRIAL = replace(TWO, canary=Canary("2.0", 12.5, 3.0, 250.0))
VALID = "default: '1.0'\nversions:\n  '1.0': {workers: 1}\n  '2.0': {workers: 1}\n"

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)
digests = st.none() | st.text("0123456789abcdef", min_size=64, max_size=64)
versions = st.builds(VersionSpec, st.integers(1, MAX_WORKERS), digests)


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    served = draw(st.dictionaries(names, versions, min_size=2, max_size=4))
    default, other, *_ = draw(st.permutations(sorted(served)))
    positive = st.floats(0.01, 99.0)
    trial = draw(st.none() | st.builds(Canary, st.just(other), positive, positive, positive))
    return Deployment(default, served, trial)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(run_dir=tmp_path / "run", deployment=tmp_path / "deployment.yaml")
    made.run_dir.mkdir()
    deployment.save(TWO, made.deployment)
    return made


class TestFile:
    @hypothesis.settings(deadline=None)
    @given(deployments())
    def test_what_is_written_is_read(
        self, tmp_path_factory: pytest.TempPathFactory, wanted: Deployment
    ) -> None:
        """Also where a name looks like a number, a date or a truth value to YAML."""
        path = tmp_path_factory.mktemp("file") / "deployment.yaml"
        deployment.save(wanted, path)
        assert deployment.load(path) == wanted
        document = json.loads(json.dumps(spec.to_document(wanted)))
        assert spec.from_document(document) == wanted

    @pytest.mark.parametrize("name", ["1.10", "2", "1e3", "yes", "null", "0x10", "2026-11-24"])
    def test_a_name_stays_a_name(self, tmp_path: Path, name: str) -> None:
        wanted = Deployment(name, {name: VersionSpec(1)})
        deployment.save(wanted, tmp_path / "deployment.yaml")
        assert deployment.load(tmp_path / "deployment.yaml") == wanted

    def test_says_at_its_head_what_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "deployment.yaml"
        deployment.save(TRIAL, path)
        deployment.save(deployment.load(path), path)
        text = path.read_text()
        assert text.startswith("# What the service serves.")
        assert text.count(spec.HEADER) == 1
        assert [each.name for each in tmp_path.iterdir()] == ["deployment.yaml"]

    def test_the_one_that_ships_is_as_it_would_be_written(self, tmp_path: Path) -> None:
        shipped = Settings().deployment
        deployment.save(deployment.load(shipped), tmp_path / "deployment.yaml")
        assert (tmp_path / "deployment.yaml").read_text() == shipped.read_text()

    def test_a_canary_has_bounds_where_none_are_named(self) -> None:
        found = spec.from_document(yaml.safe_load(VALID + "canary: {version: '2.0', percent: 5}"))
        assert found.canary == Canary("2.0", 5.0, max_errors=2.0, max_p95=1000.0)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "It must hold `default`"),
            ("[]", "It must hold `default`"),
            ("just words", "It must hold `default`"),
            ("default: '1.0'", "It must hold `default`"),
            ("versions: {'1.0': {workers: 1}}", "It must hold `default`"),
            ("default: '1.0'\nversions: ['1.0']", "It must hold `default`"),
            ("default: '1.0'\nversions: {'1.0': 1}", "It must hold `default`"),
            ("default: '1.0'\nversions: {'1.0': {}}", "It must hold `default`"),
            ("default: '1.0'\nversions: {'1.0': {worker: 1}}", "It must hold `default`"),
            ("default: '1.0'\nversions: {}", "The default, 1.0, is none of the versions"),
            (VALID.replace("default: '1.0'", "default: '3.0'"), "The default, 3.0, is none"),
            # YAML reads a number: 1.10 would be 1.1.
            (VALID.replace("default: '1.0'", "default: 1.0"), "named in quotes: '1.0'"),
            (VALID.replace("  '2.0':", "  2.0:"), "named in quotes: '2.0'"),
            (f"{VALID}canary: {{version: 2.0, percent: 5}}", "named in quotes: '2.0'"),
            (VALID.replace("default: '1.0'", "default:"), "It must hold `default`"),
            (VALID + "canaries: {version: '2.0'}", "It must not hold 'canaries'"),
            (VALID + "canary: '2.0'", "It must hold `default`"),
            (VALID + "canary: {version: '2.0'}", "It must hold `default`"),
            (VALID + "canary: {version: '2.0', percent: few}", "It must hold `default`"),
            (VALID + "canary: {version: '2.0', percent: 5, more: 1}", "It must hold `default`"),
            ("a: [", "is not YAML: "),
            ("a: \x00", "is not YAML: "),
            ("default: é".encode("latin-1"), "is not YAML: "),
            ("!!python/object:os.system {}", "is not YAML: "),
        ],
    )
    def test_one_that_cannot_be_used_is_one_clear_sentence(
        self, tmp_path: Path, content: str | bytes, said: str
    ) -> None:
        path = tmp_path / "deployment.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DeploymentError) as caught:
            deployment.load(path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert said in message
        assert message.endswith(".")
        assert "\n" not in message

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.yaml", tmp_path):
            with pytest.raises(DeploymentError, match=f"{path} can't be read: "):
                deployment.load(path)

    @hypothesis.settings(deadline=None)
    @given(st.text(max_size=60) | st.binary(max_size=60))
    def test_no_content_is_a_crash(
        self, tmp_path_factory: pytest.TempPathFactory, content: str | bytes
    ) -> None:
        path = tmp_path_factory.mktemp("file") / "deployment.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(DeploymentError):
            deployment.load(path)


class TestDeployment:
    @pytest.mark.parametrize("workers", [0, -1, MAX_WORKERS + 1, 1.5, True, "2", None])
    def test_so_many_workers_are_refused(self, workers: Any) -> None:
        with pytest.raises(DeploymentError, match=f"2.0 must have 1 to 64 workers, not {workers}"):
            TWO.with_version("2.0", VersionSpec(workers))

    @pytest.mark.parametrize("name", ["", "../1.0", "a/b", ".hidden", "1 0", "1.0\n", "é"])
    def test_a_name_that_is_none_is_refused(self, name: str) -> None:
        with pytest.raises(DeploymentError, match="is not the name of a version"):
            TWO.with_version(name, VersionSpec(1))

    @pytest.mark.parametrize("sha256", ["", "ab", "x" * 64, 12, "ab" * 32 + "\n"])
    def test_a_hash_that_is_none_is_refused(self, sha256: Any) -> None:
        with pytest.raises(DeploymentError, match="must be 64 hex digits"):
            TWO.with_version("2.0", VersionSpec(1, sha256))

    @pytest.mark.parametrize("version", ["1.0", "3.0"])
    def test_a_canary_is_a_version_beside_the_default(self, version: str) -> None:
        with pytest.raises(DeploymentError, match=f"The canary, {version}, must be"):
            replace(TWO, canary=Canary(version, 10))

    @pytest.mark.parametrize("percent", [0, 100, -1, 150, float("nan"), float("inf")])
    def test_a_share_that_is_none_is_refused(self, percent: float) -> None:
        with pytest.raises(DeploymentError, match="A canary gets 0 to 100 percent"):
            replace(TWO, canary=Canary("2.0", percent))

    @pytest.mark.parametrize(
        "bounds",
        [
            {"max_errors": -1},
            {"max_errors": float("nan")},
            {"max_p95": 0},
            {"max_p95": -5},
            {"max_p95": float("nan")},
        ],
    )
    def test_bounds_that_are_none_are_refused(self, bounds: dict[str, float]) -> None:
        with pytest.raises(DeploymentError, match="bounds"):
            replace(TWO, canary=Canary("2.0", 10, **bounds))

    def test_neither_the_default_nor_the_canary_can_be_taken_out(self) -> None:
        assert TWO.without_version("2.0").versions.keys() == {"1.0"}
        with pytest.raises(DeploymentError, match="default"):
            TWO.without_version("1.0")
        with pytest.raises(DeploymentError, match="canary"):
            TRIAL.without_version("2.0")

    def test_a_change_leaves_the_one_before_alone(self) -> None:
        TWO.with_version("3.0", VersionSpec(1))
        TWO.without_version("2.0")
        assert TWO.versions.keys() == {"1.0", "2.0"}


class TestHistory:
    @pytest.fixture
    def history(self, settings: Settings) -> History:
        return History(settings.deployment)

    def test_begins_empty(self, history: History) -> None:
        assert history.entries() == []
        assert history.defaults("1.0") == ["1.0"]
        assert history.last_seen("1.0") is None

    def test_a_line_that_was_cut_off_is_passed_over(self, history: History) -> None:
        first, second, third = ({"action": str(i), "outcome": "done"} for i in range(3))
        history.add(first)
        history.add(second)
        whole = history.path.read_text()
        # As a full disk, or the power, would.
        history.path.write_text(whole[:-5])
        assert history.entries() == [first]
        # And what comes after is no part of it.
        history.add(third)
        assert history.entries() == [first, third]
        assert history.path.read_text().endswith("\n")

    @pytest.mark.parametrize(
        ("actions", "standing"),
        [
            ("", "a"),
            ("promote:ab", "a b"),
            ("promote:ab promote:bc", "a b c"),
            ("promote:ab promote:bc rollback:cb", "a b"),
            ("promote:ab promote:bc rollback:cb rollback:ba", "a"),
            ("promote:ab rollback:ba promote:ac", "a c"),
            # Forth and back again is no rollback.
            ("promote:ab promote:ba", "a b a"),
            ("promote:ab promote:bb:failed", "a b"),
            ("promote:ab rollback:ba:failed", "a b"),
            ("promote:ab canary:bb scale:bb retire:bb deploy:bb apply:bb", "a b"),
            # The file was edited: `apply` found it so, or a start did.
            ("promote:ab apply:aa", "a b a"),
            ("promote:ab scale:cc", "a b c"),
        ],
    )
    def test_knows_who_answered_by_default(
        self, history: History, actions: str, standing: str
    ) -> None:
        now = "a"
        for each in actions.split():
            action, (before, after), outcome = [*each.split(":"), "done"][:3]
            history.add(
                {
                    "action": action,
                    "outcome": outcome,
                    "before": {"default": before},
                    "after": {"default": after},
                }
            )
            now = after if outcome == "done" else now
        found = history.defaults(now if "failed" not in actions else "b")
        assert found == standing.split()

    def test_an_edit_since_the_last_change_counts(self, history: History) -> None:
        history.add(
            {
                "action": "promote",
                "outcome": "done",
                "before": {"default": "a"},
                "after": {"default": "b"},
            }
        )
        assert history.defaults("c") == ["a", "b", "c"]

    def test_remembers_a_version_as_it_was_wanted_last(self, history: History) -> None:
        for workers in (1, 3):
            wanted = TWO.with_version("3.0", VersionSpec(workers, "0" * 64))
            history.add({"before": to_document(TWO), "after": to_document(wanted)})
        history.add({"before": to_document(wanted), "after": to_document(TWO)})
        assert history.last_seen("3.0") == VersionSpec(3, "0" * 64)
        assert history.last_seen("4.0") is None


class TestChange:
    def test_one_that_is_done_is_written_down(self, settings: Settings) -> None:
        with change(settings, "deploy", "3.0") as entry:
            entry["sha256"] = "cd"
            after = TWO.with_version("3.0", VersionSpec(1))
            deployment.save(after, settings.deployment)
            assert History(settings.deployment).entries() == []
        (found,) = History(settings.deployment).entries()
        age = datetime.now(UTC) - datetime.fromisoformat(found.pop("time"))
        assert timedelta(seconds=-1) < age < timedelta(minutes=1)
        assert found.pop("seconds") >= 0
        assert found.pop("who")
        assert found == {
            "action": "deploy",
            "version": "3.0",
            "outcome": "done",
            "sha256": "cd",
            "before": spec.to_document(TWO),
            "after": spec.to_document(after),
        }

    @pytest.mark.parametrize(
        ("error", "why"),
        [
            (ValueError("no room"), "no room"),
            (OSError(), "OSError"),
            (KeyboardInterrupt(), "KeyboardInterrupt"),
        ],
    )
    def test_one_that_fails_is_written_down_with_the_reason(
        self, settings: Settings, error: BaseException, why: str
    ) -> None:
        with pytest.raises(type(error)) as caught, change(settings, "scale", "2.0"):
            raise error
        assert caught.value is error
        (found,) = History(settings.deployment).entries()
        assert (found["outcome"], found["why"]) == ("failed", why)
        assert found["before"] == found["after"] == spec.to_document(TWO)
        # The next one is not kept out.
        with change(settings, "apply"):
            pass

    def test_a_second_one_is_told_what_the_first_is(self, settings: Settings) -> None:
        with change(settings, "promote", "2.0"):
            said = f"`promote 2.0` by process {os.getpid()}. Try again"
            with pytest.raises(Busy, match=re.escape(said)), change(settings, "apply"):
                raise AssertionError
        # Who was turned away changed nothing, and leaves no entry.
        assert [each["action"] for each in History(settings.deployment).entries()] == ["promote"]

    def test_one_in_another_process_counts_even_when_it_is_killed(self, settings: Settings) -> None:
        ours, theirs = multiprocessing.Pipe()
        other = multiprocessing.get_context("spawn").Process(
            target=change_for_ever, args=(settings, theirs)
        )
        other.start()
        assert ours.recv() == "at work"
        said = rf"`rollback` by process {other.pid}\."
        with pytest.raises(Busy, match=said), change(settings, "apply"):
            raise AssertionError
        other.kill()
        other.join()
        with change(settings, "apply"):
            pass

    def test_a_file_that_cannot_be_read_is_no_start(self, settings: Settings) -> None:
        settings.deployment.write_text("a: [")
        with pytest.raises(DeploymentError), change(settings, "apply"):
            raise AssertionError
        deployment.save(TWO, settings.deployment)
        with change(settings, "apply"):
            pass


def change_for_ever(settings: Settings, said: Connection) -> None:
    with change(settings, "rollback"):
        said.send("at work")
        said.recv()


class TestLock:
    def test_ends_with_the_block_even_when_that_fails(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        with pytest.raises(ZeroDivisionError), lock(path, "first"):
            raise ZeroDivisionError
        assert lock_holder(path) is None
        with lock(path, "2nd"):
            assert lock_holder(path) == "2nd"
            with pytest.raises(Locked, match=r"^2nd$"), lock(path, "third"):
                raise AssertionError
            # Nor did who was turned away take the note away.
            assert lock_holder(path) == "2nd"

    def test_a_file_that_is_not_there_has_no_holder(self, tmp_path: Path) -> None:
        assert lock_holder(tmp_path / "lock") is None
        assert list(tmp_path.iterdir()) == []

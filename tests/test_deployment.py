"""The desired state in deployment.yaml, the lock of its changes, and their history."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
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
from serving.settings import ROOT, Settings

TWO = Deployment("1.0", {"1.0": VersionSpec(1), "3.0": VersionSpec(2, "ab" * 32)})
TRIAL = replace(TWO, canary=Canary("3.0", 12.5, 3.0, 250.0))
VALID = "default: '1.0'\nversions:\n  '1.0': {workers: 1}\n  '3.0': {workers: 1}\n"
# As a user may write it.
COMMENTED = """\
# our laboratory
default: "3.0"   # since May

versions:
    # the fallback
    '1.0': {workers: 1}   # small

    # the candidate
    "3.0":
        workers: 2 # two cores
        sha256: {sha256}

    # the next one
    '4.0':
        workers: 1
# none at present
canary: null
# the end
""".replace("{sha256}", "ab" * 32)

# Of the first, some would be numbers, dates or nothing without quotes.
names = st.sampled_from(["1.10", "1e3", "yes", "null", "0x10", "2026-11-24"]) | st.from_regex(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True
)
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
def path(tmp_path: Path) -> Path:
    return tmp_path / "deployment.yaml"


@pytest.fixture
def settings(tmp_path: Path, path: Path) -> Settings:
    made = Settings(run_dir=tmp_path / "run", deployment=path)
    made.run_dir.mkdir()
    deployment.save(TWO, path)
    return made


class TestSave:
    @given(deployments(), deployments())
    def test_what_is_saved_is_loaded(
        self, tmp_path_factory: pytest.TempPathFactory, first: Deployment, second: Deployment
    ) -> None:
        path = tmp_path_factory.mktemp("file") / "deployment.yaml"
        for each in (first, second):
            deployment.save(each, path)
            assert deployment.load(path) == each
        assert path.read_text().startswith(spec.HEADER)
        assert path.read_text().count("#") == spec.HEADER.count("#")
        document = json.loads(json.dumps(to_document(first)))
        assert spec.from_document(document) == first

    def test_the_shipped_file_is_in_this_format(self, path: Path) -> None:
        shipped = ROOT / "deployment.yaml"
        deployment.save(deployment.load(shipped), path)
        assert path.read_text() == shipped.read_text()

    @pytest.mark.parametrize(
        ("edit", "old", "new"),
        [
            (lambda it: it, "", ""),
            (lambda it: replace(it, default="1.0"), 'default: "3.0"', 'default: "1.0"'),
            (
                lambda it: it.with_version("3.0", VersionSpec(4, "ab" * 32)),
                "workers: 2 # two cores",
                "workers: 4 # two cores",
            ),
            (
                lambda it: it.with_version("5.0", VersionSpec(1)),
                "'4.0':\n        workers: 1\n",
                "'4.0':\n        workers: 1\n    '5.0':\n        workers: 1\n",
            ),
            (lambda it: it.without_version("1.0"), "    '1.0': {workers: 1}   # small\n", ""),
            (lambda it: it.without_version("4.0"), "    '4.0':\n        workers: 1\n", ""),
            (
                lambda it: replace(it, canary=Canary("4.0", 5.0)),
                "canary: null\n",
                "canary:\n    version: '4.0'\n    percent: 5.0\n    max_errors: 2.0\n"
                "    max_p95: 1000.0\n",
            ),
        ],
        ids=["nothing", "promote", "scale", "deploy", "retire first", "retire last", "canary"],
    )
    def test_keeps_comments_order_and_quotes(
        self, path: Path, edit: Callable[[Deployment], Deployment], old: str, new: str
    ) -> None:
        path.write_text(COMMENTED)
        before = deployment.load(path)
        deployment.save(edit(before), path)
        assert path.read_text() == COMMENTED.replace(old, new)
        assert deployment.load(path) == edit(before)
        if edit(before).canary:
            deployment.save(before, path)
            assert path.read_text() == COMMENTED


class TestLoad:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("", "It must have `default`"),
            ("[]", "It must have `default`"),
            (None, "can't be read: "),
            ("versions: {'1.0': {workers: 1}}", "It must have `default`"),
            ("default: '1.0'\nversions: {'1.0': 1}", "It must have `default`"),
            ("default: '1.0'\nversions: {'1.0': {worker: 1}}", "It must have `default`"),
            ("default: '1.0'\nversions: {}", "The default, 1.0, is not one of the versions"),
            # YAML reads 1.10 as 1.1.
            (VALID.replace("default: '1.0'", "default: 1.0"), "in quotes: '1.0'"),
            (VALID.replace("  '3.0':", "  3.0:"), "in quotes: '3.0'"),
            (f"{VALID}canary: {{version: 3.0, percent: 5}}", "in quotes: '3.0'"),
            (VALID.replace("default: '1.0'", "default:"), "It must have `default`"),
            (VALID + "canaries: {version: '3.0'}", "Unknown keys: 'canaries'"),
            (VALID + "canary: '3.0'", "It must have `default`"),
            (VALID + "canary: {version: '3.0'}", "It must have `default`"),
            (VALID + "canary: {version: '3.0', percent: few}", "It must have `default`"),
            (VALID + "canary: {version: '3.0', percent: 5, more: 1}", "It must have `default`"),
            (VALID + "default: '3.0'", "is not YAML: "),
            ("a: [", "is not YAML: "),
            ("a: \x00", "is not YAML: "),
            ("default: é".encode("latin-1"), "is not YAML: "),
            ("!!python/object:os.system {}", "is not YAML: "),
        ],
    )
    def test_an_invalid_file_gives_a_clear_error(
        self, path: Path, content: str | bytes | None, expected: str
    ) -> None:
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DeploymentError) as caught:
            deployment.load(path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert expected in message
        assert message.endswith(".")
        assert "\n" not in message

    @given(st.text(max_size=60) | st.binary(max_size=60))
    def test_no_content_crashes(
        self, tmp_path_factory: pytest.TempPathFactory, content: str | bytes
    ) -> None:
        path = tmp_path_factory.mktemp("file") / "deployment.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(DeploymentError):
            deployment.load(path)


class TestDeployment:
    @pytest.mark.parametrize(
        ("name", "spec", "why"),
        [
            *(("3.0", VersionSpec(workers), "1 to 64 workers") for workers in (0, 65, True, 1.5)),
            *((name, VersionSpec(1), "not a valid version") for name in ("", "../1.0", "é", "1\n")),
            *(("3.0", VersionSpec(1, each), "64 hex digits") for each in ("", "x" * 64, 12)),
        ],
    )
    def test_invalid_version(self, name: str, spec: VersionSpec, why: str) -> None:
        with pytest.raises(DeploymentError, match=why):
            TWO.with_version(name, spec)

    @pytest.mark.parametrize(
        ("canary", "expected"),
        [
            *((Canary(name, 10), f"The canary, {name}, must be") for name in ("1.0", "4.0")),
            *(
                (Canary("3.0", percent), "must be between 0 and 100")
                for percent in (0, 100, -1, float("nan"), float("inf"))
            ),
            *((Canary("3.0", 10, max_errors=limit), "limits") for limit in (-1, float("nan"))),
            *((Canary("3.0", 10, max_p95=limit), "limits") for limit in (0, -5, float("nan"))),
        ],
    )
    def test_invalid_canary(self, canary: Canary, expected: str) -> None:
        with pytest.raises(DeploymentError, match=expected):
            replace(TWO, canary=canary)

    def test_the_default_and_the_canary_stay(self) -> None:
        assert TWO.without_version("3.0").versions.keys() == {"1.0"}
        assert TWO.versions.keys() == {"1.0", "3.0"}
        with pytest.raises(DeploymentError, match="default"):
            TWO.without_version("1.0")
        with pytest.raises(DeploymentError, match="canary"):
            TRIAL.without_version("3.0")


class TestHistory:
    @pytest.fixture
    def history(self, settings: Settings) -> History:
        return History(settings.deployment)

    def test_skips_a_truncated_line(self, history: History) -> None:
        first, second, third = ({"action": str(i), "outcome": "done"} for i in range(3))
        assert history.entries() == []
        history.add(first)
        history.add(second)
        history.path.write_text(history.path.read_text()[:-5])
        assert history.entries() == [first]
        history.add(third)
        assert history.entries() == [first, third]
        assert history.path.read_text().endswith("\n")

    @pytest.mark.parametrize(
        ("actions", "now", "expected"),
        [
            ("", "a", "a"),
            ("promote:ab", "b", "a b"),
            ("promote:ab promote:bc", "c", "a b c"),
            ("promote:ab promote:bc rollback:cb", "b", "a b"),
            ("promote:ab promote:bc rollback:cb rollback:ba", "a", "a"),
            ("promote:ab rollback:ba promote:ac", "c", "a c"),
            # Promoting the previous version is not a rollback.
            ("promote:ab promote:ba", "a", "a b a"),
            ("promote:ab promote:bb:failed", "b", "a b"),
            ("promote:ab rollback:ba:failed", "b", "a b"),
            ("promote:ab canary:bb scale:bb retire:bb deploy:bb apply:bb", "b", "a b"),
            # The file was edited before a change, or after the last one.
            ("promote:ab apply:aa", "a", "a b a"),
            ("promote:ab scale:cc", "c", "a b c"),
            ("promote:ab", "c", "a b c"),
        ],
    )
    def test_lists_the_defaults(
        self, history: History, actions: str, now: str, expected: str
    ) -> None:
        for each in actions.split():
            action, (before, after), outcome = [*each.split(":"), "done"][:3]
            entry = {"before": {"default": before}, "after": {"default": after}}
            history.add({"action": action, "outcome": outcome, **entry})
        assert history.defaults(now) == expected.split()

    def test_finds_the_last_spec_of_a_version(self, history: History) -> None:
        assert history.last_seen("1.0") is None
        for workers in (1, 3):
            after = TWO.with_version("4.0", VersionSpec(workers, "0" * 64))
            history.add({"before": to_document(TWO), "after": to_document(after)})
        history.add({"before": to_document(after), "after": to_document(TWO)})
        assert history.last_seen("4.0") == VersionSpec(3, "0" * 64)
        assert history.last_seen("5.0") is None


class TestChange:
    def test_writes_an_entry_when_it_is_done(self, settings: Settings) -> None:
        after = TWO.with_version("4.0", VersionSpec(1))
        with change(settings, "deploy", "4.0") as entry:
            entry["sha256"] = "cd"
            deployment.save(after, settings.deployment)
            assert History(settings.deployment).entries() == []
        (found,) = History(settings.deployment).entries()
        assert datetime.fromisoformat(found.pop("time")).tzinfo
        assert found.pop("seconds") >= 0
        assert found.pop("who")
        assert found == {
            "action": "deploy",
            "version": "4.0",
            "outcome": "done",
            "sha256": "cd",
            "before": to_document(TWO),
            "after": to_document(after),
        }

    @pytest.mark.parametrize(
        ("error", "why"),
        [
            (ValueError("no room"), "no room"),
            (OSError(), "OSError"),
            (KeyboardInterrupt(), "KeyboardInterrupt"),
        ],
    )
    def test_writes_the_reason_of_a_failure(
        self, settings: Settings, error: BaseException, why: str
    ) -> None:
        with pytest.raises(type(error)) as caught, change(settings, "scale", "3.0"):
            raise error
        assert caught.value is error
        (found,) = History(settings.deployment).entries()
        assert (found["outcome"], found["why"]) == ("failed", why)
        assert found["before"] == found["after"] == to_document(TWO)
        with change(settings, "apply"):
            pass

    def test_a_killed_process_releases_the_lock(self, settings: Settings) -> None:
        ours, theirs = multiprocessing.Pipe()
        other = multiprocessing.get_context("spawn").Process(
            target=change_forever, args=(settings, theirs)
        )
        other.start()
        assert ours.recv() == "locked"
        expected = rf"`rollback` by process {other.pid}\."
        with pytest.raises(Busy, match=expected), change(settings, "apply"):
            raise AssertionError
        other.kill()
        other.join()
        with change(settings, "apply"):
            pass


def change_forever(settings: Settings, pipe: Connection) -> None:
    with change(settings, "rollback"):
        pipe.send("locked")
        pipe.recv()

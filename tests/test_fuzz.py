"""The fuzzer, its corpus, and a minute of it: each damaged input is answered or refused."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from handler.preprocessing import decode
from testing import fuzz, hostile, mutation
from testing.fuzz import Fuzzer
from testing.fuzz_targets import TARGETS, Run, Target

LARGEST, INPUTS = 1 << 16, 2000


def test_damaged_images_are_answered_or_refused() -> None:
    target, chance = TARGETS["decoder"], random.Random(0)
    run, seeds = target.prepare(), target.seeds()
    damaged = [target.mutate(chance.choice(seeds), chance, seeds, LARGEST) for _ in range(100)]
    outcomes = {run(body)[0] for body in (*seeds, *damaged)}
    assert {outcome[:3] for outcome in outcomes} == {"200", "400", "413", "415"}


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_the_fuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    if name == "edge" and not shutil.which("node") and not os.environ.get("CI"):
        pytest.skip("no node")
    with contextlib.closing(Fuzzer(TARGETS[name], tmp_path, LARGEST, timed=False)) as fuzzer:
        for _ in range(INPUTS):
            fuzzer.step()
    assert fuzzer.progress.inputs == INPUTS
    assert fuzzer.progress.findings == {}, fuzzer.progress.outcomes


def faulty() -> Run:
    """Set up a target that does what its input says."""

    def run(body: bytes) -> tuple[str, None]:
        if body == b"wrong":
            raise KeyError(body)
        if body == b"crash":
            os.abort()
        while body == b"hang":
            time.sleep(1)
        return "fine", None

    return run


class Faulty(Target):
    """A target that fails in each way."""

    def seeds(self) -> list[bytes]:
        return [b"fine", b"wrong", b"crash", b"fine", b"hang"]


def test_the_fuzzer_reports_each_kind_of_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Faulty("faulty", faulty, base_ms=-1, ms_per_kb=0)
    with contextlib.closing(Fuzzer(target, tmp_path)) as fuzzer:
        for _ in range(4):
            fuzzer.step()
        monkeypatch.setattr(fuzz, "PATIENCE", 1)
        fuzzer.step()
    found = fuzzer.progress.findings
    inputs = {kind: (tmp_path / "faulty" / names[0]).read_bytes() for kind, names in found.items()}
    assert inputs == {"slow": b"fine", "wrong": b"wrong", "crash": b"crash", "hang": b"hang"}
    with contextlib.closing(Fuzzer(target, tmp_path)) as again:
        assert again.progress == fuzzer.progress
    fuzz.write(tmp_path, {"faulty": again.progress})
    assert "| 1 | 1 | 1 | 2 | none |" in (tmp_path / "fuzz.md").read_text()


def test_pieces_are_the_whole_input() -> None:
    for target in TARGETS.values():
        for body in target.seeds():
            assert b"".join(mutation.pieces(body)) == body
    assert len(mutation.pieces(hostile.small("JPEG"))) > 8
    assert len(mutation.pieces(hostile.small("PNG"))) > 4


@pytest.mark.parametrize("kind", [kind for kind in hostile.seeds() if kind.startswith("TIFF")])
def test_the_tags_of_a_tiff_are_read_and_written(kind: str) -> None:
    body = hostile.seeds()[kind]
    tags = mutation._tags(body)
    written = mutation._with_tags(body, tags)
    assert mutation._tags(written) == tags
    assert (decode(written).pixels == decode(body).pixels).all()

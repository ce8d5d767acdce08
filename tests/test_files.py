"""Atomic writes and locks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from serving.files import Locked, atomic_write, lock, lock_holder


class TestAtomicWrite:
    def test_readers_see_the_old_file_until_the_new_one_is_complete(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        with atomic_write(path, 0o600) as file:
            file.write(b"new")
            file.flush()
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("mode", [0o600, 0o664])
    def test_keeps_the_mode_of_the_old_file(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "file"
        path.touch()
        path.chmod(mode)
        with atomic_write(path) as file:
            file.write(b"new")
        assert stat.S_IMODE(path.stat().st_mode) == mode

    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        with pytest.raises(TypeError), atomic_write(path) as file:
            file.writelines([b"half", None])  # type: ignore[list-item]
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_content_and_name_reach_the_disk_in_that_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, steps = tmp_path / "file", []
        replace = Path.replace
        monkeypatch.setattr(
            os, "fsync", lambda handle: steps.append(os.readlink(f"/proc/self/fd/{handle}"))
        )
        monkeypatch.setattr(
            Path, "replace", lambda self, to: steps.append("rename") or replace(self, to)
        )
        with atomic_write(path) as file:
            file.write(b"new")
        assert [step.endswith(".partial") for step in steps] == [True, False, False]
        assert steps[1:] == ["rename", str(tmp_path)]


class TestLock:
    def test_is_released_when_the_block_fails(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        with pytest.raises(ZeroDivisionError), lock(path, "first"):
            raise ZeroDivisionError
        assert lock_holder(path) is None

    def test_refuses_a_second_holder_and_shows_the_note_of_the_first(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        with lock(path, "first"):
            with pytest.raises(Locked, match=r"^first$"), lock(path, "second"):
                raise AssertionError
            assert lock_holder(path) == "first"

    def test_a_missing_file_has_no_holder(self, tmp_path: Path) -> None:
        assert lock_holder(tmp_path / "lock") is None
        assert list(tmp_path.iterdir()) == []

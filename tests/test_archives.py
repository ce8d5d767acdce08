"""Model archives: checked, and copied from the model store to the folder that serves."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in import write_archive

from serving.deployment import archives
from serving.deployment.archives import BadArchive
from serving.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(run_dir=tmp_path / "run", model_store=tmp_path / "store")


@pytest.fixture
def built(settings: Settings) -> Path:
    """Build an archive of version 3.0 in the model store."""
    path = archives.built(settings, "3.0")
    write_archive(path, "3.0")
    return path


def files(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.archives.glob("*"))


def write_entry(archive: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name, content)


class TestCheck:
    def test_returns_the_hash(self, built: Path) -> None:
        found = archives.check(built, "3.0")
        assert found == archives.noted_digest(built) == archives.digest(built)
        assert archives.check(built, "3.0", found.upper()) == found

    def test_missing(self, built: Path) -> None:
        for path in (built.with_name("other.mar"), built.parent):
            with pytest.raises(BadArchive, match=f"{path} is missing: run `make mar`"):
                archives.check(path, "3.0")

    def test_wrong_hash(self, built: Path) -> None:
        expected = f"begins with {archives.digest(built)[:12]}, not abababababab"
        with pytest.raises(BadArchive, match=expected):
            archives.check(built, "3.0", "AB" * 32)

    @pytest.mark.parametrize(("name", "version"), [("bloodcells", "1.0"), ("redcells", "3.0")])
    def test_another_model_or_version(self, built: Path, name: str, version: str) -> None:
        sha256 = write_archive(built, version, name)
        with pytest.raises(BadArchive, match=f"holds {name} {version}, not bloodcells 3.0"):
            archives.check(built, "3.0", sha256)

    @pytest.mark.parametrize("length", [0, 1, 40, 150, -1])
    def test_truncated(self, built: Path, length: int) -> None:
        built.write_bytes(built.read_bytes()[:length])
        with pytest.raises(BadArchive, match="is damaged"):
            archives.check(built, "3.0")

    @given(st.data())
    def test_no_changed_byte_crashes_or_passes_the_hash(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        path = tmp_path_factory.mktemp("store") / "bloodcells-3.0.mar"
        sha256 = write_archive(path, "3.0")
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        with pytest.raises(BadArchive):
            archives.check(path, "3.0", sha256)
        # Without a hash, a changed timestamp passes.
        with contextlib.suppress(BadArchive):
            archives.check(path, "3.0")

    @pytest.mark.parametrize("manifest", [{}, [], {"model": None}, {"model": {}}, "3.0", None])
    def test_manifest_without_a_model(self, built: Path, manifest: Any) -> None:
        write_entry(built, "MAR-INF/MANIFEST.json", json.dumps(manifest).encode())
        with pytest.raises(BadArchive, match="names no model and version"):
            archives.check(built, "3.0")

    @pytest.mark.parametrize("content", [None, "", "\n"])
    def test_the_file_with_the_hash_may_be_missing_or_empty(
        self, built: Path, content: str | None
    ) -> None:
        note = built.with_name(f"{built.name}.sha256")
        note.unlink()
        if content is not None:
            note.write_text(content)
        assert archives.noted_digest(built) is None


class TestInstall:
    def test_copies_the_same_bytes_for_its_owner(self, settings: Settings, built: Path) -> None:
        sha256 = archives.install(settings, built, "3.0")
        deployed = archives.deployed(settings, "3.0")
        assert deployed.read_bytes() == built.read_bytes()
        assert files(settings) == ["bloodcells-3.0.mar"]
        assert settings.archives.stat().st_mode & 0o077 == 0
        assert write_archive(built, "3.0", note="a later build") != sha256
        assert archives.digest(deployed) == sha256

    @pytest.mark.parametrize("problem", ["missing", "damaged", "wrong hash", "disk full"])
    def test_a_failure_keeps_the_archive_before(
        self, settings: Settings, built: Path, problem: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fill_disk(source: BinaryIO, target: BinaryIO) -> None:
            target.write(source.read(100))
            raise OSError(28, "No space left on device")

        before = archives.install(settings, built, "3.0")
        sha256 = write_archive(built, "3.0", note="a later build")
        if problem == "missing":
            built.unlink()
        elif problem == "damaged":
            built.write_bytes(b"PK half of it")
        elif problem == "wrong hash":
            sha256 = "0" * 64
        else:
            monkeypatch.setattr(shutil, "copyfileobj", fill_disk)
        with pytest.raises((BadArchive, OSError)):
            archives.install(settings, built, "3.0", sha256)
        assert archives.digest(archives.deployed(settings, "3.0")) == before
        assert files(settings) == ["bloodcells-3.0.mar"]

    def test_refuses_an_archive_that_changes_during_the_copy(
        self, settings: Settings, built: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            shutil, "copyfileobj", lambda source, target: target.write(b"a later build")
        )
        with pytest.raises(BadArchive, match="changed while it was copied"):
            archives.install(settings, built, "3.0")
        assert files(settings) == []


class TestProvide:
    def test_without_a_pin_installs_the_build(self, settings: Settings, built: Path) -> None:
        for note in ("first", "second"):
            sha256 = write_archive(built, "3.0", note=note)
            assert archives.provide(settings, "3.0", None) == sha256
            assert archives.digest(archives.deployed(settings, "3.0")) == sha256

    def test_with_a_pin_keeps_the_pinned_archive_after_a_later_build(
        self, settings: Settings, built: Path
    ) -> None:
        pin = archives.install(settings, built, "3.0")
        write_archive(built, "3.0", note="a later build")
        assert archives.provide(settings, "3.0", pin.upper()) == pin
        built.unlink()
        assert archives.provide(settings, "3.0", pin) == pin
        assert archives.digest(archives.deployed(settings, "3.0")) == pin

    @pytest.mark.parametrize("deployed", ["none", "another", "damaged"])
    def test_installs_a_pinned_build(self, settings: Settings, built: Path, deployed: str) -> None:
        if deployed == "another":
            archives.install(settings, built, "3.0")
        elif deployed == "damaged":
            settings.archives.mkdir(parents=True)
            archives.deployed(settings, "3.0").write_bytes(b"PK half of it")
        pin = write_archive(built, "3.0", note="the pinned one")
        assert archives.provide(settings, "3.0", pin) == pin
        assert archives.digest(archives.deployed(settings, "3.0")) == pin

    def test_refuses_a_build_without_the_pinned_hash(self, settings: Settings, built: Path) -> None:
        before = archives.install(settings, built, "3.0")
        with pytest.raises(BadArchive, match="is not the expected one"):
            archives.provide(settings, "3.0", "ab" * 32)
        assert archives.digest(archives.deployed(settings, "3.0")) == before

    def test_refuses_a_build_that_differs_from_the_hash_beside_it(
        self, settings: Settings, built: Path
    ) -> None:
        note = built.with_name(f"{built.name}.sha256")
        note.write_text(f"{'ab' * 32}  {built.name}\n")
        with pytest.raises(BadArchive, match="is not the expected one"):
            archives.provide(settings, "3.0", None)
        assert files(settings) == []
        note.unlink()
        assert archives.provide(settings, "3.0", None) == archives.digest(built)


class TestReadJson:
    def test_returns_the_document(self, built: Path) -> None:
        assert archives.read_json(built, "card.json")["version"] == "3.0"

    @pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
    def test_missing_or_invalid(self, built: Path, content: bytes | None) -> None:
        write_entry(built, "other" if content is None else "card.json", content or b"")
        with pytest.raises(BadArchive, match=r"has no card\.json"):
            archives.read_json(built, "card.json")

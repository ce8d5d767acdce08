"""The archives on their way from where they are built to where they are served from."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import hypothesis
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
    """Return an archive of version 2.0 that was built."""
    path = archives.built(settings, "2.0")
    write_archive(path, "2.0")
    return path


def files(settings: Settings) -> list[str]:
    """Return the names of what lies where archives are served from."""
    return sorted(path.name for path in settings.archives.glob("*"))


class TestCheck:
    def test_tells_the_hash_of_the_right_one(self, built: Path) -> None:
        found = archives.check(built, "2.0")
        assert found == archives.noted_digest(built) == archives.digest(built)
        assert archives.check(built, "2.0", found) == found
        assert archives.check(built, "2.0", found.upper()) == found

    def test_one_that_is_missing(self, built: Path) -> None:
        for path in (built.with_name("other.mar"), built.parent):
            with pytest.raises(BadArchive, match=f"{path} is missing: run `make mar`"):
                archives.check(path, "2.0")

    def test_another_hash(self, built: Path) -> None:
        wrong = "AB" * 32
        said = f"begins with {archives.digest(built)[:12]}, not abababababab"
        with pytest.raises(BadArchive, match=said):
            archives.check(built, "2.0", wrong)

    @pytest.mark.parametrize(
        ("name", "version", "said"),
        [
            ("bloodcells", "1.0", "says that it is bloodcells 1.0, not bloodcells 2.0"),
            ("redcells", "2.0", "says that it is redcells 2.0, not bloodcells 2.0"),
        ],
    )
    def test_what_says_that_it_is_another(
        self, built: Path, name: str, version: str, said: str
    ) -> None:
        sha256 = write_archive(built, version, name)
        with pytest.raises(BadArchive, match=said):
            archives.check(built, "2.0", sha256)

    @pytest.mark.parametrize("length", [0, 1, 40, 150, -1])
    def test_one_that_was_cut_off(self, built: Path, length: int) -> None:
        built.write_bytes(built.read_bytes()[:length])
        with pytest.raises(BadArchive, match="is damaged"):
            archives.check(built, "2.0")

    def test_one_with_a_byte_changed(self, built: Path) -> None:
        content = built.read_bytes().replace(b'"version": "2.0"', b'"version": "2.1"')
        built.write_bytes(content)
        with pytest.raises(BadArchive, match=r"is damaged \(in card\.json\)"):
            archives.check(built, "2.0")

    @hypothesis.settings(deadline=None, max_examples=300)
    @given(st.data())
    def test_no_damage_is_a_crash(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        path = tmp_path_factory.mktemp("store") / "bloodcells-2.0.mar"
        sha256 = write_archive(path, "2.0")
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        with pytest.raises(BadArchive):
            archives.check(path, "2.0", sha256)
        # Without a hash some damage may pass, such as of a time. But none is another error.
        with contextlib.suppress(BadArchive):
            archives.check(path, "2.0")

    @pytest.mark.parametrize("manifest", [{}, [], {"model": None}, {"model": {}}, "2.0", None])
    def test_one_that_does_not_say_what_it_is(self, built: Path, manifest: Any) -> None:
        with zipfile.ZipFile(built, "w") as file:
            file.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        with pytest.raises(BadArchive, match="does not say what it is"):
            archives.check(built, "2.0")

    def test_a_zip_file_that_is_no_archive(self, built: Path) -> None:
        with zipfile.ZipFile(built, "w") as file:
            file.writestr("weights.pt", b"")
        with pytest.raises(BadArchive, match=r"holds no MAR-INF/MANIFEST\.json"):
            archives.check(built, "2.0")

    @pytest.mark.parametrize("content", [None, "", "\n"])
    def test_a_hash_may_not_be_noted(self, built: Path, content: str | None) -> None:
        note = built.with_name(f"{built.name}.sha256")
        note.unlink()
        if content is not None:
            note.write_text(content)
        assert archives.noted_digest(built) is None


class TestTake:
    def test_copies_the_very_bytes(self, settings: Settings, built: Path) -> None:
        sha256 = archives.take(settings, built, "2.0")
        assert sha256 == archives.digest(built)
        assert archives.deployed(settings, "2.0").read_bytes() == built.read_bytes()
        assert files(settings) == ["bloodcells-2.0.mar"]
        assert settings.archives.stat().st_mode & 0o077 == 0

    def test_what_is_built_later_is_not_what_serves(self, settings: Settings, built: Path) -> None:
        sha256 = archives.take(settings, built, "2.0")
        assert write_archive(built, "2.0", note="built anew") != sha256
        assert archives.digest(archives.deployed(settings, "2.0")) == sha256

    @pytest.mark.parametrize("problem", ["missing", "damaged", "another", "full"])
    def test_a_failure_leaves_the_one_before(
        self, settings: Settings, built: Path, problem: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = archives.take(settings, built, "2.0")
        copy = shutil.copyfile

        def half(source: Path, target: Path) -> None:
            copy(source, target)
            target.write_bytes(target.read_bytes()[:100])
            raise OSError(28, "No space left on device")

        sha256 = write_archive(built, "2.0", note="built anew")
        if problem == "missing":
            built.unlink()
        elif problem == "damaged":
            built.write_bytes(b"PK half of it")
        elif problem == "another":
            sha256 = "0" * 64
        else:
            monkeypatch.setattr(shutil, "copyfile", half)
        with pytest.raises((BadArchive, OSError)):
            archives.take(settings, built, "2.0", sha256)
        assert archives.digest(archives.deployed(settings, "2.0")) == before
        assert files(settings) == ["bloodcells-2.0.mar"]

    def test_one_that_changes_while_it_is_copied_is_not_taken(
        self, settings: Settings, built: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = shutil.copyfile

        def late(source: Path, target: Path) -> None:
            write_archive(built, "2.0", note="built anew")
            copy(source, target)

        monkeypatch.setattr(shutil, "copyfile", late)
        with pytest.raises(BadArchive, match="changes while it is copied"):
            archives.take(settings, built, "2.0")
        assert files(settings) == []


class TestProvide:
    def test_without_a_pin_the_one_that_is_built_serves(
        self, settings: Settings, built: Path
    ) -> None:
        first = archives.provide(settings, "2.0", None)
        assert first == archives.digest(archives.deployed(settings, "2.0"))
        second = write_archive(built, "2.0", note="built anew")
        assert archives.provide(settings, "2.0", None) == second != first
        assert archives.digest(archives.deployed(settings, "2.0")) == second

    def test_with_a_pin_the_very_one_serves_whatever_is_built(
        self, settings: Settings, built: Path
    ) -> None:
        pin = archives.take(settings, built, "2.0")
        write_archive(built, "2.0", note="built anew")
        assert archives.provide(settings, "2.0", pin) == pin
        assert archives.provide(settings, "2.0", pin.upper()) == pin
        built.unlink()
        assert archives.provide(settings, "2.0", pin) == pin
        assert archives.digest(archives.deployed(settings, "2.0")) == pin

    @pytest.mark.parametrize("deployed", ["none", "another", "damaged"])
    def test_a_pinned_one_is_taken_from_what_is_built(
        self, settings: Settings, built: Path, deployed: str
    ) -> None:
        if deployed == "another":
            archives.take(settings, built, "2.0")
        elif deployed == "damaged":
            settings.archives.mkdir(parents=True)
            archives.deployed(settings, "2.0").write_bytes(b"PK half of it")
        pin = write_archive(built, "2.0", note="the pinned one")
        assert archives.provide(settings, "2.0", pin) == pin
        assert archives.digest(archives.deployed(settings, "2.0")) == pin

    def test_a_pin_that_nothing_fits_is_refused(self, settings: Settings, built: Path) -> None:
        before = archives.take(settings, built, "2.0")
        with pytest.raises(BadArchive, match="is not the one that is meant"):
            archives.provide(settings, "2.0", "ab" * 32)
        assert archives.digest(archives.deployed(settings, "2.0")) == before

    def test_what_is_built_must_fit_the_hash_beside_it(
        self, settings: Settings, built: Path
    ) -> None:
        note = built.with_name(f"{built.name}.sha256")
        note.write_text(f"{'ab' * 32}  {built.name}\n")
        with pytest.raises(BadArchive, match="is not the one that is meant"):
            archives.provide(settings, "2.0", None)
        assert files(settings) == []
        note.unlink()
        assert archives.provide(settings, "2.0", None) == archives.digest(built)

    def test_one_that_nobody_built(self, settings: Settings) -> None:
        with pytest.raises(BadArchive, match=r"bloodcells-2\.0\.mar is missing: run `make mar`"):
            archives.provide(settings, "2.0", None)


class TestRead:
    def test_a_document(self, built: Path) -> None:
        assert archives.read_json(built, "card.json")["version"] == "2.0"

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
    def test_what_is_no_document(self, built: Path, content: bytes) -> None:
        with zipfile.ZipFile(built, "w") as file:
            file.writestr("card.json", content)
        with pytest.raises(BadArchive, match=r"holds no card\.json"):
            archives.read_json(built, "card.json")

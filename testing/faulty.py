"""Archives made from a good one, each with a fault that the service must handle."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

Contents = dict[str, bytes]
HANDLER = "bloodcells_handler.py"


def remade(source: Path, target: Path, version: str, *faults: Callable[[Contents], None]) -> Path:
    """Write a copy of an archive as another version, with faults, and its SHA-256 beside it."""
    with zipfile.ZipFile(source) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    _edit_json(
        contents, "MAR-INF/MANIFEST.json", lambda it: it["model"].update(modelVersion=version)
    )
    _edit_json(contents, "card.json", lambda card: card.update(version=version))
    for fault in faults:
        fault(contents)
    with zipfile.ZipFile(target, "w") as new:
        for name, content in contents.items():
            new.writestr(name, content)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    target.with_name(f"{target.name}.sha256").write_text(f"{digest}  {target.name}\n")
    return target


def cut_off(archive: Path) -> Path:
    """Truncate an archive, like a broken download; the SHA-256 beside it matches."""
    rest = archive.read_bytes()[:-1000]
    archive.write_bytes(rest)
    digest = hashlib.sha256(rest).hexdigest()
    archive.with_name(f"{archive.name}.sha256").write_text(f"{digest}  {archive.name}\n")
    return archive


def tampered_with(archive: Path) -> Path:
    """Change an archive, but not the SHA-256 beside it."""
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("more.py", "")
    return archive


def other_answers(contents: Contents) -> None:
    """Swap the known answers of the archive."""

    def turn(answers: dict[str, dict[str, float]]) -> None:
        for shares in answers.values():
            values = [*shares.values()]
            shares.update(zip(shares, [*values[1:], values[0]], strict=True))

    _edit_json(contents, "golden.json", turn)


def crash_at_start(contents: Contents) -> None:
    """Make the handler end its process when it is loaded."""
    contents[HANDLER] = b"import os\n\nos._exit(3)\n"


def fail_now_and_then(contents: Contents) -> None:
    """Make every fourth batch raise, like a fault that only some images trigger."""
    _before_each_batch(
        contents,
        "self.batches = getattr(self, 'batches', 0) + 1\n"
        "        if self.batches > 40 and self.batches % 4 == 0:\n"
        "            raise ValueError",
    )


def slow(contents: Contents) -> None:
    """Delay each batch by a third of a second."""
    _before_each_batch(contents, "__import__('time').sleep(0.33)")


def _before_each_batch(contents: Contents, statement: str) -> None:
    mark = b"        headers = [context"
    code = contents[HANDLER]
    assert code.count(mark) == 1
    contents[HANDLER] = code.replace(mark, f"        {statement}\n".encode() + mark)


def _edit_json(contents: Contents, name: str, edit: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    document = json.loads(contents[name])
    edit(document)
    contents[name] = json.dumps(document).encode()

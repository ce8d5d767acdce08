"""Check the relative links and anchors of the repository's Markdown files: part of `make lint`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?[^)]*\)")
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.M)
ELSEWHERE = re.compile(r"[a-z]+:")


def main() -> int:
    listed = subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True)
    broken = [each for name in listed.splitlines() for each in broken_links(ROOT / name)]
    print("\n".join(broken), end="\n" if broken else "")
    return 1 if broken else 0


def broken_links(file: Path) -> Iterator[str]:
    """Yield a line for each broken link of a file."""
    for link in LINK.findall(FENCE.sub("", file.read_text())):
        path, _, anchor = unquote(link).partition("#")
        target = file.parent / path if path else file
        if ELSEWHERE.match(link):
            continue
        if not target.exists():
            yield f"{file}: {link}: no such file"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
            yield f"{file}: {link}: no such heading"


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a Markdown text."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        # Of a link, only its text counts.
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 1
        while (unique := anchor if number == 1 else f"{anchor}-{number - 1}") in found:
            number += 1
        found.add(unique)
    return found


if __name__ == "__main__":
    sys.exit(main())

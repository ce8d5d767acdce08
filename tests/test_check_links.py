"""The check of Markdown links finds all broken links and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.check_links import anchors, broken_links


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("other.md", None),
        ("other.md#two-words-here", None),
        ("#here", None),
        ("https://example.org/none", None),
        ("none.md", "no such file"),
        ("other.md#none", "no such heading"),
        ("#none", "no such heading"),
    ],
)
def test_a_broken_link_is_reported(tmp_path: Path, link: str, problem: str | None) -> None:
    (tmp_path / "other.md").write_text("## Two words, here\n")
    file = tmp_path / "page.md"
    file.write_text(f"# Here\n\nSee [a link]({link}).\n\n```\n[not a link](code.md)\n```\n")
    assert list(broken_links(file)) == ([f"{file}: {link}: {problem}"] if problem else [])


def test_repeated_headings_are_numbered() -> None:
    assert anchors("# A [link](x.md)\n# `Code`: 1.0\n# A link\n") == {
        "a-link",
        "code-10",
        "a-link-1",
    }

"""Edits of a YAML file that keep its comments, order, quotes and indentation.

ruamel.yaml stores the comment lines between two entries with the last value before them. They
describe the entry that follows, so an edit moves them along with that entry.
"""

from __future__ import annotations

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken
from ruamel.yaml.util import load_yaml_guess_indent

# Where ruamel.yaml keeps the comment after a value.
AFTER = 2
NULL = "tag:yaml.org,2002:null"


def edited(text: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return YAML text that holds `before`, changed to hold `after`."""
    document = _yaml().load(text)
    _edit(document, before, after)
    return dumped(document, load_yaml_guess_indent(text)[1] or 2)


def dumped(document: dict[str, Any], indent: int = 2) -> str:
    """Return a document as YAML."""
    stream = StringIO()
    yaml = _yaml()
    yaml.indent = indent
    yaml.dump(document, stream)
    return stream.getvalue()


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    # Never fold a line.
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar(NULL, "null")
    )
    return yaml


def _edit(node: CommentedMap, before: dict[str, Any], after: dict[str, Any]) -> None:
    for key, value in after.items():
        old = before.get(key)
        if value == old and key in before:
            continue
        if isinstance(value, dict) and isinstance(old, dict):
            _edit(node[key], old, value)
        else:
            _set(node, key, value)
    for key in before.keys() - after.keys():
        _remove(node, key)


def _set(node: CommentedMap, key: str, value: Any) -> None:
    last = key if key in node else list(node)[-1]
    below = _take_below(node, last)
    node[key] = _commented(value)
    _put_below(node, key, below)


def _remove(node: CommentedMap, key: str) -> None:
    below = _take_below(node, key)
    keys = list(node)
    place = keys.index(key)
    del node[key]
    if place:
        _put_below(node, keys[place - 1], below)
    elif lines := [line.strip().removeprefix("#").strip() for line in below.splitlines()]:
        node.yaml_set_comment_before_after_key(keys[1], "\n".join(lines), indent=node.lc.col)


def _take_below(node: CommentedMap, key: str) -> str:
    """Cut off and return the comment lines below an entry."""
    node, key = _last_leaf(node, key)
    token = node.ca.items[key][AFTER] if key in node.ca.items else None
    if token is None:
        return ""
    token.value, newline, below = token.value.partition("\n")
    token.value += newline
    return str(below)


def _put_below(node: CommentedMap, key: str, lines: str) -> None:
    if lines:
        node, key = _last_leaf(node, key)
        slots = node.ca.items.setdefault(key, [None, None, None, None])
        if slots[AFTER]:
            slots[AFTER].value += lines
        else:
            slots[AFTER] = CommentToken(f"\n{lines}", CommentMark(0), None)


def _last_leaf(node: CommentedMap, key: str) -> tuple[CommentedMap, str]:
    value = node[key]
    if isinstance(value, CommentedMap) and value and not value.fa.flow_style():
        return _last_leaf(value, list(value)[-1])
    return node, key


def _commented(value: Any) -> Any:
    if isinstance(value, dict):
        return CommentedMap({key: _commented(each) for key, each in value.items()})
    return value

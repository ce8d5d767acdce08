"""The classes and the limits are the same wherever they are written."""

from __future__ import annotations

import json
import re

import pytest
from conftest import CARDS

from frontend.languages import CELLS
from handler.contract import KINDS, MAX_BYTES, kind_of
from serving.settings import ROOT
from serving.torchserve.config import read_properties

EDGE = (ROOT / "deploy" / "nginx" / "edge.conf").read_text()


@pytest.mark.parametrize("version", CARDS)
def test_a_version_answers_with_the_classes_of_its_card(version: str) -> None:
    golden = json.loads((ROOT / "models" / version / "golden.json").read_text())
    for probabilities in golden.values():
        assert list(probabilities) == CARDS[version]["classes"]
    assert set(CARDS[version]["classes"]) <= set(CELLS)


@pytest.mark.parametrize(
    "limit",
    [
        int(read_properties(ROOT / "config.properties")["max_request_size"]),
        *(int(size) << 20 for size in re.findall(r"client_max_body_size (\d+)m;", EDGE)),
    ],
)
def test_a_request_may_hold_the_largest_image_in_base64(limit: int) -> None:
    assert MAX_BYTES * 4 / 3 < limit <= MAX_BYTES * 3 / 2


def test_the_documented_limits_are_those_of_the_handler() -> None:
    for name in ("docs/openapi.yaml", "config.properties"):
        assert f"{MAX_BYTES >> 20} MiB" in (ROOT / name).read_text()


def test_an_image_is_known_by_its_first_bytes() -> None:
    assert kind_of(b"RIFF\0\0\0\0WAVE") is None
    assert kind_of(b"") is None
    for name, kind in KINDS.items():
        assert {kind_of(start + b"\0\0\0\0WEBP") for start in kind.signatures} == {name}

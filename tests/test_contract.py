"""The classes and the limits are the same where Python's constants cannot be imported."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from frontend.languages import CELLS
from handler.contract import CLASSES, KINDS, MAX_BYTES, kind_of
from serving.settings import ROOT
from serving.torchserve.config import read_properties

OPENAPI: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text())
EDGE = (ROOT / "deploy" / "nginx" / "edge.conf").read_text()


def test_every_part_knows_the_same_classes_in_the_same_order() -> None:
    schemas = OPENAPI["components"]["schemas"]
    assert tuple(CELLS) == CLASSES
    assert tuple(schemas["Class"]["enum"]) == CLASSES
    assert tuple(schemas["Probabilities"]["required"]) == CLASSES


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

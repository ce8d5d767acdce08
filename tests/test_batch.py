"""What a batch may cost: expensive requests are put off, and others are answered."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from handler.batch import (
    EXPENSIVE,
    MANY,
    MAX_BATCH_COST,
    MAX_CELLS,
    PREDICTION_COST,
    REST,
    Request,
    Turn,
    decoded_images,
    split,
)
from handler.bloodcells_handler import BloodCellHandler
from handler.bounds import MAX_COST, InputError
from handler.preprocessing import DecodedImage, OpenedImage, squashed, within_field
from handler.verdict import Prediction
from testing.formats import encoded

IMAGE = DecodedImage(np.zeros((60, 80, 3), np.uint8), 80, 60)


def decode(fit: object) -> DecodedImage:
    return IMAGE


def request(*costs: int) -> Request:
    """Return a request whose images cost this to decode."""
    return Request([OpenedImage(cost, decode) for cost in costs], True, False)


def is_put_off(request: Request) -> bool:
    [*_, last] = request.images
    return isinstance(last, InputError) and last.type == "ServiceBusy"


@pytest.fixture
def turn(tmp_path: Path) -> Turn:
    return Turn(tmp_path / "lock", clock=lambda: 0.0)


def put_off(requests: Sequence[Request], turn: Turn) -> list[bool]:
    split(requests, turn)
    return [is_put_off(each) for each in requests]


# The largest that is not expensive, and one that is.
MOST = EXPENSIVE + PREDICTION_COST // 4
LARGE = MOST + 1


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([[0], [MOST], [MOST]], [False] * 3),
        # The most expensive of the others, wherever it stands.
        ([[MOST], [MOST - 1], [MOST - 1]], [True, False, False]),
        # One expensive request, with or without others.
        ([[LARGE], [0], [LARGE]], [False, False, True]),
        ([[LARGE], [LARGE]], [False, True]),
        ([[MAX_COST]], [False]),
        # Many images take long anyway, so they may take longer to decode.
        ([[EXPENSIVE // 10] * 10 + [2]], [False]),
    ],
)
def test_requests_of_large_images_are_put_off(
    costs: Sequence[Sequence[int]], expected: list[bool], turn: Turn
) -> None:
    assert put_off([request(*each) for each in costs], turn) == expected


def test_requests_of_many_images_are_put_off(turn: Turn) -> None:
    images = [0] * (MANY // PREDICTION_COST)
    requests = [request(*images) for _ in range(MAX_BATCH_COST // MANY)]
    assert put_off([*requests, request(0)], turn) == [False] * (len(requests) - 1) + [True, False]


def test_requests_of_more_images_or_heat_maps_are_expensive(turn: Turn) -> None:
    many = [0] * (MANY // PREDICTION_COST + 1)
    assert put_off([request(*many), request(0), request(*many)], turn) == [False, False, True]
    turn.give()
    explained = [request(0), request(0), Request([InputError(400, "EmptyImage", "")], True, True)]
    for each in explained:
        each.explain = True
    assert put_off([*explained, request(0)], turn) == [False, True, False, False]


def test_an_error_costs_nothing(turn: Turn) -> None:
    errors = Request([InputError(400, "EmptyImage", "")] * 1000, True, False)
    assert put_off([errors, request(1)], turn) == [False, False]


def test_one_worker_at_a_time_answers_an_expensive_request(turn: Turn, tmp_path: Path) -> None:
    other = Turn(tmp_path / "lock")
    assert put_off([request(LARGE)], turn) == [False]
    assert put_off([request(LARGE), request(0)], other) == [True, False]
    turn.give()
    assert put_off([request(LARGE)], other) == [False]


def test_a_worker_pauses_between_expensive_requests_beside_others(tmp_path: Path) -> None:
    now = [100.0]
    turn = Turn(tmp_path / "lock", clock=lambda: now[0])

    def answer(*others: Request) -> bool:
        large = request(LARGE)
        split([large, *others], turn)
        now[0] += 0.5
        turn.give()
        return not is_put_off(large)

    assert answer(request(0))
    assert not answer(request(0))
    # No other request waits for one that is alone.
    assert answer(Request([InputError(400, "EmptyImage", "")], True, False))
    assert answer()
    now[0] += 0.5 * REST - 0.1
    assert not answer(request(0))
    assert answer(request(0))


def answer_all(requests: Sequence[Request], cells: Callable[[int], int]) -> None:
    """Answer as the handler does: `cells` gives the cells of an image by its request's index."""
    for each, place in decoded_images(requests, False, squashed):
        assert each.images[place] is IMAGE
        each.cells += cells(requests.index(each))
        each.images[place] = "answer"


def kinds(request: Request) -> list[Any]:
    return [each.type if isinstance(each, InputError) else each for each in request.images]


def test_a_request_of_too_many_cells_is_answered_in_part() -> None:
    [crowded] = requests = [request(*[0] * 5)]
    answer_all(requests, lambda index: MAX_CELLS // 2)
    assert kinds(crowded) == ["answer"] * 2 + ["TooManyCells"] * 3


def test_a_request_after_too_many_cells_is_put_off() -> None:
    first, second, third = requests = [request(0, 0) for _ in range(3)]
    third.explain = True
    answer_all(requests, lambda index: MAX_CELLS // 2)
    assert kinds(first) == ["answer"] * 2
    assert (kinds(second), second.many) == (["ServiceBusy"], False)
    # Explanations are made after all predictions.
    assert list(decoded_images(requests, True, squashed)) == []
    assert kinds(third) == ["ServiceBusy"]


def test_images_are_decoded_when_their_turn_comes() -> None:
    """Pixels take memory; an image that can't be decoded is an error in its place."""

    def fail(fit: object) -> DecodedImage:
        raise InputError(400, "CorruptImage", "")

    [asked] = requests = [request(0, 0)]
    asked.images.insert(1, OpenedImage(0, fail))
    images = decoded_images(requests, False, squashed)
    assert next(images) == (asked, 0)
    assert [type(each) for each in asked.images] == [DecodedImage, OpenedImage, OpenedImage]
    assert next(images) == (asked, 2)
    assert kinds(asked) == [IMAGE, "CorruptImage", IMAGE]
    assert list(images) == []


def test_an_expensive_request_has_the_turn_until_it_is_answered(tmp_path: Path) -> None:
    other, taken = Turn(tmp_path / "lock"), []

    def predict(images: Sequence[DecodedImage]) -> list[Prediction]:
        taken.append(other.take(alone=True))
        return [Prediction([]) for _ in images]

    handler, context = BloodCellHandler(), MagicMock()
    handler.model_name, handler.turn, handler.metrics = "m", Turn(tmp_path / "lock"), MagicMock()
    handler.card = {"version": "1.0", "classes": ["A"], "finds_cells": True}
    handler.pipeline = MagicMock(predict=predict, fit=within_field)
    context.get_all_request_header.return_value = {}
    image = {"b64": base64.b64encode(encoded(Image.new("RGB", (8, 8)), "PNG")).decode()}
    images = [image] * (MANY // PREDICTION_COST + 1)
    handler.handle([{"body": {"instances": images}}], context)
    assert taken
    assert not any(taken)
    assert other.take(alone=True)

"""What a batch may cost: dear requests are put off, and their neighbours are answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from handler.batch import MAX_BATCH_COST, MAX_CELLS, PREDICTION_COST, Request, decoded_images, split
from handler.preprocessing import DecodedImage, InputError, OpenedImage

IMAGE = DecodedImage(np.zeros((60, 80, 3), np.uint8), 80, 60)


def decode(fit: object) -> DecodedImage:
    return IMAGE


def request(*costs: int) -> Request:
    """Return a request whose images cost this in all."""
    return Request([OpenedImage(cost - PREDICTION_COST, decode) for cost in costs], True, False)


def is_refused(request: Request) -> bool:
    [*_, last] = request.images
    return isinstance(last, InputError) and last.type == "ServiceBusy"


@pytest.mark.parametrize(
    ("costs", "refused"),
    [
        ([[0.5], [0.5]], [False, False]),
        ([[0.5], [0.3, 0.3]], [False, True]),
        # The dearest, wherever it stands.
        ([[0.9], [0.1], [0.2]], [True, False, False]),
        # Later ones can be served after those that were put off.
        ([[0.5], [0.6], [0.7]], [False, True, True]),
        # One alone is answered, whatever it costs.
        ([[1.5]], [False]),
        ([[1.5], [1.5]], [False, True]),
    ],
)
def test_a_batch_that_costs_too_much_is_split(
    costs: Sequence[Sequence[float]], refused: list[bool]
) -> None:
    requests = [request(*(round(cost * MAX_BATCH_COST) for cost in each)) for each in costs]
    split(requests)
    assert [is_refused(each) for each in requests] == refused


def test_an_error_costs_nothing() -> None:
    requests = [Request([InputError(400, "EmptyImage", "")] * 1000, True, False), request(1)]
    split(requests)
    assert not any(map(is_refused, requests))


def answer_all(requests: Sequence[Request], cells: Callable[[int], int]) -> None:
    """Answer as the handler does: `cells` gives the cells of an image by its request's index."""
    for each, place in decoded_images(requests, explain=False):
        each.cells += cells(requests.index(each))
        each.images[place] = "answer"


def kinds(request: Request) -> list[Any]:
    return [each.type if isinstance(each, InputError) else each for each in request.images]


def test_a_request_of_too_many_cells_is_answered_in_part() -> None:
    [crowded] = requests = [Request([IMAGE] * 5, True, False)]
    answer_all(requests, lambda index: MAX_CELLS // 2)
    assert kinds(crowded) == ["answer"] * 2 + ["TooManyCells"] * 3


def test_a_request_after_too_many_cells_is_put_off() -> None:
    first, second, third = requests = [Request([IMAGE] * 2, True, False) for _ in range(3)]
    third.explain = True
    answer_all(requests, lambda index: MAX_CELLS // 2)
    assert kinds(first) == ["answer"] * 2
    assert (kinds(second), second.many) == (["ServiceBusy"], False)
    # Explanations are made after all predictions.
    assert list(decoded_images(requests, explain=True)) == []
    assert kinds(third) == ["ServiceBusy"]

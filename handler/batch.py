"""The requests of one batch, and the bounds of what they cost.

A worker answers all requests of a batch together, so a batch takes as long as all of them. One that
would take much longer than a second is split: its dearest requests are put off, and the edge and
serving.client send them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from handler.preprocessing import DecodedImage, InputError, OpenedImage

# Of one image besides its decoding, in the unit of preprocessing.MAX_COST.
PREDICTION_COST, EXPLANATION_COST = 4_000_000, 30_000_000
MAX_BATCH_COST = 1_000_000_000
# A field can have 32 white cells. A cell costs some 2 ms, with a heat map EXPLAINED times as much.
MAX_CELLS, EXPLAINED = 512, 16
# Images for the networks at once.
PART = 16


@dataclass
class Request:
    """One request: its images, opened, then decoded, then answered; or the errors instead."""

    images: list[Any]
    # The answer is a list, even of one image.
    many: bool
    # The answer has heat maps.
    explain: bool
    # The white cells that were classified so far, an explained one counted EXPLAINED times.
    cells: int = 0

    @property
    def cost(self) -> int:
        each = EXPLANATION_COST if self.explain else PREDICTION_COST
        opened = [image.cost for image in self.images if isinstance(image, OpenedImage)]
        return sum(opened) + each * len(opened)

    def put_off(self) -> None:
        """Let the client send the request again."""
        error = InputError(503, "ServiceBusy", "The worker has too much to do: try again soon.")
        self.images, self.many = [error], False


def split(requests: Sequence[Request]) -> None:
    """Put off the dearest requests of a batch that costs too much, but never all."""
    total = 0
    for request in sorted(requests, key=lambda each: each.cost):
        if total and total + request.cost > MAX_BATCH_COST:
            request.put_off()
        total += request.cost


def decoded_images(requests: Sequence[Request], explain: bool) -> Iterator[tuple[Request, int]]:
    """Yield each image to answer, as its request and its place.

    Images of a batch that has too many white cells already are not yielded: those of a request
    that has them alone become errors, and other requests are put off.
    """
    for request in requests:
        for place, image in enumerate(request.images):
            if request.explain != explain or not isinstance(image, DecodedImage):
                continue
            if request.cells >= MAX_CELLS:
                message = "The images before this one show too many cells: send it by itself."
                request.images[place] = InputError(413, "TooManyCells", message)
            elif sum(each.cells for each in requests) >= MAX_CELLS:
                request.put_off()
                break
            else:
                yield request, place

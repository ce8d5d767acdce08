"""The requests of one batch, and the bounds of what they cost.

A worker answers all requests of a batch together, so each waits for the most expensive one.
Therefore some are put off: the edge and serving.client send them again. Only one worker at a time
decodes an expensive request, so that the others are free for everyone else.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handler.bounds import InputError
from handler.preprocessing import DecodedImage, Fit, OpenedImage, decode_opened

# All costs are in the unit of bounds.MAX_COST. This is of an image besides its decoding, if it is
# looked at twice.
PREDICTION_COST = 10_000_000
# A batch takes little longer than a second, and decoding a seventh of that.
MAX_BATCH_COST, MAX_BATCH_DECODING = 1_000_000_000, 150_000_000
# A request is expensive if its decoding costs this much more than a quarter of the rest, or if it
# costs MANY in all. An explanation always is.
EXPENSIVE, MANY = 50_000_000, 500_000_000
# After an expensive request, a worker puts off further ones for this many times its duration,
# unless they are alone in their batch. So fewer than one in a hundred other requests wait for one.
REST = 20
# A field can have 32 white cells. A cell costs some 1 ms, with a heat map EXPLAINED times as much.
MAX_CELLS, EXPLAINED = 512, 20
# Images that are decoded and answered at once.
PART = 16

# Return the body for the answers, and the length of its JSON if binary data follows.
Encode = Callable[[Sequence[Any]], tuple[bytes, int | None]]


@dataclass
class Request:
    """One request: its images, opened, then decoded, then answered; or the errors instead."""

    images: list[Any]
    # The answer is a list, even of one image.
    many: bool
    # The answer has heat maps.
    explain: bool
    # The answer has the embedding of each cell.
    embeddings: bool = False
    # Encodes the answers for a client of another protocol.
    encode: Encode | None = None
    # The white cells that were classified so far, an explained one counted EXPLAINED times.
    cells: int = 0

    @property
    def decoding(self) -> int:
        """The cost of decoding all images."""
        return sum(image.cost for image in self.images if isinstance(image, OpenedImage))

    @property
    def cost(self) -> int:
        """The cost of decoding and answering all images."""
        images = sum(isinstance(image, OpenedImage) for image in self.images)
        return self.decoding + PREDICTION_COST * images

    @property
    def is_expensive(self) -> bool:
        rest, most = self.cost - self.decoding, 0 if self.explain else MANY
        return self.cost > most or self.decoding - rest / 4 > EXPENSIVE

    def put_off(self) -> None:
        """Let the client send the request again."""
        error = InputError(503, "ServiceBusy", "The worker has too much to do: try again soon.")
        self.images, self.many = [error], False


class Turn:
    """Lets one worker at a time answer an expensive request; the workers share a file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._clock = clock
        self._taken: float | None = None
        self._rests_until = 0.0

    def take(self, alone: bool) -> bool:
        """Return whether this worker may answer an expensive request, `alone` or beside others."""
        if not alone and self._clock() < self._rests_until:
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # Another worker has it, or the disk has no locks.
            return False
        self._taken = self._clock()
        return True

    def give(self) -> None:
        """Let others take it, if this worker has it."""
        if self._taken is None:
            return
        now = self._clock()
        self._rests_until = now + REST * (now - self._taken)
        self._taken = None
        fcntl.flock(self._file, fcntl.LOCK_UN)


def split(requests: Sequence[Request], turn: Turn) -> None:
    """Put off the requests that the others should not wait for."""
    expensive = [request for request in requests if request.is_expensive]
    others = [request for request in requests if request.cost and not request.is_expensive]
    for index, request in enumerate(expensive):
        if index or not turn.take(alone=not others):
            request.put_off()
    cost = decoding = 0
    for request in sorted(others, key=lambda each: each.cost):
        fits = cost + request.cost <= MAX_BATCH_COST
        if cost and not (fits and decoding + request.decoding <= MAX_BATCH_DECODING):
            request.put_off()
        else:
            cost, decoding = cost + request.cost, decoding + request.decoding


def decoded_images(
    requests: Sequence[Request], explain: bool, fit: Fit
) -> Iterator[tuple[Request, int]]:
    """Decode each image to answer; yield its request and its place there.

    Images of a batch that has too many white cells already are not yielded: those of a request
    that has them alone become errors, and other requests are put off.
    """
    for request in requests:
        for place, image in enumerate(request.images):
            if request.explain != explain or not isinstance(image, OpenedImage):
                continue
            if request.cells >= MAX_CELLS:
                message = "The images before this one show too many cells: send it by itself."
                request.images[place] = InputError(413, "TooManyCells", message)
            elif sum(each.cells for each in requests) >= MAX_CELLS:
                request.put_off()
                break
            else:
                # In place, which frees what Pillow has loaded.
                request.images[place] = decode_opened(image, fit)
                if isinstance(request.images[place], DecodedImage):
                    yield request, place

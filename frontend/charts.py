"""The geometry of the model's charts; templates/models/_charts.html draws it.

A chart is WIDTH x HEIGHT units; what is plotted lies in the frame that the margins leave.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 22, 16, 40
# Dots between these radii, by the number of answers.
SMALL, LARGE = 2.0, 11.0

Point = tuple[float, float]


class Tick(NamedTuple):
    """Where an axis is labelled, in units of the chart, and the value there."""

    at: float
    value: float


class Line(NamedTuple):
    """A line through `points`, as SVG writes them; `kind` says how it looks and what it is."""

    kind: str
    points: str


class Chart(NamedTuple):
    """Lines or dots (x, y, radius) in a frame, with both axes."""

    across: list[Tick]
    up: list[Tick]
    lines: list[Line]
    dots: list[tuple[float, float, float]]


class Frame:
    """Maps values to units of the chart: `across` to the right, `up` upwards."""

    def __init__(self, across: Point, up: Point) -> None:
        self.across, self.up = across, up

    def x(self, value: float) -> float:
        """Return where a value lies from the left."""
        low, high = self.across
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low), 1)

    def y(self, value: float) -> float:
        """Return where a value lies from the top."""
        low, high = self.up
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low), 1)

    def line(self, kind: str, points: Sequence[Point]) -> Line:
        """Return a line through points."""
        return Line(kind, " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points))


def training(history: Mapping[str, Any]) -> dict[str, Chart]:
    """Return the charts of loss and accuracy, by epoch or by step."""
    return {what: _training(history, what) for what in ("loss", "accuracy")}


def reliability(bins: Sequence[Mapping[str, float]]) -> Chart:
    """Return how often answers of a probability were right, beside how often they should be."""
    frame = Frame((0, 1), (0, 1))
    most = max(each["count"] for each in bins)
    dots = [
        (
            frame.x(each["confidence"]),
            frame.y(each["accuracy"]),
            # The area tells the number.
            round(SMALL + (LARGE - SMALL) * (each["count"] / most) ** 0.5, 1),
        )
        for each in bins
    ]
    fifths = [value / 5 for value in range(6)]
    return Chart(
        [Tick(frame.x(value), value) for value in fifths],
        [Tick(frame.y(value), value) for value in fifths],
        [frame.line("ideal", [(0, 0), (1, 1)])],
        dots,
    )


def _training(history: Mapping[str, Any], what: str) -> Chart:
    runs = _runs(history)
    lines = {
        kind: [row[f"{part}_{what}"] for row in rows]
        for kind, part, rows in runs
        if f"{part}_{what}" in rows[0]
    }
    step = history.get("steps_a_row", 1)
    last = step * max(map(len, lines.values()))
    highest = max(max(values) for values in lines.values())
    top = 1.0 if what == "accuracy" else -(-highest // 0.5) * 0.5
    frame = Frame((0, last), (0, top))
    return Chart(
        [Tick(frame.x(value), value) for value in _ticks(last)],
        [Tick(frame.y(top * share / 4), top * share / 4) for share in range(5)],
        [
            frame.line(
                kind.partition(" ")[0],
                [(step * (index + 1), value) for index, value in enumerate(values)],
            )
            for kind, values in lines.items()
        ],
        [],
    )


def _runs(history: Mapping[str, Any]) -> list[tuple[str, str, Sequence[Mapping[str, float]]]]:
    """List what is drawn: a kind of line, the part of the data that it is of, and its rows."""
    if "seeds" not in history:
        return [("training", "train", history["rows"])]
    seeds = dict(history["seeds"])
    chosen = seeds.pop(str(history["chosen_seed"]))
    others = [(f"other {seed}", "validation", rows) for seed, rows in seeds.items()]
    return [*others, ("training", "train", chosen), ("validation", "validation", chosen)]


def _ticks(last: float) -> list[float]:
    """Return about five round numbers from 0 to the last.

    >>> _ticks(30), _ticks(3000)
    ([0, 10, 20, 30], [0, 1000, 2000, 3000])
    """
    steps = (factor * 10**power for power in range(6) for factor in (1, 2, 5))
    step = next(islice((each for each in steps if last / each <= 4), 1))
    return [step * index for index in range(int(last // step) + 1)]

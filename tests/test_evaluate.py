"""What is measured on TEST, with made-up answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training import data
from training.evaluate import on_test
from training.predict import Answers


class Version:
    """A version that gives these answers."""

    def __init__(self, predicted: list[int], verdicts: list[str]) -> None:
        scores = np.zeros(len(predicted))
        self.answers = Answers(np.array(predicted), np.array(verdicts), scores)

    def ask_files(self, _paths: list[Path], _title: str) -> Answers:
        return self.answers


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["confident", "confident", "uncertain", "rejected"], 0.5),
        (["uncertain", "uncertain", "uncertain", "rejected"], None),
    ],
)
def test_the_accuracy_of_confident_answers_is_null_without_any(
    monkeypatch: pytest.MonkeyPatch, verdicts: list[str], expected: float | None
) -> None:
    images = [data.Image(Path(), label, f"photograph {label}", "group") for label in range(4)]
    monkeypatch.setattr(data, "list_images", lambda _root, split: images * (split == "TEST"))
    measured = on_test(Version([0, 0, 2, 3], verdicts), Path())  # type: ignore[arg-type]
    assert measured["test"]["image_accuracy"]["value"] == 0.75
    assert measured["test_verdicts"]["confident"] == verdicts.count("confident") / 4
    sure = measured["test_where_confident"]
    assert (sure and sure["image_accuracy"]["value"]) == expected

"""Classify images as the service does, and record a version's known answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from handler.preprocessing import DecodedImage, Pixels, decode
from handler.verdict import Answer, Prediction, answer
from serving.deployment.known_answers import SAMPLES
from serving.settings import MODEL
from training.left_out import other_score
from training.metrics import NOT_FOUND
from training.protocol import CLASSES
from training.table import Table
from training.version_files import folder, load, write_json

BATCH = 16


@dataclass
class Answers(Table):
    """The answers to N pictures.

    `predicted` is the most probable class, also of a rejected picture, and NOT_FOUND without a
    cell. `ood` is the out-of-distribution score, from 0 to 1: the least probability of another
    cell (training/left_out.py) among the cells, and 1 without a cell.
    """

    predicted: np.ndarray
    verdicts: np.ndarray
    ood: np.ndarray


class TrainedVersion:
    """A version loaded from disk; raises DataError if it is not trained and calibrated."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.card, self.pipeline = load(name, BATCH)

    def decode(self, content: bytes) -> DecodedImage:
        return decode(content, self.pipeline.fit)

    def predict(self, pictures: Iterable[DecodedImage], title: str) -> list[Prediction]:
        """Run the networks on pictures, in batches."""
        bar = iter(tqdm(pictures, desc=f"asking about {title}", unit="image", mininterval=1))
        batches = iter(lambda: list(islice(bar, BATCH)), [])
        return [each for batch in batches for each in self.pipeline.predict(batch)]

    def answer(self, prediction: Prediction) -> Answer:
        return answer(MODEL, self.card, prediction)

    def ask(self, pictures: Iterable[DecodedImage], title: str) -> Answers:
        predictions = self.predict(pictures, title)
        answers = [self.answer(each) for each in predictions]
        return Answers(
            np.array([most_probable(each) for each in answers]),
            np.array([each["verdict"] for each in answers]),
            np.array(
                [
                    min((other_score(self.card, cell.logits) for cell in each.cells), default=1)
                    for each in predictions
                ]
            ),
        )

    def ask_files(
        self,
        paths: Iterable[Path],
        title: str,
        change: Callable[[Image.Image], Image.Image] | None = None,
    ) -> Answers:
        """Answer images, each changed first if `change` is given."""
        contents = (path.read_bytes() for path in paths)
        if change:
            contents = (_changed(content, change) for content in contents)
        return self.ask(map(self.decode, contents), title)

    def ask_pixels(self, images: Iterable[Pixels], title: str) -> Answers:
        """Answer pixels, uploaded as BMP."""
        contents = (_bmp(Image.fromarray(pixels)) for pixels in images)
        return self.ask(map(self.decode, contents), title)


def most_probable(answer: Answer) -> int:
    """Return the index in CLASSES of the most probable class, even if rejected, or NOT_FOUND."""
    if answer.get("cells") == []:
        return NOT_FOUND
    shares = answer["probabilities"]
    return CLASSES.index(max(shares, key=shares.__getitem__))


def write_golden(name: str) -> Answer:
    """Write a version's answers to the drawn samples; return the one to the neutrophil.

    An archive can be checked against these answers.
    """
    version, paths = TrainedVersion(name), sorted(SAMPLES.glob("*.png"))
    pictures = (version.decode(path.read_bytes()) for path in paths)
    answers = map(version.answer, version.predict(pictures, "drawn samples"))
    known = {path.name: answer for path, answer in zip(paths, answers, strict=True)}
    golden = {path: answer["probabilities"] for path, answer in known.items()}
    write_json(folder(name) / "golden.json", golden)
    return known["neutrophil.png"]


def _changed(content: bytes, change: Callable[[Image.Image], Image.Image]) -> bytes:
    with Image.open(BytesIO(content)) as image:
        return _bmp(change(image.convert("RGB")))


def _bmp(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "BMP")
    return out.getvalue()

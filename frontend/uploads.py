"""An upload: read from its form, bounded, and asked about; the answer is checked."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from flask import current_app, request

from serving.client import ServiceError
from serving.settings import VERSION_NAME

from . import samples, versions
from .errors import UploadError
from .languages import CELLS

VERDICTS = ("confident", "uncertain", "rejected")


class Upload(NamedTuple):
    """The bytes of an image and the name that its sender gave it."""

    image: bytes
    name: str


class Cell(NamedTuple):
    """What the model said of one cell: `label` is None where it is none of the four.

    `box` is (left, top, right, bottom) in pixels of the upright upload; None for a version that
    reads the field as a whole. Not `found` means that no cell was: the rest is the field's.
    """

    label: str | None
    verdict: str
    probabilities: dict[str, float]
    box: tuple[float, ...] | None = None
    found: bool = True


class Answer(NamedTuple):
    """What the model said of an image: of its most certain cell, and of each that it found."""

    model: str
    version: str
    best: Cell
    cells: list[Cell]
    heat_map: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Return the header that names the version."""
        named = VERSION_NAME.fullmatch(self.version)
        return {"X-Model-Version": self.version} if named else {}


def read() -> Upload:
    """Return the image of this request's form, or the sample that it names; raise UploadError."""
    if name := request.form.get("sample"):
        sample = samples.find(name)
        if sample is None:
            raise UploadError("NoImage")
        return Upload(sample.path.read_bytes(), sample.path.name)
    file = request.files.get("image")
    if file is None or not file.filename:
        raise UploadError("NoImage")
    image = file.read()
    if not image:
        raise UploadError("EmptyImage")
    if len(image) > current_app.config["MAX_IMAGE_BYTES"]:
        raise UploadError("ImageTooLarge")
    return Upload(image, file.filename)


def predict(image: bytes) -> Answer:
    """Ask the version that this request names, or the routing's; raise UploadError."""
    client, version = current_app.config["CLIENT"], _version()
    return _ask(lambda: client.predict(image, version=version, client=versions.visitor_id()))


def explain(image: bytes) -> Answer:
    """Ask the version that this request names where it looked; raise UploadError."""
    client, version = current_app.config["CLIENT"], _version()
    if version is None:
        raise UploadError("NotServed")
    answer = _ask(lambda: client.explain(image, version))
    if answer.heat_map is None:
        raise UploadError("ServiceError")
    return answer


def _version() -> str | None:
    version = versions.chosen()
    if version and not VERSION_NAME.fullmatch(version):
        raise UploadError("NotServed")
    return version or None


def _ask(question: Callable[[], dict[str, Any]]) -> Answer:
    try:
        return parse(question())
    except ServiceError as error:
        current_app.logger.warning("no answer: %s %s", error.status, error.type)
        raise UploadError(error.type) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        current_app.logger.exception("the service answered out of contract")
        raise UploadError("ServiceError") from error


def parse(answer: dict[str, Any]) -> Answer:
    """Return the service's answer; raise one of the errors of a wrong type if it is none."""
    heat_map = answer.get("heat_map")
    # A version that does not look for cells apart lists none.
    best = _cell(answer)._replace(found=answer.get("cells") != [])
    return Answer(
        model=str(answer["model"]),
        version=str(answer["version"]),
        best=best,
        cells=[_cell(each) for each in answer.get("cells", ())] or [best],
        heat_map=None if heat_map is None else str(heat_map),
    )


def _cell(said: dict[str, Any]) -> Cell:
    verdict, label = said["verdict"], said["label"]
    if verdict not in VERDICTS or (verdict != "rejected" and label not in CELLS):
        raise ValueError(f"verdict {verdict!r} of {label!r}")
    probabilities = {name: float(share) for name, share in said["probabilities"].items()}
    if set(probabilities) != set(CELLS) or any(
        not 0 <= each <= 1 for each in probabilities.values()
    ):
        raise ValueError(f"probabilities {probabilities}")
    box = tuple(float(side) for side in said["box"]) if "box" in said else None
    if box and not (len(box) == 4 and all(map(math.isfinite, box))):
        raise ValueError(f"box {box}")
    return Cell(None if verdict == "rejected" else label, verdict, probabilities, box)

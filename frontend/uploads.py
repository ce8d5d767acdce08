"""Read uploads, limit their size, send them to the service, and check its answers."""

import math
import struct
from base64 import b64encode
from collections.abc import Callable
from typing import Any, NamedTuple

from flask import current_app, request

from serving.client import ServiceError
from serving.errors import WorkerDied
from serving.settings import VERSION_NAME

from . import models, samples, versions
from .errors import UploadError

VERDICTS = ("confident", "uncertain", "rejected")


class Upload(NamedTuple):
    """The bytes of an image and its file name."""

    image: bytes
    name: str


class Cell(NamedTuple):
    """The answer for one cell: `label` is None if it is rejected.

    `box` is (left, top, right, bottom) in pixels of the upright upload, or None if the version
    classifies the whole field. Without a cell, `found` is False and the rest is the field's.
    """

    label: str | None
    verdict: str
    probabilities: dict[str, float]
    box: tuple[float, ...] | None = None
    found: bool = True
    # 32-bit floats, little-endian, in base64.
    embedding: str | None = None


class Answer(NamedTuple):
    """The answer for an image: its most certain cell, and all cells."""

    model: str
    version: str
    best: Cell
    cells: list[Cell]
    heat_map: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Return the response header that names the version."""
        named = VERSION_NAME.fullmatch(self.version)
        return {"X-Model-Version": self.version} if named else {}


def read() -> Upload:
    """Return the uploaded image, or the sample that the form names; raise UploadError."""
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
    """Classify an image with the version of the form, or the routing's; raise UploadError.

    If the form asks for embeddings, cells have them where the version has a recipe for a head.
    """
    client, version = current_app.config["CLIENT"], _version()
    embeddings = models.recipes() if request.form.get("embedding") == "true" else {}
    return _ask(
        lambda: client.predict(
            image, version=version, client=versions.visitor_id(), embeddings=embeddings
        )
    )


def explain(image: bytes) -> Answer:
    """Explain an answer of the version that the form names; raise UploadError."""
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
        current_app.logger.warning("request to the service failed: %s %s", error.status, error.type)
        kind = "WorkerDied" if isinstance(error, WorkerDied) else error.type
        raise UploadError(kind) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        current_app.logger.exception("the service returned an invalid answer")
        raise UploadError("ServiceError") from error


def parse(answer: dict[str, Any]) -> Answer:
    """Check the service's answer; raise KeyError, TypeError, ValueError or AttributeError."""
    heat_map = answer.get("heat_map")
    # A version that classifies the whole field sends no list of cells.
    best = _cell(answer)._replace(found=answer.get("cells") != [])
    return Answer(
        model=str(answer["model"]),
        version=str(answer["version"]),
        best=best,
        cells=[_cell(each) for each in answer.get("cells", ())] or [best],
        heat_map=None if heat_map is None else str(heat_map),
    )


def _cell(answer: dict[str, Any]) -> Cell:
    verdict, label = answer["verdict"], answer["label"]
    probabilities = {name: float(share) for name, share in answer["probabilities"].items()}
    if verdict not in VERDICTS or (verdict != "rejected" and label not in probabilities):
        raise ValueError(f"verdict {verdict!r} of {label!r}")
    if not probabilities or any(not 0 <= each <= 1 for each in probabilities.values()):
        raise ValueError(f"probabilities {probabilities}")
    box = tuple(float(side) for side in answer["box"]) if "box" in answer else None
    if box and not (len(box) == 4 and all(map(math.isfinite, box))):
        raise ValueError(f"box {box}")
    return Cell(
        None if verdict == "rejected" else label,
        verdict,
        probabilities,
        box,
        embedding=_packed(answer["embedding"]) if "embedding" in answer else None,
    )


def _packed(embedding: list[float]) -> str:
    if not embedding or not all(map(math.isfinite, embedding)):
        raise ValueError(f"embedding {embedding}")
    try:
        return b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()
    except (struct.error, OverflowError) as error:
        raise ValueError(f"embedding {embedding}") from error

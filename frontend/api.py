"""The requests of the page's script, one image each: answers as JSON, errors by their type."""

from typing import Any

from flask import Blueprint
from flask.typing import ResponseReturnValue

from . import images, uploads
from .uploads import Cell

bp = Blueprint("api", __name__, url_prefix="/api")


@bp.post("/predictions")
def predict() -> ResponseReturnValue:
    """Return the version and the cells of an image, and a picture if a browser can't show it.

    With `embedding=true` in the form, cells of a version with embeddings have them.
    """
    upload = uploads.read()
    answer = uploads.predict(upload.image)
    result: dict[str, Any] = {
        "version": answer.version,
        "cells": [_described(cell) for cell in answer.cells],
    }
    if images.media_type(upload.image) is None:
        shown = images.shown(upload.image)
        result |= {"picture": shown.address, "size": shown.size}
    return result, answer.headers


@bp.post("/explanations")
def explain() -> ResponseReturnValue:
    """Return a heat map to lay over the image."""
    answer = uploads.explain(uploads.read().image)
    return {"heat_map": f"data:image/png;base64,{answer.heat_map}"}, answer.headers


def _described(cell: Cell) -> dict[str, Any]:
    """Return a cell as JSON, with an embedding only if there is one."""
    described = cell._asdict()
    if cell.embedding is None:
        del described["embedding"]
    return described

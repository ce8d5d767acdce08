"""What the page's script asks for, image by image: answers as JSON, errors by their type."""

from typing import Any

from flask import Blueprint
from flask.typing import ResponseReturnValue

from . import images, uploads

bp = Blueprint("api", __name__, url_prefix="/api")


@bp.post("/predictions")
def predict() -> ResponseReturnValue:
    """Answer one image: its version and its cells, and a picture if a browser can't show it."""
    upload = uploads.read()
    answer = uploads.predict(upload.image)
    said: dict[str, Any] = {
        "version": answer.version,
        "cells": [cell._asdict() for cell in answer.cells],
    }
    if images.media_type(upload.image) is None:
        shown = images.shown(upload.image)
        said |= {"picture": shown.address, "size": shown.size}
    return said, answer.headers


@bp.post("/explanations")
def explain() -> ResponseReturnValue:
    """Tell where a version looked: a heat map to lay over the image."""
    answer = uploads.explain(uploads.read().image)
    return {"heat_map": f"data:image/png;base64,{answer.heat_map}"}, answer.headers

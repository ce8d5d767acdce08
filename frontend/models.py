"""The model's own pages."""

from flask import Blueprint

bp = Blueprint("models", __name__, url_prefix="/models")


@bp.get("")
def index() -> str:
    return ""


@bp.get("/<version>")
def version(version: str) -> str:
    return ""

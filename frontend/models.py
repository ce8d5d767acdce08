"""The model's own pages: what each version is, how good it is, whether it serves."""

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from flask import Blueprint, abort, current_app, render_template

from serving.client import ServiceError
from serving.deployment.routing import Routing
from serving.settings import ROOT

from . import charts
from .versions import age

bp = Blueprint("models", __name__, url_prefix="/models")
logger = logging.getLogger(__name__)

# In the card and the figures; the others are there for some versions only.
NEEDED = ("card", "metrics")
OPTIONAL = ("history", "served", "locator")


class Model(NamedTuple):
    """A version's files as training and evaluation wrote them; {} for one that is not there."""

    version: str
    weights_bytes: int
    card: dict[str, Any]
    metrics: dict[str, Any]
    history: dict[str, Any]
    served: dict[str, Any]
    locator: dict[str, Any]


@bp.get("")
def index() -> str:
    """List the versions, newest first."""
    return render_template("models/index.html", models=found(), routing=routing(), ready=is_ready())


@bp.get("/<version>")
def version(version: str) -> str:
    """Show one version."""
    # Only what was found is opened: a name from outside never becomes a path.
    model = next((each for each in found() if each.version == version), None)
    if model is None:
        abort(404)
    return render_template(
        "models/version.html",
        model=model,
        routing=routing(),
        ready=is_ready(),
        training=charts.training(model.history) if model.history else {},
        reliability=reliability(model),
        frame=charts,
    )


def found() -> list[Model]:
    """Return the finished versions, newest first; one whose files are broken is left out."""
    folder = Path(current_app.config.get("MODELS_DIR") or ROOT / "models")
    # Written last: a version without it is not finished.
    finished = sorted(folder.glob("*/golden.json"), key=lambda path: age(path.parent.name))
    models = [_read(path.parent) for path in reversed(finished)]
    return [model for model in models if model]


def routing() -> Routing | None:
    """Return who answers whom; None while the service is not ready."""
    current: Routing | None = current_app.config["CLIENT"].routing.read()
    return current


def is_ready() -> bool:
    """Tell whether the service answers a known image rightly."""
    try:
        current_app.config["CLIENT"].check_ready()
    except ServiceError as error:
        logger.info("the service is not ready: %s", error)
        return False
    return True


def reliability(model: Model) -> dict[str, charts.Chart]:
    """Return the charts before and after calibration; none for a version without them."""
    calibration = model.metrics.get("calibration", {})
    return {
        when: charts.reliability(calibration[when]["bins"])
        for when in ("before", "after")
        if calibration.get(when, {}).get("bins")
    }


def _read(folder: Path) -> Model | None:
    try:
        files = {name: _load(folder / f"{name}.json") for name in NEEDED}
        for name in OPTIONAL:
            path = folder / f"{name}.json"
            files[name] = _load(path) if path.exists() else {}
        return Model(folder.name, (folder / "weights.pt").stat().st_size, **files)
    except (OSError, ValueError) as error:
        logger.warning("left out version %s: %s", folder.name, error)
        return None


def _load(path: Path) -> dict[str, Any]:
    return _parsed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _parsed(path: Path, _changed: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document

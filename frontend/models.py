"""The pages about the model: what each version is, how accurate it is, whether it serves."""

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from flask import Blueprint, abort, current_app, render_template, send_file
from flask.typing import ResponseReturnValue

from serving.deployment.routing import Routing
from serving.settings import ROOT

from . import readiness
from .versions import age

bp = Blueprint("models", __name__, url_prefix="/models")
logger = logging.getLogger(__name__)

REQUIRED = ("card", "metrics")
# Only some versions have these.
OPTIONAL = ("history", "served", "few_cells")
PLOTS = ("reliability", "training")


class Model(NamedTuple):
    """A version's files as training and evaluation wrote them; {} for a missing one."""

    folder: Path
    weights_bytes: int
    card: dict[str, Any]
    metrics: dict[str, Any]
    history: dict[str, Any]
    served: dict[str, Any]
    few_cells: dict[str, Any]

    @property
    def recipe(self) -> dict[str, float] | None:
        """Return how a head is trained on a few labelled cells, None if the version can't have one.

        `confident` is the probability from which its answers have high confidence: the version's.
        """
        recipe = self.few_cells.get("recipe")
        if not recipe or not self.card.get("embedding"):
            return None
        return {**recipe, "confident": self.card["thresholds"]["confident"]}

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def plots(self) -> dict[str, Path]:
        """Return the plots that this version has, by name."""
        paths = {name: self.folder / "plots" / f"{name}.png" for name in PLOTS}
        return {name: path for name, path in paths.items() if path.is_file()}


@bp.get("")
def index() -> str:
    """List the versions, newest first."""
    return render_template("models/index.html", models=found(), **serving())


@bp.get("/<version>")
def version(version: str) -> str:
    """Show one version."""
    return render_template("models/version.html", model=find(version), **serving())


@bp.get("/<version>/plots/<name>.png")
def plot(version: str, name: str) -> ResponseReturnValue:
    """Return a plot of a version."""
    path = find(version).plots.get(name)
    return send_file(path) if path else abort(404)


def serving() -> dict[str, Any]:
    """Return the routing, None while the service is not ready, and whether it answers."""
    routing: Routing | None = current_app.config["CLIENT"].routing.read()
    error = readiness.error()
    if error:
        logger.info("the service is not ready: %s", error)
    return {"routing": routing, "ready": error is None}


def find(version: str) -> Model:
    """Return a version; answer 404 if there is no such version."""
    # Compared with the names of the folders: text from a request never becomes a path.
    return next((each for each in found() if each.version == version), None) or abort(404)


def found() -> list[Model]:
    """Return the finished versions, newest first, without those whose files are broken."""
    folder = Path(current_app.config.get("MODELS_DIR") or ROOT / "models")
    # Training writes golden.json last: a version without it is not finished.
    finished = sorted(folder.glob("*/golden.json"), key=lambda path: age(path.parent.name))
    models = [_read(path.parent) for path in reversed(finished)]
    return [model for model in models if model]


def hashes() -> dict[str, str]:
    """Return the SHA-256 of each version's network."""
    return {each.version: each.card["sha256"].get("network.onnx", "") for each in found()}


def recipes() -> dict[str, dict[str, float]]:
    """Return the recipe of each version that can have a head."""
    return {model.version: model.recipe for model in found() if model.recipe}


def _read(folder: Path) -> Model | None:
    try:
        files = {name: _load(folder / f"{name}.json") for name in REQUIRED}
        for name in OPTIONAL:
            path = folder / f"{name}.json"
            files[name] = _load(path) if path.exists() else {}
        weights_bytes = sum((folder / name).stat().st_size for name in files["card"]["sha256"])
        return Model(folder, weights_bytes, **files)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("version %s is not listed: %s", folder.name, error)
        return None


def _load(path: Path) -> dict[str, Any]:
    return _parsed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _parsed(path: Path, _changed: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document

"""The texts about answers, in one place for the templates and the script."""

from typing import Any, NamedTuple

from flask import current_app
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

from .errors import UPLOAD, Problem
from .languages import CELLS, cell_name
from .uploads import Cell


class Verdict(NamedTuple):
    """The name of a verdict, and its meaning."""

    badge: Any
    meaning: Any


VERDICTS = {
    "confident": Verdict(_l("Confident"), _l("The model is sure of this answer.")),
    "uncertain": Verdict(
        _l("Uncertain"),
        _l(
            "The model is not sure: more than one class is possible. Compare the probabilities "
            "and check the image yourself."
        ),
    ),
    "rejected": Verdict(
        _l("Not recognised"),
        _l(
            "This does not look like the stained cells that the model was trained on, so it gets "
            "no label. The probabilities are only a guess."
        ),
    ),
}
NOTHING = _l("The model found no white blood cell in this image.")


def meaning(cell: Cell) -> str:
    """Return the meaning of an answer."""
    return str(VERDICTS[cell.verdict].meaning if cell.found else NOTHING)


def heading(cell: Cell) -> str:
    """Return an answer as a headline."""
    if not cell.found:
        return str(_("No white blood cell"))
    if cell.label is None:
        return str(_("None of the classes"))
    return f"{cell_name(cell.label)}{'?' if cell.verdict == 'uncertain' else ''}"


def megabytes() -> int:
    """Return the limit of an image's size in MB."""
    return int(current_app.config["MAX_IMAGE_BYTES"] >> 20)


def advice(problem: Problem) -> str:
    """Return what to do about a problem."""
    return str(problem.advice).replace("%(limit)s", str(megabytes()))


def for_script() -> dict[str, Any]:
    """Return the texts of the script, with {} for the values that it fills in."""
    return {
        "cells": {**CELLS, "OTHER": _("None of the classes")},
        "verdicts": {name: each._asdict() for name, each in VERDICTS.items()},
        "nothing": _("No white blood cell"),
        "nothingFound": NOTHING,
        "report": _("Report, %(date)s", date="{}"),
        "problems": {
            kind: {"title": each.title, "advice": advice(each)} for kind, each in UPLOAD.items()
        },
        "waiting": _("Waiting"),
        "asking": _("Analysing…"),
        "cancelled": _("Cancelled"),
        "notRead": _("No answer"),
        "answered": _("%(count)s of %(total)s images classified", count="{}", total="{}"),
        "allAnswered": _("Done."),
        "cellOf": _("cell %(number)s of %(total)s", number="{}", total="{}"),
        "model": _("model: %(name)s", name="{}"),
        "by": _("Classified by version %(version)s", version="{}"),
        "noExplanation": _("The heat map could not be created. Try again."),
        "tooMany": _("At most %(limit)s images at a time: the others were not added.", limit="{}"),
        "noLabels": _("Label cells first: select one and press a number key."),
    }

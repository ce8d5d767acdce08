"""What the page says of an answer, in one place for its templates and its script."""

from typing import Any, NamedTuple

from flask import current_app
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

from .errors import UPLOAD
from .languages import CELLS
from .uploads import Cell


class Verdict(NamedTuple):
    """A verdict in a word, and what it means."""

    badge: Any
    meaning: Any


VERDICTS = {
    "confident": Verdict(_l("Confident"), _l("The model is sure of this answer.")),
    "uncertain": Verdict(
        _l("Uncertain"),
        _l(
            "The model is not sure: more than one cell is possible. Compare the probabilities, "
            "and look for yourself."
        ),
    ),
    "rejected": Verdict(
        _l("No answer"),
        _l(
            "This does not look like the stained cells that the model knows, so it gives no name. "
            "The probabilities only show what it would have guessed."
        ),
    ),
}


NOTHING = _l("The model found no white blood cell in this image.")


def meaning(cell: Cell) -> str:
    """Return what an answer means."""
    return str(VERDICTS[cell.verdict].meaning if cell.found else NOTHING)


def heading(cell: Cell) -> str:
    """Return an answer as a headline."""
    label, verdict = cell.label, cell.verdict
    if not cell.found:
        return str(_("No white blood cell"))
    if verdict == "rejected" or label is None:
        return str(_("None of the four cells"))
    name = CELLS[label]
    return str(name if verdict == "confident" else _("%(name)s, perhaps", name=name))


def for_script() -> dict[str, Any]:
    """Return every text that the script puts on the page; {} stands where it fills something in."""
    megabytes = current_app.config["MAX_IMAGE_BYTES"] // 1048576
    return {
        "cells": {**CELLS, "OTHER": _("None of the four")},
        "verdicts": {name: each._asdict() for name, each in VERDICTS.items()},
        "perhaps": _("%(name)s, perhaps", name="{}"),
        "none": _("None of the four cells"),
        "nothing": _("No white blood cell"),
        "nothingFound": NOTHING,
        "report": _("Report of %(date)s", date="{}"),
        "problems": {
            kind: {
                "title": each.title,
                "advice": str(each.advice).replace("%(limit)s", str(megabytes)),
            }
            for kind, each in UPLOAD.items()
        },
        "waiting": _("Waiting"),
        "asking": _("Looking at the image…"),
        "cancelled": _("Cancelled"),
        "notRead": _("Not answered"),
        "answered": _("Answered: %(count)s of %(total)s", count="{}", total="{}"),
        "allAnswered": _("All images are answered."),
        "cellOf": _("cell %(number)s of %(total)s", number="{}", total="{}"),
        "model": _("model: %(name)s", name="{}"),
        "by": _("Answered by version %(version)s", version="{}"),
        "noExplanation": _("The heat map could not be made. Try again."),
        "tooMany": _("At most %(limit)s images at a time: the rest was left out.", limit="{}"),
        "noLabels": _("Label cells first: choose one and press 1 to 5."),
    }

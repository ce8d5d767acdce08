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
    "confident": Verdict(
        _l("High confidence"),
        _l("About 19 of 20 such answers were correct when the model was measured."),
    ),
    "uncertain": Verdict(
        _l("Uncertain"),
        _l("More than one class is possible. Compare the probabilities and check the cell."),
    ),
    "rejected": Verdict(
        _l("Not recognised"),
        _l(
            "Another cell type, or a stain or scale that the model does not know. The "
            "probabilities are only a guess."
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
        return str(VERDICTS["rejected"].badge)
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
        "cells": CELLS,
        "verdicts": {name: each._asdict() for name, each in VERDICTS.items()},
        "labelled": _("Your label"),
        "nothingFound": NOTHING,
        "problems": {
            kind: {"title": each.title, "advice": advice(each)} for kind, each in UPLOAD.items()
        },
        "waiting": _("Waiting"),
        "asking": _("Analysing…"),
        "cancelled": _("Cancelled"),
        "answered": _("%(count)s of %(total)s images analysed", count="{}", total="{}"),
        "allAnswered": _("Done."),
        "cellOf": _("cell %(number)s of %(total)s", number="{}", total="{}"),
        "model": _("model: %(name)s", name="{}"),
        "by": _("Classified by version %(version)s", version="{}"),
        "noExplanation": _("The heat map could not be created. Try again."),
        "tooMany": _("At most %(limit)s images at a time: the others were not added.", limit="{}"),
        "repeated": _("Already in this count: %(count)s", count="{}"),
        "notAProject": _("This is not a saved count of this page, or it is damaged."),
        "saved": {
            "elsewhere": _("Not saved: another tab of this page is open."),
            "insecure": _("Not saved: this needs an encrypted connection (HTTPS)."),
            "saving": _("Saving…"),
            "saved": _("Saved on this computer"),
            "failed": _("This count could not be saved on this computer."),
        },
        "teach": {
            "train": _("Learn from %(count)s labelled cells", count="{}"),
            "missing": _("%(count)s more", count="{}"),
            "needed": _(
                "Needed: at least %(classes)s classes with %(cells)s labelled cells each.",
                classes="{}",
                cells="{}",
            ),
            "right": _("%(share)s (%(count)s of %(total)s)", share="{}", count="{}", total="{}"),
        },
        "adapted": {
            "note": _("%(share)s, adapted here", share="{}"),
            "version": _("%(version)s, adapted here", version="{}"),
            "by": _("Classified by version %(version)s, adapted here", version="{}"),
            "meaning": _(
                "Adapted to the cells that you labelled. The accuracy on those cells is shown "
                "beside the count."
            ),
        },
        "notWritten": _("The file could not be written."),
        "noBoxes": _("This count has no boxes. Only versions that find cells give them."),
        "noLabels": _("Label cells first: select one and press a number key."),
        "accept": _("Accept the suggestions shown (%(count)s)", count="{}"),
        "target": _("%(counted)s of %(target)s", counted="{}", target="{}"),
        "coverage": _(
            "%(counted)s of %(found)s cells counted, %(confirmed)s of them confirmed",
            counted="{}",
            found="{}",
            confirmed="{}",
        ),
        "part": _("%(part)s of %(total)s (%(share)s)", part="{}", total="{}", share="{}"),
        "shareNote": _(
            "%(count)s of %(total)s cells, confidence interval %(low)s to %(high)s",
            count="{}",
            total="{}",
            low="{}",
            high="{}",
        ),
        "differential": _("Differential count"),
        "notForDiagnosis": _("Not for diagnosis."),
        "leukocytes": _("Leukocytes"),
        "withBands": _("Neutrophil, bands included"),
        "lowest": _("lowest reference value"),
        "highest": _("highest reference value"),
        "flags": {"low": _("low"), "high": _("high")},
        "partial": _("%(open)s of %(found)s cells are not counted.", open="{}", found="{}"),
        "perHundred": _("%(count)s (%(ratio)s per 100 leukocytes)", count="{}", ratio="{}"),
        "groups": {
            "all": _("All"),
            "uncertain": VERDICTS["uncertain"].badge,
            "rejected": VERDICTS["rejected"].badge,
            "none": _("No white blood cell"),
            "open": _("Not analysed"),
        },
        "steps": {
            "added": _("Images added: %(count)s", count="{}"),
            "cleared": _("Images removed: %(count)s", count="{}"),
            "labelled": _("Cells labelled: %(count)s", count="{}"),
            "unlabelled": _("Labels removed: %(count)s", count="{}"),
            "described": _("Report changed"),
            "taught": _("Learned from %(count)s labelled cells", count="{}"),
            "adapted": _("Adapted answers on"),
            "unadapted": _("Adapted answers off"),
            "opened": _("Count opened: %(count)s images", count="{}"),
            "undone": _("Undone: %(step)s", step="{}"),
            "redone": _("Redone: %(step)s", step="{}"),
        },
    }

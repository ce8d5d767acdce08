"""The language of the page, and the names of the cells in it."""

from flask import Flask, request
from flask_babel import Babel, format_percent, get_locale
from flask_babel import lazy_gettext as _l

LANGUAGES = {"en": "English", "pt_BR": "Português"}
COOKIE = "language"

# The classes of the versions, and more kinds that visitors can label. A version may know other
# classes; they are shown by their own names.
CELLS = {
    "EOSINOPHIL": _l("Eosinophil"),
    "LYMPHOCYTE": _l("Lymphocyte"),
    "MONOCYTE": _l("Monocyte"),
    "NEUTROPHIL": _l("Neutrophil"),
    "BASOPHIL": _l("Basophil"),
    "BAND": _l("Band neutrophil"),
    "IMMATURE_GRANULOCYTE": _l("Immature granulocyte"),
    "BLAST": _l("Blast"),
    "ATYPICAL_LYMPHOCYTE": _l("Atypical lymphocyte"),
    "ERYTHROBLAST": _l("Erythroblast"),
    "SMUDGE": _l("Smudge cell"),
    "PLATELET": _l("Platelet"),
    "ARTEFACT": _l("Artefact"),
    "OTHER": _l("Other"),
}


def init_app(app: Flask) -> None:
    """Translate the pages of `app`."""
    Babel(app, locale_selector=choose)
    app.jinja_env.globals.update(
        LANGUAGES=LANGUAGES, language=current, html_tag=html_tag, percent=percent
    )
    app.add_template_filter(cell_name)


def choose() -> str:
    """Return the language that the visitor chose, or else the browser's."""
    chosen = request.cookies.get(COOKIE)
    if chosen in LANGUAGES:
        return chosen
    for wanted, quality in request.accept_languages:
        primary = wanted.lower().partition("-")[0]
        if quality > 0 and primary in ("pt", "en"):
            return "pt_BR" if primary == "pt" else "en"
    return "en"


def current() -> str:
    """Return the language of this request."""
    return str(get_locale() or "en")


def cell_name(label: str) -> str:
    """Return the name of a class in the language of this request."""
    return str(CELLS.get(label, label))


def html_tag(language: str) -> str:
    """Return a language tag for HTML and HTTP.

    >>> html_tag("pt_BR")
    'pt-BR'
    """
    return language.replace("_", "-")


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal, in the format of the language."""
    return str(format_percent(share, "#,##0.0%"))

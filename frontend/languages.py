"""Which language a person reads, and what the cells are called in it."""

from flask import Flask, request
from flask_babel import Babel, format_percent, get_locale
from flask_babel import lazy_gettext as _l

LANGUAGES = {"en": "English", "pt_BR": "Português"}
COOKIE = "language"

CELLS = {
    "EOSINOPHIL": _l("Eosinophil"),
    "LYMPHOCYTE": _l("Lymphocyte"),
    "MONOCYTE": _l("Monocyte"),
    "NEUTROPHIL": _l("Neutrophil"),
}


def init_app(app: Flask) -> None:
    """Translate the pages of `app`."""
    Babel(app, locale_selector=choose)
    app.jinja_env.globals.update(
        CELLS=CELLS, LANGUAGES=LANGUAGES, language=current, html_tag=html_tag, percent=percent
    )


def choose() -> str:
    """Return the language chosen by the switch, or else by the browser."""
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


def html_tag(language: str) -> str:
    """Return a language as HTML and HTTP write it.

    >>> html_tag("pt_BR")
    'pt-BR'
    """
    return language.replace("_", "-")


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal, as this language writes it."""
    return str(format_percent(share, "#,##0.0%"))

"""The language of the page, and the names of the cells in it."""

from flask import Flask, request
from flask_babel import Babel, format_percent, get_locale
from flask_babel import lazy_gettext as _l

from handler.contract import CLASSES

LANGUAGES = {"en": "English", "pt_BR": "Português"}
COOKIE = "language"

NAMES = (_l("Eosinophil"), _l("Lymphocyte"), _l("Monocyte"), _l("Neutrophil"))
CELLS = dict(zip(CLASSES, NAMES, strict=True))


def init_app(app: Flask) -> None:
    """Translate the pages of `app`."""
    Babel(app, locale_selector=choose)
    app.jinja_env.globals.update(
        CELLS=CELLS, LANGUAGES=LANGUAGES, language=current, html_tag=html_tag, percent=percent
    )


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


def html_tag(language: str) -> str:
    """Return a language tag for HTML and HTTP.

    >>> html_tag("pt_BR")
    'pt-BR'
    """
    return language.replace("_", "-")


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal, in the format of the language."""
    return str(format_percent(share, "#,##0.0%"))

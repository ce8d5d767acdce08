"""The Portuguese catalogue: complete, compiled, and with the placeholders of the English."""

import re
from pathlib import Path

from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.frontend import parse_mapping_cfg
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po

import frontend

ROOT = Path(frontend.__file__).parent
FOLDER = ROOT / "translations" / "pt_BR" / "LC_MESSAGES"
UPDATE = "run: pybabel compile -d frontend/translations"

with (FOLDER / "messages.po").open("rb") as file:
    TRANSLATED = [message for message in read_po(file, abort_invalid=True) if message.id]


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"%\(\w+\)s|%%", text))


def test_every_message_of_the_page_is_translated_and_no_other() -> None:
    with (ROOT / "babel.cfg").open() as file:
        methods, options = parse_mapping_cfg(file)  # type: ignore[no-untyped-call]
    keywords = DEFAULT_KEYWORDS | {"_l": None}
    used = {found[2] for found in extract_from_dir(ROOT, methods, options, keywords=keywords)}
    assert used == {message.id for message in TRANSLATED if message.string}


def test_no_translation_is_fuzzy() -> None:
    assert not [message.id for message in TRANSLATED if message.fuzzy]


def test_placeholders_are_those_of_the_english() -> None:
    for message in TRANSLATED:
        assert placeholders(str(message.string)) == placeholders(str(message.id)), message.id
        assert not list(message.check()), message.id


def test_compiled_catalogue_is_up_to_date() -> None:
    with (FOLDER / "messages.mo").open("rb") as file:
        compiled = {message.id: message.string for message in read_mo(file) if message.id}
    assert compiled == {message.id: message.string for message in TRANSLATED}, UPDATE

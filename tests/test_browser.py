"""The page in Chromium, in front of the running service: what needs a real answer."""

import re
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed")

from conftest import CARDS, SERVED, Open
from page_stand_in import choose
from playwright.sync_api import Page, expect

from training.protocol import CLASSES

# In the order of protocol.CLASSES.
CELLS = {
    "en-GB": ["Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil", "Basophil"],
    "pt-BR": ["Eosinófilo", "Linfócito", "Monócito", "Neutrófilo", "Basófilo"],
}


def check_answer(page: Page, locale: str = "en-GB", version: str = SERVED[0]) -> None:
    """Check that the answer is a neutrophil: its picture, its headline and its bars."""
    card = page.locator(".result")
    expect(card.locator("#verdict")).to_have_text(CELLS[locale][3])
    rows = card.locator("tbody tr")
    names = [CELLS[locale][CLASSES.index(label)] for label in CARDS[version]["classes"]]
    assert sorted(rows.locator("th").all_inner_texts()) == sorted(names)
    percentages = card.locator(".percent").all_inner_texts()
    mark = "," if locale == "pt-BR" else "."
    assert all(re.fullmatch(rf"\d+\{mark}\d%", share) for share in percentages)
    shares = [float(share.rstrip("%").replace(",", ".")) for share in percentages]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert shares == sorted(shares, reverse=True)
    picture = card.locator("img.picture")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 0


# The one test of the page's script in Portuguese; the texts themselves: test_translations.
@pytest.mark.parametrize(("locale", "script"), [("en-GB", True), ("pt-BR", True), ("pt-BR", False)])
def test_one_image(open_page: Open, sample_image: Path, locale: str, script: bool) -> None:
    page = open_page(locale, java_script_enabled=script)
    choose(page, sample_image)
    check_answer(page, locale)
    if script:
        headline = rf"^{CELLS[locale][3]}\. [^.]+\. \d+[.,]\d%$"
        expect(page.locator("#announcement")).to_have_text(re.compile(headline))
    # The cells of the default version have what the page learns from.
    assert not script or page.locator(".teaching").get_attribute("hidden") is None
    # The default version outlines the cell that it found.
    outline = page.locator(".outlines rect")
    expect(outline).to_have_count(1)
    frame, box = page.locator(".frame").bounding_box(), outline.bounding_box()
    assert frame
    assert box
    assert frame["x"] < box["x"] < box["x"] + box["width"] < frame["x"] + frame["width"]
    assert frame["y"] < box["y"] < box["y"] + box["height"] < frame["y"] + frame["height"]


@pytest.mark.parametrize("script", [True, False])
def test_sample(open_page: Open, script: bool) -> None:
    page = open_page(java_script_enabled=script)
    page.locator(".sample", has_text="Neutrophil").first.click()
    check_answer(page)


@pytest.mark.parametrize("script", [True, False])
def test_chosen_version(open_page: Open, sample_image: Path, script: bool) -> None:
    page = open_page(java_script_enabled=script)
    choice = page.get_by_label("Model version")
    expect(choice).to_have_value("")
    choice.select_option("version 1.0")
    choose(page, sample_image)
    check_answer(page, version="1.0")
    expect(page.get_by_text(re.compile("Classified by .*version 1.0"))).to_be_visible()
    expect(choice).to_have_value("1.0")
    # 1.0 reads the whole field.
    expect(page.locator(".outlines rect")).to_have_count(0)


def test_heat_map(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    choose(page, sample_image)
    page.locator("[data-do=explain]").click()
    heat = page.locator(".heat")
    expect(heat).to_be_visible()
    assert heat.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


BAD_FILES = [
    (lambda image: b"no picture at all", "This file type is not supported"),
    (lambda image: image[: len(image) // 2], "The image cannot be read"),
    (lambda image: b"", "The file is empty"),
    (lambda image: bytes(9 * 1024 * 1024), "The image is too large"),
]


@pytest.mark.parametrize(("spoil", "title"), BAD_FILES)
@pytest.mark.parametrize("script", [True, False])
def test_bad_file(
    open_page: Open, sample_image: Path, tmp_path: Path, spoil: object, title: str, script: bool
) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(spoil(sample_image.read_bytes()))  # type: ignore[operator]
    page = open_page(java_script_enabled=script)
    sent: list[int] = []
    page.on("request", lambda request: sent.append(len(request.post_data_buffer or b"")))
    choose(page, file)
    where = page.locator("#verdict") if script else page.get_by_role("alert")
    expect(where).to_contain_text(title)
    # The script does not send what is known to be too large.
    assert not script or max(sent, default=0) < 8 * 1024 * 1024


def test_language_switch(open_page: Open) -> None:
    page = open_page()
    for name, language in (("Português", "pt-BR"), ("English", "en")):
        page.get_by_role("link", name=name).click()
        expect(page.locator("html")).to_have_attribute("lang", language)
        expect(page.locator(".languages [aria-current]")).to_have_text(name)
    page.get_by_role("link", name="Português").click()
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "pt-BR")

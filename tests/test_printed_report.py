"""The report of a count, in Chromium: its fields, what they lead to, and the printed pages."""

import unicodedata
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed")

from conftest import CARDS, Open
from page_stand_in import DrawingsStandIn, choose_and_wait, save_count
from playwright.sync_api import Page, expect
from pypdf import PdfReader

from frontend import samples

DRAWN = [sample.path for sample in samples.drawn()]
FIELD = next(path for path in DRAWN if path.name.startswith("field"))


@pytest.fixture
def page(open_address: Open, drawings: tuple[str, DrawingsStandIn]) -> Page:
    page = open_address(drawings[0])
    choose_and_wait(page, *DRAWN)
    return page


def write(page: Page) -> None:
    """Write the fields one after another, by the keyboard."""
    page.locator("#sample").focus()
    for text in ("S-2026/118", "Ana Souza", "7,2"):
        page.keyboard.type(text)
        page.keyboard.press("Tab")


def test_fields_are_saved_and_undone(page: Page) -> None:
    write(page)
    expect(page.locator("#reviewer")).to_have_value("Ana Souza")
    expect(page.locator(".toast")).to_be_hidden()
    expect(page.locator(".workbench")).to_have_attribute("data-saved", "saved")
    page.reload()
    for field, text in (("#sample", "S-2026/118"), ("#leukocytes", "7.2")):
        expect(page.locator(field)).to_have_value(text)
    page.locator("#sample").fill("another")
    page.keyboard.press("Tab")
    page.locator(".toolbar [data-do=undo]").click()
    expect(page.locator("#sample")).to_have_value("S-2026/118")
    expect(page.locator(".toast")).to_contain_text("Undone: Report changed")
    # The next sample has another report.
    page.locator("[data-do=clear]").click()
    choose_and_wait(page, *DRAWN[:2])
    expect(page.locator("#sample")).to_have_value("")


def test_fields_are_in_the_saved_file(page: Page, tmp_path: Path) -> None:
    write(page)
    saved = save_count(page, tmp_path)
    with zipfile.ZipFile(saved) as archive:
        assert b"Ana Souza" in archive.read("session.json")
    page.locator("[data-do=clear]").click()
    page.locator("#count").set_input_files(saved)
    expect(page.locator("#sample")).to_have_value("S-2026/118")


def test_absolute_counts_and_their_ranges(page: Page) -> None:
    table = page.locator(".absolute")
    expect(table).to_be_hidden()
    write(page)
    counted = int(page.locator("#counted").inner_text())
    row = table.locator("[data-key=LYMPHOCYTE]")
    expect(row.locator(".amount")).to_have_text(f"{7.2 * 2 / counted:g}")
    expect(row.locator(".flag")).to_have_text("")
    page.get_by_label("Lymphocyte, highest reference value").fill("1.5")
    page.keyboard.press("Tab")
    expect(row.locator(".flag")).to_have_text("high")
    page.locator("#leukocytes").fill("many")
    page.keyboard.press("Enter")
    # The last number stays.
    assert page.locator("#leukocytes").evaluate("field => field.validity.patternMismatch")
    expect(table).to_be_visible()


def test_printed_report(page: Page, tmp_path: Path) -> None:
    write(page)
    page.locator(".tile").first.click()
    page.keyboard.press("1")
    printed = tmp_path / "report.pdf"
    page.pdf(path=printed, prefer_css_page_size=True)
    pages = [each.extract_text() for each in PdfReader(printed).pages]
    assert len(pages) > 1
    for number, text in enumerate(pages, 1):
        assert "Not for diagnosis." in text
        assert f"{number} / {len(pages)}" in text
    # Fonts have ligatures.
    report = unicodedata.normalize("NFKC", " ".join("\n".join(pages).split()))
    counted = page.locator("#counted").inner_text()
    for expected in (
        *("S-2026/118", "Ana Souza", CARDS["3.0"]["sha256"]["network.onnx"]),
        *(f"{counted} of 100", f"1 of {counted} (11.1%)", f"{counted} of 10 (90.0%)"),
        *("Absolute counts", f"1 {FIELD.name} 4 Neutrophil? 60.0%", "Date and signature"),
    ):
        assert expected in report

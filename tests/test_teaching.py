"""A count whose answers are adapted to its labels, in Chromium."""

import csv
import json
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed")

from conftest import Open
from page_stand_in import DrawingsStandIn, choose_and_wait, copies, download_as, save_count
from playwright.sync_api import Locator, Page, expect
from test_accessibility import OVERFLOW, check_with_axe

from frontend import samples

# The network takes both for eosinophils, with the same confidence.
TWINS = [each.path for each in samples.drawn() if each.label == "EOSINOPHIL"][:2]
WIDE = {"width": 1500, "height": 900}


@pytest.fixture
def page(open_address: Open, drawings: tuple[str, DrawingsStandIn], tmp_path: Path) -> Page:
    """Open a count of six copies of each of two drawings, sorted as they were added."""
    page = open_address(drawings[0], bypass_csp=True, reduced_motion="reduce", viewport=WIDE)
    choose_and_wait(page, *copies(tmp_path, TWINS[0], 6), *copies(tmp_path, TWINS[1], 6))
    page.locator("#sort").select_option("order")
    return page


def panel(page: Page) -> Locator:
    return page.locator(".teaching")


def label(page: Page, first: int, key: str, count: int = 5) -> None:
    """Label cells one after the other."""
    page.locator(".tile").nth(first).click()
    for _ in range(count):
        page.keyboard.press(key)


def teach(page: Page) -> None:
    """Label five cells of each drawing, the second as neutrophils, and learn from them."""
    label(page, 0, "1")
    label(page, 6, "4")
    button = panel(page).get_by_role("button", name="Learn from 10 labelled cells")
    button.focus()
    page.keyboard.press("Enter")
    expect(panel(page).get_by_label("Use the adapted answers")).to_be_focused()


def check_adapted(page: Page) -> None:
    """Check that the two cells without a label are answered anew, and marked."""
    tiles = page.locator(".tile:not(.labelled)")
    expect(tiles).to_have_count(2)
    for tile, name in zip(tiles.all(), ("Eosinophil", "Neutrophil"), strict=True):
        expect(tile).to_contain_text(name)
        expect(tile).to_contain_text("adapted here")


def check_models_own(page: Page) -> None:
    for tile in page.locator(".tile:not(.labelled)").all():
        expect(tile).to_contain_text("Eosinophil")
        expect(tile).not_to_contain_text("adapted here")


def test_what_is_missing(page: Page) -> None:
    expect(panel(page)).to_contain_text("at least 2 classes with 5 labelled cells each")
    button = panel(page).locator("[data-do=teach]")
    expect(button).to_be_hidden()
    label(page, 0, "1", count=4)
    missing = panel(page).locator(".lessons > div")
    expect(missing.filter(has_text="Eosinophil")).to_contain_text("1 more")
    expect(missing.filter(has_text="Monocyte")).to_contain_text("5 more")
    label(page, 4, "1", count=1)
    expect(missing.filter(has_text="Eosinophil")).to_contain_text("✓ 5")
    expect(button).to_be_hidden()
    label(page, 6, "4")
    expect(panel(page).locator(".needed")).to_be_hidden()
    expect(panel(page).locator(".left")).to_be_visible()
    expect(button).to_be_visible()


def test_other_cells_are_answered_anew(page: Page) -> None:
    check_models_own(page)
    teach(page)
    check_adapted(page)
    expect(page.locator(".toast")).to_contain_text("Learned from 10 labelled cells")
    expect(panel(page).locator(".right-adapted")).to_have_text("100.0% (10 of 10)")
    expect(panel(page).locator(".right-model")).to_have_text("50.0% (5 of 10)")
    expect(panel(page).locator(".no-better")).to_be_hidden()
    page.locator(".tile").last.click()
    expect(page.locator("#verdict")).to_contain_text("Neutrophil")
    expect(page.locator(".viewer .meaning")).to_contain_text("Adapted to the cells")
    expect(page.locator(".viewer .by")).to_have_text("Classified by version 3.0, adapted here")
    # Off: the model's own answers; the switch is a step like any other.
    choice = panel(page).get_by_label("Use the adapted answers")
    choice.uncheck()
    check_models_own(page)
    page.keyboard.press("Control+z")
    check_adapted(page)
    page.locator(".toolbar [data-do=undo]").click()
    check_models_own(page)
    expect(panel(page).locator(".taught")).to_be_hidden()
    page.locator(".toolbar [data-do=redo]").click()
    check_adapted(page)


def test_labels_that_change_make_it_out_of_date(page: Page) -> None:
    teach(page)
    outdated, button = panel(page).locator(".outdated"), panel(page).locator("[data-do=teach]")
    expect(outdated).to_be_hidden()
    expect(button).to_be_hidden()
    label(page, 11, "4", count=1)
    expect(outdated).to_be_visible()
    # The answers do not change under the visitor's hands.
    expect(page.locator(".tile").nth(5)).to_contain_text("adapted here")
    button.click()
    expect(outdated).to_be_hidden()
    expect(panel(page).locator(".right-adapted")).to_have_text("100.0% (11 of 11)")


def test_it_is_kept_saved_and_opened_and_a_new_count_has_none(page: Page, tmp_path: Path) -> None:
    teach(page)
    expect(page.locator(".workbench")).to_have_attribute("data-saved", "saved")
    page.reload()
    page.locator("#sort").select_option("order")
    check_adapted(page)
    saved = save_count(page, tmp_path)
    with zipfile.ZipFile(saved) as archive:
        head = json.loads(archive.read("session.json"))["count"]["head"]
    assert head["classes"] == ["EOSINOPHIL", "NEUTROPHIL"]
    page.locator("[data-do=clear]").click()
    choose_and_wait(page, TWINS[0])
    expect(page.locator(".tile")).not_to_contain_text("adapted here")
    page.locator("#count").set_input_files(saved)
    expect(page.locator(".tile")).to_have_count(12)
    check_adapted(page)


def test_the_report_and_the_exports_name_it(page: Page) -> None:
    teach(page)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(page.locator("[data-fact=version]")).to_have_text("3.0, adapted here")
    with download_as(page, "csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["adapted"] for row in rows] == [*["no"] * 5, "yes"] * 2
    bundle = json.loads(download_as(page, "fhir").read_text())
    methods = [each["resource"].get("method") for each in bundle["entry"]]
    assert {each["text"] for each in methods if each} == {"Classified by version 3.0, adapted here"}
    panel(page).get_by_label("Use the adapted answers").uncheck()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(page.locator("[data-fact=version]")).to_have_text("3.0")


def test_a_version_without_embeddings_does_not_offer_it(
    page: Page, drawings: tuple[str, DrawingsStandIn]
) -> None:
    page.locator("[data-do=clear]").click()
    page.locator("#version").select_option("1.0")
    choose_and_wait(page, *TWINS)
    expect(page.locator(".differential")).to_be_visible()
    expect(panel(page)).to_be_hidden()
    assert list(drawings[1].embeddings[-1]) == ["3.0"]


def test_it_passes_axe_and_fits_the_screen(page: Page) -> None:
    check_with_axe(page)
    teach(page)
    label(page, 5, "4", count=1)
    expect(panel(page).locator(".outdated")).to_be_visible()
    check_with_axe(page)
    page.get_by_role("link", name="Português").click()
    expect(panel(page)).to_contain_text("Adaptar ao seu laboratório")
    for width in (320, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(OVERFLOW) == 0

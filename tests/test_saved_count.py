"""Counts that survive: a reload, a closed browser, a stopped service; and counts in files."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed")

from conftest import Open
from page_stand_in import DrawingsStandIn, choose, choose_and_wait, failure, save_count
from playwright.sync_api import Page, expect

from frontend import samples

DRAWN = [sample.path for sample in samples.drawn() if sample.label]


@pytest.fixture
def page(open_address: Open, drawings: tuple[str, DrawingsStandIn]) -> Iterator[Page]:
    yield open_address(drawings[0])
    drawings[1].error = None


def label_two(page: Page) -> None:
    """Add four images, label two cells, and wait until that is saved."""
    choose_and_wait(page, *DRAWN[:4])
    page.locator(".tile").first.click()
    page.keyboard.press("3")
    page.keyboard.press("e")
    expect(page.locator(".tile.labelled")).to_have_count(2)
    expect(page.locator(".workbench")).to_have_attribute("data-saved", "saved")


def check_restored(page: Page) -> None:
    expect(page.locator(".tile")).to_have_count(4)
    expect(page.locator(".tile.labelled")).to_have_count(2)
    expect(page.locator(".tile canvas[data-drawn]")).to_have_count(4)
    expect(page.locator(".answered")).to_have_text("4 of 4 images analysed")


def test_a_reload_keeps_the_count(page: Page, drawings: tuple[str, DrawingsStandIn]) -> None:
    label_two(page)
    asked = len(drawings[1].images)
    page.reload()
    check_restored(page)
    # What was answered is not asked again.
    assert len(drawings[1].images) == asked
    page.locator("[data-do=clear]").click()
    expect(page.locator(".workbench")).to_have_attribute("data-saved", "saved")
    page.reload()
    expect(page.locator(".workbench")).to_be_hidden()


def test_a_closed_tab_keeps_the_count(page: Page) -> None:
    label_two(page)
    again = page.context.new_page()
    again.goto(page.url)
    # One tab at a time saves.
    expect(again.locator(".workbench")).to_have_attribute("data-saved", "elsewhere")
    expect(again.locator(".workbench")).to_be_hidden()
    # When it is closed, the next one goes on.
    page.close()
    check_restored(again)


def test_images_that_were_not_answered_are_asked_again(
    page: Page, drawings: tuple[str, DrawingsStandIn]
) -> None:
    page.route("**/api/predictions", lambda route: None)
    choose(page, *DRAWN[:4])
    expect(page.locator(".tile.asking")).to_have_count(3)
    expect(page.locator(".workbench")).to_have_attribute("data-saved", "saved")
    page.unroute("**/api/predictions")
    page.reload()
    expect(page.locator(".answered")).to_have_text("4 of 4 images analysed")
    expect(page.locator(".tile.confident")).to_have_count(4)


def test_labels_stay_while_the_service_is_away(
    page: Page, drawings: tuple[str, DrawingsStandIn]
) -> None:
    label_two(page)
    drawings[1].error = failure("ServiceUnavailable")
    page.reload()
    check_restored(page)
    page.context.set_offline(True)
    page.locator(".tile:not(.labelled)").first.click()
    page.keyboard.press("1")
    expect(page.locator(".tile.labelled")).to_have_count(3)
    page.keyboard.press("Control+z")
    page.context.set_offline(False)
    expect(page.locator(".workbench")).to_have_attribute("data-saved", "saved")
    page.reload()
    check_restored(page)


def test_switched_off_nothing_is_kept(page: Page) -> None:
    label_two(page)
    page.get_by_label("Keep this count on this computer").uncheck()
    expect(page.locator(".workbench")).to_have_attribute("data-saved", "off")
    assert page.evaluate("indexedDB.databases().then((all) => all.length)") == 0
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    expect(page.locator(".samples")).to_be_visible()
    label = page.locator("#saved")
    expect(label).not_to_be_checked()


def test_a_count_is_saved_to_a_file_and_opened(page: Page, tmp_path: Path) -> None:
    label_two(page)
    saved = save_count(page, tmp_path)
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        session = json.loads(archive.read("session.json"))
        assert sorted(session["count"]["labels"].values()) == ["ERYTHROBLAST", "MONOCYTE"]
        assert len(archive.namelist()) == 5
    page.locator("[data-do=clear]").click()
    choose(page, DRAWN[4])
    expect(page.locator(".tile.confident")).to_have_count(1)
    # As a browser names the second download.
    again = saved.rename(tmp_path / "cells.count (1).zip")
    page.locator("#count").set_input_files(again)
    check_restored(page)
    page.locator(".toast [data-do=undo]").click()
    expect(page.locator(".tile")).to_have_count(1)
    page.keyboard.press("Control+Shift+Z")
    check_restored(page)
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(again.read_bytes()[:-9])
    page.locator("#count").set_input_files(damaged)
    expect(page.locator("#announcement")).to_contain_text("not a saved count")
    expect(page.locator(".tile.labelled")).to_have_count(2)

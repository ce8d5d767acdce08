"""Many images on the page, in Chromium: gallery, count, labels, exports and faults."""

import csv
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed")

from conftest import Open
from edges import wait
from page_stand_in import (
    DrawingsStandIn,
    choose,
    choose_and_wait,
    copies,
    download_as,
    failure,
)
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from frontend import samples
from training.data import OTHER
from training.laboratories import read_folder
from training.protocol import FIELD_CLASSES

DRAWN = [sample.path for sample in samples.drawn()]
ONE_CELL = [sample.path for sample in samples.drawn() if sample.label]
# Each drawing is a cell, but the field: it shows one of each class, the last of them uncertain.
CELLS = len(DRAWN) + 3


@pytest.fixture
def page(open_address: Open, drawings: tuple[str, DrawingsStandIn]) -> Page:
    return open_address(drawings[0])


@pytest.fixture
def stand_in(drawings: tuple[str, DrawingsStandIn]) -> Iterator[DrawingsStandIn]:
    """Return the service behind the page; a test may break it."""
    yield drawings[1]
    drawings[1].error, drawings[1].classes = None, FIELD_CLASSES


def labels(page: Page) -> list[str]:
    """Return the labels on the tiles, in the order that they are shown."""
    return page.locator(".tile .tile-label").all_inner_texts()


def counts(page: Page) -> dict[str, int]:
    """Return the number of each class in the differential count."""
    rows = page.locator(".differential tbody tr").all()
    return {
        row.locator("th").inner_text(): int(row.locator("td").first.inner_text()) for row in rows
    }


def apart(page: Page) -> dict[str, str]:
    """Return the number of cells and images of each group that is not counted."""
    items = page.locator(".differential .apart > div:visible").all()
    return {each.locator("dt").inner_text(): each.locator("dd").inner_text() for each in items}


def progress(page: Page) -> Locator:
    return page.locator(".answered")


def test_many_images(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    choose_and_wait(page, DRAWN[0], bad, *DRAWN[1:])
    classified = f"{len(DRAWN)} of {len(DRAWN) + 1} images analysed"
    expect(progress(page)).to_have_text(classified)
    expect(page.locator("#announcement")).to_contain_text(classified)
    # One bad image does not stop the others.
    expect(page.locator(".tile")).to_have_count(CELLS + 1)
    expect(page.locator(".tile.failed")).to_have_count(1)
    expect(page.locator(".tile:not(.failed) canvas[data-drawn]")).to_have_count(CELLS)
    assert counts(page) == {"Eosinophil": 3, "Lymphocyte": 2, "Monocyte": 2, "Neutrophil": 2}
    assert page.locator("#counted").inner_text() == "9"
    assert apart(page) == {
        "Uncertain": "1",
        "Not recognised": "0",
        "No white blood cell": "1",
        "Not analysed": "1",
    }
    expect(page.locator(".coverage")).to_have_text("9 of 10 cells counted, 0 of them confirmed")
    expect(page.locator(".partial")).to_be_hidden()
    expect(page.locator(".target output")).to_have_text("9 of 100")
    expect(page.locator(".differential tbody tr").first).to_contain_text("33.3%")
    expect(page.locator(".differential .interval").first).to_have_text(
        re.compile(r"^12\.1% . 64\.6%$")
    )
    page.locator(".tile.failed").click()
    expect(page.locator("#verdict")).to_have_text("This file type is not supported")
    page.locator(".tile").first.click()
    expect(page.locator("#verdict")).to_have_text("Eosinophil")


def test_filter_sort_and_accept(page: Page) -> None:
    choose_and_wait(page, *DRAWN)
    # Under a heading for each class, and for what has none.
    headings = page.locator(".group h3").all_inner_texts()
    assert headings == [
        *("Eosinophil · 3", "Lymphocyte · 2", "Monocyte · 2", "Neutrophil · 2"),
        *("Uncertain · 1", "No white blood cell · 1"),
    ]
    everything = labels(page)
    page.locator(".filters button", has_text="Monocyte").click()
    assert labels(page) == ["Monocyte"] * 2
    expect(page.locator("#verdict")).to_have_text("Monocyte")
    page.locator(".filters [data-key=all]").click()
    assert labels(page) == everything
    page.locator("#sort").select_option("order")
    expect(page.locator(".group h3")).to_be_hidden()
    assert labels(page)[:2] == ["Eosinophil"] * 2
    page.locator("#sort").select_option("review")
    notes = page.locator(".tile .tile-note").all_inner_texts()
    # Uncertain, without a cell, then the others.
    assert notes[:3] == ["60.0%", "", "70.0%"]
    # All suggestions that are shown are accepted at once, and that can be undone.
    before = counts(page)
    page.locator(".filters [data-key=EOSINOPHIL]").click()
    accept = page.locator("[data-do=accept]")
    expect(accept).to_have_text("Accept the suggestions shown (3)")
    accept.click()
    assert labels(page) == ["✓ Eosinophil"] * 3
    expect(accept).to_be_hidden()
    assert counts(page) == before
    expect(page.locator(".coverage")).to_have_text("9 of 10 cells counted, 3 of them confirmed")
    expect(page.locator(".toast")).to_contain_text("Cells labelled: 3")
    page.locator(".toast").get_by_role("button", name="Undo").click()
    assert labels(page) == ["Eosinophil"] * 3
    # The next cell is chosen when a labelled one leaves the group.
    page.locator(".tile").first.click()
    page.keyboard.press("o")
    expect(page.locator(".tile")).to_have_count(2)
    expect(page.locator(".tile").first).to_be_focused()
    expect(page.locator(".tile").first).to_have_attribute("aria-selected", "true")


def test_label_by_key_and_click(page: Page) -> None:
    choose_and_wait(page, *ONE_CELL[:4])
    page.locator("#sort").select_option("order")
    before = counts(page)
    first, second = page.locator(".tile").nth(0), page.locator(".tile").nth(1)
    first.click()
    # A label is set, and the next cell is chosen.
    page.keyboard.press("2")
    expect(first).to_contain_text("✓ Lymphocyte")
    expect(second).to_be_focused()
    # The model's label is still shown.
    expect(first).to_contain_text("model: Eosinophil")
    moved = {"Eosinophil": before["Eosinophil"] - 1, "Lymphocyte": before["Lymphocyte"] + 1}
    assert counts(page) == before | moved
    page.keyboard.press("Space")
    expect(second).to_contain_text("✓ Eosinophil")
    page.keyboard.press("Backspace")
    expect(second).to_be_focused()
    page.keyboard.press("Backspace")
    expect(page.locator("#verdict")).to_have_text("Lymphocyte")
    button = page.locator(".labels [data-key=NEUTROPHIL]")
    expect(page.locator(".labels button[aria-pressed=true]")).to_have_text(re.compile("Lymphocyte"))
    button.click()
    expect(first).to_contain_text("✓ Neutrophil")
    first.click()
    button.click()
    expect(first.locator(".tile-label")).to_have_text("Eosinophil")


def test_undo_and_redo(page: Page) -> None:
    choose_and_wait(page, *ONE_CELL[:4])
    undo, redo = page.locator(".toolbar [data-do=undo]"), page.locator(".toolbar [data-do=redo]")
    expect(redo).to_be_disabled()
    page.locator(".tile").first.click()
    page.keyboard.press("2")
    page.keyboard.press("b")
    labelled = page.locator(".tile.labelled")
    expect(labelled).to_have_count(2)
    assert counts(page)["Band neutrophil"] == 1
    page.keyboard.press("Control+z")
    expect(labelled).to_have_count(1)
    page.keyboard.press("Control+Shift+Z")
    expect(labelled).to_have_count(2)
    page.locator("[data-do=clear]").click()
    expect(page.locator(".workbench")).to_be_hidden()
    # Not even a new count is final.
    page.locator(".toast [data-do=undo]").click()
    expect(labelled).to_have_count(2)
    for _ in range(3):
        undo.click()
    expect(page.locator(".workbench")).to_be_hidden()


def test_several_cells_are_labelled_together(page: Page) -> None:
    choose_and_wait(page, *ONE_CELL[:5])
    page.locator("#sort").select_option("order")
    tiles = page.locator(".tile")
    tiles.nth(0).click()
    tiles.nth(2).click(modifiers=["Shift"])
    tiles.nth(4).click(modifiers=["Control"])
    tiles.nth(1).click(modifiers=["Control"])
    selected = page.locator(".tile[aria-selected=true]")
    expect(selected).to_have_count(3)
    tiles.nth(1).click(modifiers=["Control"])
    expect(selected).to_have_count(4)
    page.keyboard.press("s")
    expect(page.locator(".tile.labelled")).to_have_count(4)
    assert apart(page)["Smudge cell"] == "4"
    page.keyboard.press("Control+z")
    expect(page.locator(".tile.labelled")).to_have_count(0)
    # Each gets its own suggestion.
    before = counts(page)
    tiles.nth(0).click()
    tiles.nth(4).click(modifiers=["Shift"])
    page.keyboard.press("Space")
    expect(page.locator(".tile.labelled")).to_have_count(5)
    assert counts(page) == before
    page.keyboard.press("Control+z")
    expect(page.locator(".tile.labelled")).to_have_count(0)


def test_a_count_that_leaves_out_many_cells_is_marked(page: Page, tmp_path: Path) -> None:
    """Also the kinds that only people know, inside and outside of the total."""
    images = copies(tmp_path, ONE_CELL[0], 10)
    choose_and_wait(page, *images)
    page.locator(".tile").first.click()
    for key in ("i", "e", "e"):
        page.keyboard.press(key)
    assert counts(page)["Immature granulocyte"] == 1
    assert apart(page)["Erythroblast"] == "2 (25 per 100 leukocytes)"
    expect(page.locator(".coverage")).to_have_text("8 of 8 cells counted, 1 of them confirmed")
    page.get_by_label("Count only cells that you confirmed").check()
    expect(page.locator("#counted")).to_have_text("1")
    expect(page.locator(".partial")).to_be_hidden()
    choose_and_wait(page, *copies(tmp_path, ONE_CELL[1], 2))
    expect(page.locator(".partial")).to_contain_text("9 of 10 cells are not counted")
    page.get_by_label("Count only cells that you confirmed").uncheck()
    expect(page.locator(".partial")).to_be_hidden()


def test_a_file_is_added_once(page: Page, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(ONE_CELL[0].read_bytes())
    choose_and_wait(page, ONE_CELL[0], ONE_CELL[1], copy)
    expect(page.locator(".tile")).to_have_count(2)
    expect(progress(page)).to_have_text("2 of 2 images analysed. Already in this count: 1")


def test_a_count_has_the_classes_of_its_version(page: Page, stand_in: DrawingsStandIn) -> None:
    """Also classes that the page has no name for."""
    stand_in.classes = (*FIELD_CLASSES, "BASOPHIL", "HAIRY_CELL")
    choose_and_wait(page, *DRAWN[:2])
    assert list(counts(page))[3:] == ["Neutrophil", "Basophil", "HAIRY_CELL"]
    expect(page.locator("#version")).to_be_disabled()
    page.locator(".tile").last.click()
    expect(page.locator(".viewer tbody tr")).to_have_count(6)
    page.keyboard.press("6")
    expect(page.locator(".tile").last).to_contain_text("✓ HAIRY_CELL")
    expect(page.locator(".filters [data-key=HAIRY_CELL]")).to_have_text(re.compile("HAIRY_CELL 1"))
    page.locator("[data-do=clear]").click()
    expect(page.locator("#version")).to_be_enabled()
    stand_in.classes = FIELD_CLASSES
    page.locator("#version").select_option("1.0")
    choose_and_wait(page, DRAWN[2])
    assert len(counts(page)) == 4
    assert stand_in.versions[-1] == "1.0"
    choose_and_wait(page, *DRAWN)
    # Also images that another version answered in the count before.
    assert stand_in.versions[-7:] == ["1.0"] * 7


def test_heat_map(page: Page) -> None:
    choose_and_wait(page, DRAWN[0])
    heat, opacity = page.locator(".heat"), page.locator("input[type=range]")
    expect(heat).to_be_hidden()
    expect(opacity).to_be_hidden()
    page.locator("[data-do=explain]").click()
    expect(heat).to_be_visible()
    expect(opacity).to_be_focused()
    for key, shown in ((None, "0.7"), ("End", "1"), ("Home", "0")):
        if key:
            page.keyboard.press(key)
        expect(heat).to_have_css("opacity", shown)


def test_export_and_print_of_the_table(page: Page, tmp_path: Path) -> None:
    hostile = tmp_path / '\uff1d1+1,"quoted".jpg'
    hostile.write_bytes(DRAWN[0].read_bytes() + b"another")
    choose_and_wait(page, *DRAWN, hostile)
    page.locator("#sort").select_option("order")
    page.locator(".tile").first.click()
    page.keyboard.press("3")
    with download_as(page, "csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == CELLS + 1
    assert rows[0]["file"] == DRAWN[0].name
    assert rows[-1]["file"] == f"'{hostile.name}"
    assert [row["your_label"] for row in rows] == ["MONOCYTE"] + [""] * CELLS
    for column in ("final_class", "counted_as"):
        assert [row[column] for row in rows[:2]] == ["MONOCYTE", "EOSINOPHIL"]
    for row in rows:
        if row["problem"]:
            assert row["problem"] == "NoCellFound"
            continue
        shares = {name: float(row[name.lower()]) for name in FIELD_CLASSES}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert row["version"] == "3.0"
    page.evaluate("window.print = () => { document.title = 'printed'; }")
    page.locator("[data-do=print]").click()
    expect(page).to_have_title("printed")
    page.emulate_media(media="print")
    hidden = ".upload, .viewer, .filters, .exports, .languages, .toolbar button"
    for part in page.locator(hidden).all():
        expect(part).to_be_hidden()
    for shown in (
        ".differential .table-scroll:not(.absolute) table",
        ".report-head",
        ".tiles",
        "footer",
    ):
        expect(page.locator(shown).first).to_be_visible()
    assert page.pdf().startswith(b"%PDF")


def test_export_of_labelled_cells_is_a_folder_to_train_on(page: Page, tmp_path: Path) -> None:
    choose_and_wait(page, *DRAWN)
    page.locator("#format").select_option("zip")
    page.locator("[data-do=export]").click()
    expect(page.locator("#export-note")).to_contain_text("Label cells first")
    page.locator("#sort").select_option("order")
    page.locator(".tile").first.click()
    for _ in range(CELLS - 1):
        page.keyboard.press("1")
    page.keyboard.press("e")
    with zipfile.ZipFile(download_as(page, "zip")) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "cells")
    found = read_folder(tmp_path / "cells")
    names = ["OTHER" if each.label == OTHER else FIELD_CLASSES[each.label] for each in found]
    assert sorted(names) == ["EOSINOPHIL"] * (CELLS - 1) + ["OTHER"]
    assert [each.kind for each in found if each.label == OTHER] == ["erythroblast"]
    # Cells of one image belong together.
    assert len({each.group for each in found}) == len(DRAWN)
    for each in found:
        with Image.open(each.path) as image:
            image.load()
            assert min(image.size) >= 60


def test_language_switch_keeps_images_and_labels(page: Page) -> None:
    page.locator("#version").select_option("1.0")
    choose_and_wait(page, *ONE_CELL[:5])
    page.locator("#sort").select_option("order")
    second, third = page.locator(".tile").nth(1), page.locator(".tile").nth(2)
    second.click()
    page.keyboard.press("4")
    before = list(counts(page).values())
    page.get_by_role("link", name="Português").click()
    expect(page.locator("html")).to_have_attribute("lang", "pt-BR")
    assert list(counts(page)) == ["Eosinófilo", "Linfócito", "Monócito", "Neutrófilo"]
    assert list(counts(page).values()) == before
    expect(second).to_contain_text("✓ Neutrófilo")
    expect(page.get_by_role("link", name="Português")).to_be_focused()
    expect(third).to_have_attribute("aria-selected", "true")
    expect(page.locator(".percent").first).to_have_text("90,0%")
    expect(page.locator("#version")).to_have_value("1.0")
    choose_and_wait(page, DRAWN[-1])
    expect(progress(page)).to_have_text("6 de 6 imagens analisadas")


def test_paste_and_drop(page: Page, tmp_path: Path) -> None:
    page.evaluate(
        """bytes => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], "pasted.png"));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        list(DRAWN[0].read_bytes()),
    )
    expect(page.locator("#verdict")).to_have_text("Eosinophil")
    expect(page.locator("figcaption")).to_have_text("pasted.png")
    page.locator("[data-do=clear]").click()
    folder = tmp_path / "slides" / "one"
    folder.mkdir(parents=True)
    for name in ("b.jpg", "a.jpg", "notes.txt"):
        (folder / name).write_bytes(DRAWN[0].read_bytes() + name.encode())
    box = page.locator(".zone").bounding_box()
    assert box
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(folder.parent)], "dragOperationsMask": 1}
    place = {"x": box["x"] + 20, "y": box["y"] + 20, "data": data}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **place})
        if kind == "dragOver":
            expect(page.locator(".zone")).to_have_class(re.compile("over"))
    expect(page.locator(".tile.confident")).to_have_count(2)
    names = [tile.get_attribute("aria-label") or "" for tile in page.locator(".tile").all()]
    assert [name.split(", ")[-1] for name in names] == ["a.jpg", "b.jpg"]


def test_camera(open_address: Open, page: Page) -> None:
    expect(page.locator(".camera")).to_be_hidden()
    phone = open_address(
        page.url, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    expect(phone.locator(".camera")).to_be_visible()
    assert phone.locator("#photograph").get_attribute("capture") == "environment"
    phone.locator("#photograph").set_input_files(DRAWN[0])
    expect(phone.locator("#verdict")).to_have_text("Eosinophil")


def test_cancel_and_try_again(page: Page) -> None:
    held: list[Route] = []
    page.route("**/api/predictions", lambda route: held.append(route))
    choose(page, *DRAWN)
    expect(page.locator(".tile.asking")).to_have_count(3)
    expect(page.locator(".tile.waiting")).to_have_count(len(DRAWN) - 3)
    page.locator("[data-do=cancel]").click()
    expect(page.locator(".tile.cancelled")).to_have_count(len(DRAWN))
    expect(progress(page)).to_have_text(f"0 of {len(DRAWN)} images analysed")
    # Never more than three at a time.
    assert len(held) == 3
    page.unroute("**/api/predictions")
    page.locator("[data-do=retry]").click()
    expect(progress(page)).to_have_text(f"{len(DRAWN)} of {len(DRAWN)} images analysed")
    page.locator("[data-do=clear]").click()
    expect(page.locator(".workbench")).to_be_hidden()
    expect(page.locator(".samples")).to_be_visible()


def test_one_failure_of_each_kind_fails_no_image(page: Page, tmp_path: Path) -> None:
    page.context.clear_cookies()
    passing = [502, 503, 429, 0]

    def answer(route: Route) -> None:
        status = passing.pop() if passing else None
        if status is None:
            route.continue_()
        elif status:
            route.fulfill(status=status, json={"code": status, "type": "ServiceUnavailable"})
        else:
            route.abort("connectionreset")

    page.route("**/api/predictions", answer)
    choose_and_wait(page, *copies(tmp_path, DRAWN[0], 60))
    expect(progress(page)).to_have_text("60 of 60 images analysed")
    assert not passing


def test_pages_and_samples_are_tried_again(page: Page) -> None:
    choose_and_wait(page, DRAWN[0])
    failures = 2

    def answer(route: Route) -> None:
        nonlocal failures
        failures -= 1
        if failures < 0:
            route.continue_()
        else:
            route.fulfill(status=502, json={"code": 502, "type": "ServiceUnavailable"})

    page.route("**/language/*", answer)
    page.get_by_role("link", name="Português").click()
    expect(page.locator("html")).to_have_attribute("lang", "pt-BR")
    expect(page.locator("#verdict")).to_have_text("Eosinófilo")
    page.locator("[data-do=clear]").click()
    failures = 2
    page.route("**/static/samples/*", answer)
    page.locator(".sample").first.click()
    expect(page.locator("#verdict")).to_have_text("Eosinófilo")


def test_without_a_server_the_page_stays_and_a_sample_is_sent_as_a_form(page: Page) -> None:
    choose_and_wait(page, DRAWN[0])
    page.clock.install()
    asked: list[Route] = []

    def refuse(route: Route) -> None:
        asked.append(route)
        route.fulfill(status=502, json={"code": 502, "type": "ServiceUnavailable"})

    page.route("**/language/*", refuse)
    page.get_by_role("link", name="Português").click()
    let_time_pass(page, "#announcement", "The server cannot be reached")
    assert len(asked) > 1
    expect(page.locator("#verdict")).to_have_text("Eosinophil")
    page.locator("[data-do=clear]").click()
    page.route("**/static/samples/*", refuse)
    page.locator(".sample").first.click()
    let_time_pass(page, "h1", "Eosinophil")


def let_time_pass(page: Page, place: str, text: str) -> None:
    """Move the page's clock until a place has a text."""

    def found() -> bool:
        page.clock.run_for(1000)
        return page.locator(place).inner_text() == text

    wait(found)


def test_page_renews_its_token_and_refuses_too_many_images(page: Page) -> None:
    page.context.clear_cookies()
    choose(page, DRAWN[0])
    expect(page.locator("#verdict")).to_have_text("Eosinophil")
    page.locator("[data-do=clear]").click()
    page.locator(".upload").evaluate("form => { form.dataset.maxImages = 2; }")
    choose(page, *DRAWN[:3])
    for place in ("#announcement", ".answered"):
        expect(page.locator(place)).to_have_text(re.compile("At most 2 images"))
    expect(page.locator(".tile")).to_have_count(2)


def test_service_is_stopped(page: Page, stand_in: DrawingsStandIn, tmp_path: Path) -> None:
    page.clock.install()
    stand_in.error = failure("ServiceUnavailable")
    choose(page, *copies(tmp_path, DRAWN[0], 20))
    let_time_pass(page, "#verdict", "The model is not available at the moment")
    # All at once, not one after the other.
    expect(page.locator(".tile.failed")).to_have_count(20)
    expect(page.locator("#announcement")).to_contain_text("0 of 20 images analysed")
    stand_in.error = None
    page.route("**/api/predictions", lambda route: route.abort())
    page.locator("[data-do=retry]").click()
    let_time_pass(page, "#verdict", "The server cannot be reached")
    page.unroute("**/api/predictions")
    page.locator("[data-do=retry]").click()
    expect(page.locator(".tile.confident")).to_have_count(20)


def test_full_queue_is_asked_again_and_then_reported(page: Page, stand_in: DrawingsStandIn) -> None:
    page.clock.install()
    stand_in.error, asked = failure("ServiceBusy"), len(stand_in.images)
    choose(page, DRAWN[0])
    let_time_pass(page, "#verdict", "The model is busy")
    # How often depends on the time that each request takes.
    assert len(stand_in.images) > asked + 1
    stand_in.error = None
    page.locator("[data-do=retry-one]").click()
    expect(page.locator("#verdict")).to_have_text("Eosinophil")


def test_a_problem_of_the_edge(page: Page) -> None:
    page.route(
        "**/api/predictions", lambda route: route.fulfill(status=500, json={"type": "EdgeError"})
    )
    choose_and_wait(page, DRAWN[0])
    expect(page.locator("#verdict")).to_have_text("The model did not return a valid answer")

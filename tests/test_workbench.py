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
from page_stand_in import DrawingsStandIn, choose, failure, serving_drawings
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


@pytest.fixture(scope="module")
def drawings() -> Iterator[tuple[str, DrawingsStandIn]]:
    with serving_drawings() as running:
        yield running


@pytest.fixture
def page(open_address: Open, drawings: tuple[str, DrawingsStandIn]) -> Page:
    return open_address(drawings[0])


@pytest.fixture
def stand_in(drawings: tuple[str, DrawingsStandIn]) -> Iterator[DrawingsStandIn]:
    """Return the service behind the page; a test may break it."""
    yield drawings[1]
    drawings[1].error, drawings[1].classes = None, FIELD_CLASSES


def choose_and_wait(page: Page, *images: Path) -> None:
    choose(page, *images)
    expect(page.locator(".workbench")).to_be_visible()
    expect(page.locator("[data-do=cancel]")).to_be_hidden()


def labels(page: Page) -> list[str]:
    """Return the labels on the tiles, in the order that they are shown."""
    return page.locator(".tile .tile-label").all_inner_texts()


def counts(page: Page) -> dict[str, int]:
    """Return the number of each class in the differential count."""
    rows = page.locator(".differential tbody tr").all()
    return {
        row.locator("th").inner_text(): int(row.locator("td").first.inner_text()) for row in rows
    }


def progress(page: Page) -> Locator:
    return page.locator(".answered")


def test_many_images(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    choose_and_wait(page, DRAWN[0], bad, *DRAWN[1:])
    classified = f"{len(DRAWN)} of {len(DRAWN) + 1} images classified"
    expect(progress(page)).to_have_text(classified)
    expect(page.locator("#announcement")).to_contain_text(classified)
    # One bad image does not stop the others.
    expect(page.locator(".tile")).to_have_count(CELLS + 1)
    expect(page.locator(".tile.failed")).to_have_count(1)
    expect(page.locator(".tile:not(.failed) canvas[data-drawn]")).to_have_count(CELLS)
    assert counts(page) == {"Eosinophil": 3, "Lymphocyte": 2, "Monocyte": 2, "Neutrophil": 2}
    assert page.locator("#counted").inner_text() == "9"
    # Uncertain, none of the classes, failed: not counted.
    assert page.locator("[data-apart]").all_inner_texts() == ["1", "1", "1"]
    expect(page.locator(".differential tbody tr").first).to_contain_text("33.3%")
    expect(page.locator(".differential .interval").first).to_have_text(
        re.compile(r"^12\.1% . 64\.6%$")
    )
    page.locator(".tile.failed").click()
    expect(page.locator("#verdict")).to_have_text("This file type is not supported")
    page.locator(".tile").first.click()
    expect(page.locator("#verdict")).to_have_text("Eosinophil")


def test_filter_sort_and_confirm(page: Page) -> None:
    choose_and_wait(page, *DRAWN)
    everything = labels(page)
    page.locator(".filters button", has_text="Monocyte").click()
    assert labels(page) == ["Monocyte"] * 2
    expect(page.locator("#verdict")).to_have_text("Monocyte")
    page.locator(".filters [data-key=all]").click()
    assert labels(page) == everything
    page.locator("#sort").select_option("class")
    by_class = [label for label in labels(page) if label in counts(page)]
    assert by_class == sorted(by_class)
    page.locator("#sort").select_option("confidence")
    notes = page.locator(".tile .tile-note").all_inner_texts()
    shares = [float(note[:-1]) for note in notes if note.endswith("%")]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    # All shown are confirmed at once.
    before = counts(page)
    page.locator(".filters [data-key=EOSINOPHIL]").click()
    page.locator("[data-do=confirm]").click()
    assert labels(page) == ["✓ Eosinophil"] * 3
    expect(page.locator("[data-do=confirm]")).to_be_hidden()
    assert counts(page) == before
    # The next cell is chosen when a labelled one leaves the group.
    page.locator(".tile").first.click()
    page.keyboard.press("5")
    expect(page.locator(".tile")).to_have_count(2)
    expect(page.locator(".tile").first).to_be_focused()
    expect(page.locator(".tile").first).to_have_attribute("aria-selected", "true")


def test_label_by_key_and_click(page: Page) -> None:
    choose_and_wait(page, *ONE_CELL[:4])
    before = counts(page)
    first = page.locator(".tile").first
    first.click()
    page.keyboard.press("2")
    expect(first).to_contain_text("✓ Lymphocyte")
    # The model's label is still shown.
    expect(first).to_contain_text("model: Eosinophil")
    moved = {"Eosinophil": before["Eosinophil"] - 1, "Lymphocyte": before["Lymphocyte"] + 1}
    assert counts(page) == before | moved
    button = page.locator(".labels button", has_text="Neutrophil")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(first).to_contain_text("✓ Neutrophil")
    button.click()
    assert counts(page) == before


def test_the_classes_are_those_of_the_answers(page: Page, stand_in: DrawingsStandIn) -> None:
    """Also classes that the page has no name for."""
    choose_and_wait(page, DRAWN[0])
    assert len(counts(page)) == 4
    stand_in.classes = (*FIELD_CLASSES, "BASOPHIL", "BLAST")
    choose_and_wait(page, DRAWN[1])
    assert list(counts(page))[3:] == ["Neutrophil", "Basophil", "BLAST"]
    page.locator(".tile").last.click()
    expect(page.locator(".viewer tbody tr")).to_have_count(6)
    page.keyboard.press("6")
    expect(page.locator(".tile").last).to_contain_text("✓ BLAST")
    expect(page.locator(".filters [data-key=BLAST]")).to_have_text(re.compile("BLAST 1"))
    page.keyboard.press("7")
    expect(page.locator(".tile").last).to_contain_text("✓ None of the classes")
    with page.expect_download() as download:
        page.locator("[data-do=csv]").click()
    with Path(download.value.path()).open(newline="", encoding="utf-8-sig") as file:
        first, second = csv.DictReader(file)
    assert first["blast"] == ""
    assert float(second["blast"]) > 0
    # The next count begins with no classes.
    page.locator("[data-do=clear]").click()
    stand_in.classes = FIELD_CLASSES
    choose_and_wait(page, DRAWN[0])
    assert len(counts(page)) == 4


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
    hostile.write_bytes(DRAWN[0].read_bytes())
    choose_and_wait(page, *DRAWN, hostile)
    page.locator(".tile").first.click()
    page.keyboard.press("3")
    with page.expect_download() as download:
        page.locator("[data-do=csv]").click()
    with Path(download.value.path()).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == CELLS + 1
    assert rows[0]["file"] == DRAWN[0].name
    assert rows[-1]["file"] == f"'{hostile.name}"
    assert [row["your_label"] for row in rows] == ["MONOCYTE"] + [""] * CELLS
    for row in rows:
        shares = {name: float(row[name.lower()]) for name in FIELD_CLASSES}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert (row["label"] == "") == (row["verdict"] == "rejected")
        assert row["version"] == "3.0"
    page.evaluate("window.print = () => { document.title = 'printed'; }")
    page.locator("[data-do=print]").click()
    expect(page).to_have_title("printed")
    page.emulate_media(media="print")
    hidden = ".upload, .viewer, .filters, .exports, .languages, .progress-line .btn"
    for part in page.locator(hidden).all():
        expect(part).to_be_hidden()
    for shown in (".differential table", ".tiles", "footer"):
        expect(page.locator(shown)).to_be_visible()
    assert page.pdf().startswith(b"%PDF")


def test_export_of_labelled_cells_is_a_folder_to_train_on(page: Page, tmp_path: Path) -> None:
    choose_and_wait(page, *DRAWN)
    page.locator("[data-do=zip]").click()
    expect(page.locator("#export-note")).to_contain_text("Label cells first")
    page.locator(".tile").first.click()
    for _ in range(CELLS):
        page.keyboard.press("1")
        page.keyboard.press("ArrowRight")
    page.keyboard.press("5")
    with page.expect_download() as download:
        page.locator("[data-do=zip]").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "cells")
    found = read_folder(tmp_path / "cells")
    names = ["OTHER" if each.label == OTHER else FIELD_CLASSES[each.label] for each in found]
    assert sorted(names) == ["EOSINOPHIL"] * (CELLS - 1) + ["OTHER"]
    # Cells of one image belong together.
    assert len({each.group for each in found}) == len(DRAWN)
    for each in found:
        with Image.open(each.path) as image:
            image.load()
            assert min(image.size) >= 60


def test_language_switch_keeps_images_and_labels(page: Page) -> None:
    page.locator("#version").select_option("1.0")
    choose_and_wait(page, *ONE_CELL[:5])
    third = page.locator(".tile").nth(2)
    third.click()
    page.keyboard.press("4")
    before = list(counts(page).values())
    page.get_by_role("link", name="Português").click()
    expect(page.locator("html")).to_have_attribute("lang", "pt-BR")
    assert list(counts(page)) == ["Eosinófilo", "Linfócito", "Monócito", "Neutrófilo"]
    assert list(counts(page).values()) == before
    expect(third).to_contain_text("✓ Neutrófilo")
    expect(third).to_have_attribute("aria-selected", "true")
    expect(page.locator(".percent").first).to_have_text("90,0%")
    expect(page.locator("#version")).to_have_value("1.0")
    choose_and_wait(page, DRAWN[0])
    expect(progress(page)).to_have_text("6 de 6 imagens classificadas")


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
        (folder / name).write_bytes(DRAWN[0].read_bytes())
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
    expect(progress(page)).to_have_text(f"0 of {len(DRAWN)} images classified")
    # Never more than three at a time.
    assert len(held) == 3
    page.unroute("**/api/predictions")
    page.locator("[data-do=retry]").click()
    expect(progress(page)).to_have_text(f"{len(DRAWN)} of {len(DRAWN)} images classified")
    page.locator("[data-do=clear]").click()
    expect(page.locator(".workbench")).to_be_hidden()
    expect(page.locator(".samples")).to_be_visible()


def test_one_failure_of_each_kind_fails_no_image(page: Page) -> None:
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
    choose_and_wait(page, *(8 * DRAWN)[:60])
    expect(progress(page)).to_have_text("60 of 60 images classified")
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


def test_service_is_stopped(page: Page, stand_in: DrawingsStandIn) -> None:
    page.clock.install()
    stand_in.error = failure("ServiceUnavailable")
    choose(page, *[DRAWN[0]] * 20)
    let_time_pass(page, "#verdict", "The model is not available at the moment")
    # All at once, not one after the other.
    expect(page.locator(".tile.failed")).to_have_count(20)
    expect(page.locator("#announcement")).to_contain_text("0 of 20 images classified")
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

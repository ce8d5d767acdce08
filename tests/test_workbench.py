"""Many images on the page, in a real Chromium: gallery, count, labels, exports, and faults."""

import csv
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from math import sqrt
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed")

from conftest import Open, free_settings
from page_stand_in import serving
from PIL import Image
from playwright.sync_api import Page, Route, expect
from stand_in import StandIn as TorchServeStandIn
from stand_in import problem, write_keys
from test_browser import BADGES, CELLS, LANGUAGES, check_answer, choose

from frontend import create_app, samples
from handler.verdict import CLASSES
from serving.client import InferenceClient
from serving.settings import Settings
from training.data import OTHER
from training.laboratories import read_folder

DRAWN = [sample.path for sample in samples.drawn()]
Serve = Callable[[Settings], str]

ANSWERED = {"en": "Answered: {} of {}", "pt-BR": "Respondidas: {} de {}"}
TITLES = {
    "ServiceUnavailable": {
        "en": "The model is not available at the moment",
        "pt-BR": "O modelo não está disponível no momento",
    },
    "ServiceBusy": {"en": "The model is busy", "pt-BR": "O modelo está ocupado"},
}


def wait_until_done(page: Page) -> None:
    """Wait until no image waits."""
    expect(page.locator(".workbench")).to_be_visible()
    expect(page.locator("[data-do=cancel]")).to_be_hidden(timeout=60_000)


def tile_texts(page: Page) -> list[str]:
    """Return what the tiles say, in the order that they are shown."""
    return page.locator(".tile .tile-label").all_inner_texts()


def count(page: Page, name: str) -> int:
    """Return a number of the differential count, by the row's or term's name."""
    row = page.locator(".differential tbody tr", has_text=name)
    return int(row.locator("td").first.inner_text())


def counted(page: Page) -> dict[str, tuple[int, str, str]]:
    """Return number, share and interval of each class."""
    return {
        row.locator("th").inner_text(): (
            int(row.locator("td").nth(0).inner_text()),
            row.locator("td").nth(1).inner_text(),
            row.locator(".interval").inner_text(),
        )
        for row in page.locator(".differential tbody tr").all()
    }


def wilson(number: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, solved from its defining equation."""
    z, share = 1.959964, number / total
    # |p - share| = z sqrt(p (1 - p) / total), a quadratic equation in p.
    a, b, c = 1 + z * z / total, -(2 * share + z * z / total), share * share
    root = sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
def test_many_images(open_page: Open, tmp_path: Path, locale: str, language: str) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    page = open_page(locale)
    choose(page, DRAWN[0], bad, *DRAWN[1:])
    # A preview at once, before there is an answer.
    expect(page.locator(".tile canvas[data-drawn]").first).to_be_visible()
    wait_until_done(page)
    images = len(DRAWN) + 1
    expect(page.locator(".answered")).to_have_text(ANSWERED[language].format(images - 1, images))
    expect(page.locator("#announcement")).to_contain_text(
        ANSWERED[language].format(images - 1, images)
    )
    tiles = page.locator(".tile")
    # The bad one stops nobody; the field with several cells is several tiles.
    assert tiles.count() > images
    expect(page.locator(".tile.failed")).to_have_count(1)
    expect(page.locator(".tile:not(.failed) canvas[data-drawn]")).to_have_count(tiles.count() - 1)
    # Every cell is in just one place of the count.
    numbers = sum(number for number, _, _ in counted(page).values())
    apart = [int(text) for text in page.locator("[data-apart]").all_inner_texts()]
    assert numbers + sum(apart) == tiles.count()
    assert apart[2] == 1
    assert int(page.locator("#counted").inner_text()) == numbers
    for cell in CELLS[language]:
        assert count(page, cell) == sum(text == cell for text in tile_texts(page))
    page.locator(".tile.failed").click()
    expect(page.locator("#verdict")).to_have_text(
        {
            "en": "This kind of file is not supported",
            "pt-BR": "Este tipo de arquivo não é aceito",
        }[language]
    )
    tiles.first.click()
    check_answer(page, language)


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
def test_interval_of_a_share(open_page: Open, locale: str, language: str) -> None:
    page = open_page(locale)
    choose(page, *DRAWN)
    wait_until_done(page)
    rows = counted(page)
    total = sum(number for number, _, _ in rows.values())

    def percentages(text: str) -> list[float]:
        return [float(each.replace(",", ".")) for each in re.findall(r"(\d+[.,]\d)%", text)]

    for number, share, interval in rows.values():
        assert percentages(share) == [pytest.approx(100 * number / total, abs=0.06)]
        low, high = wilson(number, total)
        assert percentages(interval) == [
            pytest.approx(100 * low, abs=0.06),
            pytest.approx(100 * high, abs=0.06),
        ]


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
def test_filter_and_sort(open_page: Open, locale: str, language: str) -> None:
    page = open_page(locale)
    choose(page, *DRAWN)
    wait_until_done(page)
    everything = tile_texts(page)
    monocyte = CELLS[language][2]
    page.locator(".filters button", has_text=monocyte).click()
    assert set(tile_texts(page)) == {monocyte}
    assert len(tile_texts(page)) == count(page, monocyte)
    # The cell in large is one of those that are shown.
    expect(page.locator("#verdict")).to_have_text(monocyte)
    page.locator("[data-filter=all]").click()
    assert tile_texts(page) == everything
    page.locator("#sort").select_option("class")
    by_class = [text for text in tile_texts(page) if text in CELLS[language]]
    assert by_class == sorted(by_class)
    page.locator("#sort").select_option("doubt")
    notes = page.locator(".tile .tile-note").all_inner_texts()
    shares = [float(each[:-1].replace(",", ".")) for each in notes if each.endswith("%")]
    assert shares == sorted(shares)


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
def test_labels(open_page: Open, locale: str, language: str) -> None:
    page = open_page(locale)
    choose(page, *DRAWN[:4])
    wait_until_done(page)
    eosinophil, lymphocyte, _monocyte, neutrophil = CELLS[language]
    first = page.locator(".tile").first
    said = first.locator(".tile-label").inner_text()
    assert said == eosinophil
    before = counted(page)
    # By key, on the tile.
    first.click()
    page.keyboard.press("2")
    expect(first).to_contain_text(f"✓ {lymphocyte}")
    # The model's label stays beside it.
    expect(first).to_contain_text(eosinophil)
    assert count(page, eosinophil) == before[eosinophil][0] - 1
    assert count(page, lymphocyte) == before[lymphocyte][0] + 1
    # By click, to another one, and back.
    button = page.locator(".labels button", has_text=neutrophil)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(first).to_contain_text(f"✓ {neutrophil}")
    button.click()
    assert counted(page) == before
    # All that are shown at once: only those that the model named.
    page.locator("[data-filter=EOSINOPHIL]").click()
    shown = page.locator(".tile").count()
    page.locator("[data-do=confirm]").click()
    assert set(tile_texts(page)) == {f"✓ {eosinophil}"}
    assert page.locator(".tile").count() == shown
    expect(page.locator("[data-do=confirm]")).to_be_hidden()
    assert counted(page) == before


def test_a_labelled_cell_leaves_its_group_and_the_next_is_shown(open_page: Open) -> None:
    page = open_page()
    choose(page, *DRAWN)
    wait_until_done(page)
    page.locator("[data-filter=EOSINOPHIL]").click()
    shown = page.locator(".tile").count()
    page.locator(".tile").first.click()
    page.keyboard.press("5")
    expect(page.locator(".tile")).to_have_count(shown - 1)
    expect(page.locator(".tile").first).to_be_focused()
    expect(page.locator(".tile").first).to_have_attribute("aria-selected", "true")


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
def test_heat_map(open_page: Open, sample_image: Path, locale: str, language: str) -> None:
    page = open_page(locale)
    choose(page, sample_image)
    check_answer(page, language)
    heat, opacity = page.locator(".heat"), page.locator("input[type=range]")
    expect(heat).to_be_hidden()
    expect(opacity).to_be_hidden()
    page.locator("[data-do=explain]").click()
    expect(heat).to_be_visible(timeout=60_000)
    assert heat.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    # From here a person goes on with the arrow keys.
    expect(opacity).to_be_focused()
    assert float(heat.evaluate("image => image.style.opacity")) == 0.7
    page.keyboard.press("End")
    assert float(heat.evaluate("image => image.style.opacity")) == 1
    page.keyboard.press("Home")
    assert float(heat.evaluate("image => image.style.opacity")) == 0


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
def test_export_of_the_table(
    open_page: Open, tmp_path: Path, sample_image: Path, locale: str, language: str
) -> None:
    hostile = tmp_path / '=1+1,"quoted".png'
    hostile.write_bytes(sample_image.read_bytes())
    page = open_page(locale)
    choose(page, *DRAWN, hostile)
    wait_until_done(page)
    page.locator(".tile").first.click()
    page.keyboard.press("3")
    with page.expect_download() as download:
        page.locator("[data-do=csv]").click()
    with Path(download.value.path()).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == page.locator(".tile").count()
    assert rows[0]["file"] == DRAWN[0].name
    assert rows[-1]["file"] == '\'=1+1,"quoted".png'
    assert [row["your_label"] for row in rows] == ["MONOCYTE"] + [""] * (len(rows) - 1)
    for row in rows:
        shares = {name: float(row[name.lower()]) for name in CLASSES}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert row["label"] in {max(shares, key=shares.__getitem__), ""}
        assert (row["label"] == "") == (row["verdict"] == "rejected")
        assert row["version"] == "2.0"
        if row["left"]:
            assert 0 <= float(row["left"]) < float(row["right"]) <= 640


def test_export_of_labelled_cells_teaches_the_model(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    choose(page, *DRAWN)
    wait_until_done(page)
    page.locator("[data-do=zip]").click()
    expect(page.locator("#export-note")).to_contain_text("Label cells first")
    page.locator(".tile").first.click()
    for _ in range(page.locator(".tile").count()):
        page.keyboard.press("1")
        page.keyboard.press("ArrowRight")
    page.keyboard.press("5")
    with page.expect_download() as download:
        page.locator("[data-do=zip]").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "cells")
    found = read_folder(tmp_path / "cells")
    labels = ["OTHER" if each.label == OTHER else CLASSES[each.label] for each in found]
    tiles = page.locator(".tile").count()
    assert sorted(labels) == ["EOSINOPHIL"] * (tiles - 1) + ["OTHER"]
    # Cells of one image belong together.
    assert len({each.group for each in found}) == len(DRAWN)
    for each in found:
        with Image.open(each.path) as picture:
            picture.load()
            assert min(picture.size) >= 60


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
def test_print(open_page: Open, locale: str, language: str) -> None:
    page = open_page(locale)
    choose(page, *DRAWN)
    wait_until_done(page)
    page.evaluate("window.print = () => { document.title = 'printed'; }")
    page.locator("[data-do=print]").click()
    expect(page).to_have_title("printed")
    page.emulate_media(media="print")
    for hidden in (
        ".upload",
        ".viewer",
        ".filters",
        ".exports",
        ".languages",
        ".progress-line .btn",
    ):
        for part in page.locator(hidden).all():
            expect(part).to_be_hidden()
    for shown in (".differential table", ".tiles", "footer"):
        expect(page.locator(shown)).to_be_visible()
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
def test_language_switch_keeps_everything(open_page: Open, locale: str, language: str) -> None:
    page = open_page(locale)
    page.locator("#version").select_option("1.0")
    choose(page, *DRAWN[:5])
    wait_until_done(page)
    page.locator(".tile").nth(2).click()
    page.keyboard.press("4")
    before = [number for number, _, _ in counted(page).values()]
    other, name = ("pt-BR", "Português") if language == "en" else ("en", "English")
    page.get_by_role("link", name=name).click()
    expect(page.locator("html")).to_have_attribute("lang", other)
    assert list(counted(page)) == CELLS[other]
    assert [number for number, _, _ in counted(page).values()] == before
    expect(page.locator(".tile").nth(2)).to_contain_text(f"✓ {CELLS[other][3]}")
    expect(page.locator(".tile").nth(2)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#version")).to_have_value("1.0")
    check_answer(page, other)
    # What was brought to life again works.
    choose(page, DRAWN[0])
    wait_until_done(page)
    expect(page.locator(".answered")).to_have_text(ANSWERED[other].format(6, 6))


def test_drop(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    transfer = page.evaluate_handle(
        """bytes => {
            const data = new DataTransfer();
            for (const name of ["a.png", "b.png"]) {
                data.items.add(new File([new Uint8Array(bytes)], name));
            }
            return data;
        }""",
        list(sample_image.read_bytes()),
    )
    page.locator(".zone").dispatch_event("dragover", {"dataTransfer": transfer})
    expect(page.locator(".zone")).to_have_class(re.compile("over"))
    page.locator(".zone").dispatch_event("drop", {"dataTransfer": transfer})
    expect(page.locator(".tile.confident")).to_have_count(2)


def test_drop_of_a_folder(open_page: Open, sample_image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slides" / "one"
    folder.mkdir(parents=True)
    for name in ("b.png", "a.png", "notes.txt"):
        (folder / name).write_bytes(sample_image.read_bytes())
    page = open_page()
    box = page.locator(".zone").bounding_box()
    assert box
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send(
            "Input.dispatchDragEvent",
            {
                "type": kind,
                "x": box["x"] + 20,
                "y": box["y"] + 20,
                "data": {"items": [], "files": [str(folder.parent)], "dragOperationsMask": 1},
            },
        )
    expect(page.locator(".tile.confident")).to_have_count(2)
    wait_until_done(page)
    names = [tile.get_attribute("aria-label") or "" for tile in page.locator(".tile").all()]
    assert [name.split(", ")[-1] for name in names] == ["a.png", "b.png"]


def test_paste(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    page.evaluate(
        """bytes => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], "pasted.png"));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        list(sample_image.read_bytes()),
    )
    check_answer(page)
    expect(page.locator("figcaption")).to_have_text("pasted.png")


def test_camera(open_page: Open, sample_image: Path) -> None:
    desk = open_page()
    expect(desk.locator(".camera")).to_be_hidden()
    phone = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    expect(phone.locator(".camera")).to_be_visible()
    assert phone.locator("#photograph").get_attribute("capture") == "environment"
    phone.locator("#photograph").set_input_files(sample_image)
    check_answer(phone)


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
def test_cancel_and_try_again(open_page: Open, locale: str, language: str) -> None:
    page = open_page(locale)
    held: list[Route] = []
    most = 0

    def hold(route: Route) -> None:
        nonlocal most
        held.append(route)
        most = max(most, len(held))

    page.route("**/api/predictions", hold)
    choose(page, *DRAWN)
    expect(page.locator(".tile.asking")).to_have_count(6)
    expect(page.locator(".tile.waiting")).to_have_count(len(DRAWN) - 6)
    page.locator("[data-do=cancel]").click()
    expect(page.locator(".tile.cancelled")).to_have_count(len(DRAWN))
    expect(page.locator(".answered")).to_have_text(ANSWERED[language].format(0, len(DRAWN)))
    # Never more than six at a time.
    assert most == 6
    page.unroute("**/api/predictions")
    page.locator("[data-do=retry]").click()
    wait_until_done(page)
    expect(page.locator(".answered")).to_have_text(
        ANSWERED[language].format(len(DRAWN), len(DRAWN))
    )
    page.locator("[data-do=clear]").click()
    expect(page.locator(".workbench")).to_be_hidden()
    expect(page.locator(".samples")).to_be_visible()


def test_a_page_outlives_its_session(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    page.context.clear_cookies()
    choose(page, sample_image)
    check_answer(page)


def test_too_many_images(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    page.locator(".upload").evaluate("form => { form.dataset.maxImages = 2; }")
    choose(page, *DRAWN[:3])
    for place in ("#announcement", ".answered"):
        expect(page.locator(place)).to_have_text(re.compile("At most 2 images"))
    expect(page.locator(".tile")).to_have_count(2)


@pytest.fixture
def torchserve(tmp_path: Path) -> Iterator[TorchServeStandIn]:
    with TorchServeStandIn(tmp_path) as running:
        yield running


@pytest.fixture
def serve_page() -> Iterator[Serve]:
    """Return a function that serves the page in front of some TorchServe, or of none."""
    with ExitStack() as until_then:

        def serve(settings: Settings) -> str:
            client = InferenceClient(settings, patience=0.5)
            until_then.callback(client.close)
            return until_then.enter_context(serving(create_app({"CLIENT": client})))

        yield serve


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
@pytest.mark.parametrize("script", [True, False])
def test_torchserve_is_stopped(
    open_address: Open,
    serve_page: Serve,
    tmp_path: Path,
    sample_image: Path,
    locale: str,
    language: str,
    script: bool,
) -> None:
    settings = free_settings(tmp_path)
    settings.run_dir.mkdir(exist_ok=True)
    write_keys(settings.run_dir)
    page = open_address(serve_page(settings), locale, java_script_enabled=script)
    title = TITLES["ServiceUnavailable"][language]
    if not script:
        choose(page, sample_image)
        expect(page.get_by_role("alert")).to_contain_text(title)
        return
    choose(page, *[sample_image] * 20)
    # All at once, not one after the other.
    expect(page.locator(".tile.failed")).to_have_count(20)
    expect(page.locator("#verdict")).to_have_text(title)
    expect(page.locator("#announcement")).to_contain_text(ANSWERED[language].format(0, 20))
    expect(page.locator(".badge")).not_to_have_text(BADGES[language][0])
    expect(page.locator("[data-do=retry]")).to_be_visible()


def answer(request: object, body: bytes) -> tuple[int, bytes]:
    """Answer any image as 1.0 might."""
    shares = {"EOSINOPHIL": 0.01, "LYMPHOCYTE": 0.02, "MONOCYTE": 0.03, "NEUTROPHIL": 0.94}
    said = {"model": "bloodcells", "version": "1.0", "label": "NEUTROPHIL", "verdict": "confident"}
    return 200, json.dumps(said | {"probabilities": shares}).encode()


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
def test_queue_is_full_for_a_while(
    open_address: Open,
    serve_page: Serve,
    torchserve: TorchServeStandIn,
    sample_image: Path,
    locale: str,
    language: str,
) -> None:
    refused = []

    def busy_at_first(request: object, body: bytes) -> tuple[int, bytes]:
        if len(refused) < 12:
            refused.append(body)
            return problem(503, "ServiceUnavailableException")
        return answer(request, body)

    torchserve.answer = busy_at_first
    page = open_address(serve_page(torchserve.settings), locale)
    choose(page, *[sample_image] * 10)
    expect(page.locator(".tile.confident")).to_have_count(10)
    expect(page.locator(".answered")).to_have_text(ANSWERED[language].format(10, 10))
    assert len(refused) == 12


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
@pytest.mark.parametrize("script", [True, False])
def test_queue_stays_full(
    open_address: Open,
    serve_page: Serve,
    torchserve: TorchServeStandIn,
    sample_image: Path,
    locale: str,
    language: str,
    script: bool,
) -> None:
    torchserve.answer = lambda request, body: problem(503, "ServiceUnavailableException")
    page = open_address(serve_page(torchserve.settings), locale, java_script_enabled=script)
    choose(page, sample_image)
    title = TITLES["ServiceBusy"][language]
    where = page.locator("#verdict") if script else page.get_by_role("alert")
    expect(where).to_contain_text(title, timeout=30_000)
    if script:
        torchserve.answer = answer
        page.locator("[data-do=retry-one]").click()
        check_answer(page, language)


def test_the_page_server_goes_and_comes_back(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    page.route("**/api/predictions", lambda route: route.abort())
    choose(page, *[sample_image] * 8)
    expect(page.locator(".tile.failed")).to_have_count(8)
    expect(page.locator("#verdict")).to_have_text("The server of this page cannot be reached")
    page.unroute("**/api/predictions")
    page.locator("[data-do=retry]").click()
    expect(page.locator(".tile.confident")).to_have_count(8)

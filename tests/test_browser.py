"""The page in a real Chromium, in front of the running service."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed")

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    FileChooser,
    Page,
    expect,
    sync_playwright,
)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CELLS = {
    "en": ["Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil"],
    "pt-BR": ["Eosinófilo", "Linfócito", "Monócito", "Neutrófilo"],
}
BADGES = {
    "en": ["Confident", "Uncertain", "No answer"],
    "pt-BR": ["Confiante", "Incerto", "Sem resposta"],
}
QUESTION = {"en": "Which white blood cell is this?", "pt-BR": "Que glóbulo branco é este?"}
# Chromium says this of every answer above 399, also of those that are meant.
STATUS_LINE = "Failed to load resource: the server responded with a status of"

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the Chromium of this machine."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not program:
        reason = "no Chromium: install it, or set CHROMIUM to its path"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser, service: Any) -> Iterator[Open]:
    """Return a function that opens the page in a fresh browser profile.

    When the test is over, nothing may have gone wrong in a console, or gone to another host.
    """
    complaints: list[str] = []
    hosts: set[str] = set()
    contexts = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(STATUS_LINE):
            complaints.append(message.text)

    def open_one(locale: str = "en-US", **options: Any) -> Page:
        context = browser.new_context(locale=locale, **options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto(service.frontend_url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not complaints
    # Pictures in data: and blob: addresses have no host.
    assert hosts - {""} == {urlsplit(service.frontend_url).netloc}


def check_result(page: Page, language: str = "en") -> None:
    """Check the picture, the verdict and the table of a result."""
    expect(page.locator(".badge")).to_have_text(re.compile("|".join(BADGES[language])))
    expect(page.locator("html")).to_have_attribute("lang", language)
    rows = page.locator("table tbody tr")
    assert sorted(rows.locator("th").all_inner_texts()) == CELLS[language]
    percentages = page.locator(".percent").all_inner_texts()
    mark = "," if language == "pt-BR" else "."
    assert all(re.fullmatch(rf"\d+\{mark}\d%", share) for share in percentages)
    shares = [float(share.rstrip("%").replace(",", ".")) for share in percentages]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert shares == sorted(shares, reverse=True)
    picture = page.locator("img.picture")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 0
    verdict = page.locator("#verdict").inner_text()
    badge = page.locator(".badge").inner_text()
    if badge != BADGES[language][2]:
        assert verdict.split(",")[0] == rows.first.locator("th").inner_text()


def classify(page: Page, image: Path) -> None:
    """Choose an image and send it."""
    page.locator("input[type=file]").set_input_files(image)
    page.locator("button[type=submit]").click()


@pytest.mark.parametrize(("locale", "language"), [("en-GB", "en"), ("pt-BR", "pt-BR")])
def test_upload(open_page: Open, sample_image: Path, locale: str, language: str) -> None:
    page = open_page(locale)
    expect(page.locator("h1")).to_have_text(QUESTION[language])
    classify(page, sample_image)
    check_result(page, language)


def test_upload_without_script(open_page: Open, sample_image: Path) -> None:
    page = open_page(java_script_enabled=False)
    expect(page.locator("input[type=file]")).to_be_in_viewport()
    classify(page, sample_image)
    check_result(page)
    page.get_by_role("link", name="Português").click()
    expect(page.locator("h1")).to_have_text(QUESTION["pt-BR"])


def test_one_after_another(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    classify(page, sample_image)
    check_result(page)
    classify(page, sample_image)
    check_result(page)


def test_language_switch(open_page: Open) -> None:
    page = open_page()
    for name, language in (("Português", "pt-BR"), ("English", "en")):
        page.get_by_role("link", name=name).click()
        expect(page.locator("h1")).to_have_text(QUESTION[language])
        expect(page.locator(".languages [aria-current]")).to_have_text(name)
    page.get_by_role("link", name="Português").click()
    expect(page.locator("h1")).to_have_text(QUESTION["pt-BR"])
    page.reload()
    expect(page.locator("h1")).to_have_text(QUESTION["pt-BR"])


def test_language_switch_keeps_the_result(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    classify(page, sample_image)
    check_result(page)
    page.get_by_role("link", name="Português").click()
    expect(page.locator("html")).to_have_attribute("lang", "pt-BR")
    check_result(page, "pt-BR")
    expect(page.locator("figcaption")).to_have_text(sample_image.name)


@pytest.mark.parametrize("script", [True, False])
def test_chosen_version(open_page: Open, sample_image: Path, script: bool) -> None:
    page = open_page(java_script_enabled=script)
    choice = page.get_by_label("Model version")
    expect(choice).to_have_value("")
    choice.select_option("version 1.0")
    classify(page, sample_image)
    check_result(page)
    expect(page.get_by_text("Answered by the model bloodcells, version 1.0")).to_be_visible()
    expect(choice).to_have_value("1.0")


def test_language_switch_keeps_the_version(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    page.get_by_label("Model version").select_option("1.0")
    classify(page, sample_image)
    check_result(page)
    page.get_by_role("link", name="Português").click()
    expect(page.get_by_text("Resposta do modelo bloodcells, versão 1.0")).to_be_visible()
    expect(page.get_by_label("Versão do modelo")).to_have_value("1.0")


def test_preview(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    expect(page.locator(".preview")).to_be_hidden()
    page.locator("input[type=file]").set_input_files(sample_image)
    expect(page.get_by_role("status")).to_have_text(f"Chosen: {sample_image.name}")
    expect(page.locator(".preview")).to_be_visible()
    assert page.locator(".preview").evaluate("image => image.naturalWidth") > 0


def test_drop(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    dropped = page.evaluate_handle(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.png"));
            return data;
        }""",
        list(sample_image.read_bytes()),
    )
    page.locator(".zone").dispatch_event("drop", {"dataTransfer": dropped})
    expect(page.get_by_role("status")).to_have_text("Chosen: dropped.png")
    page.locator("button[type=submit]").click()
    check_result(page)


@pytest.mark.parametrize(
    ("name", "content", "status", "title"),
    [
        ("notes.txt", b"no picture at all", 415, "This kind of file is not supported"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "This kind of file"),
        ("empty.png", b"", 400, "The file is empty"),
    ],
)
@pytest.mark.parametrize("script", [True, False])
def test_bad_file(
    open_page: Open,
    tmp_path: Path,
    name: str,
    content: bytes,
    status: int,
    title: str,
    script: bool,
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    page = open_page(java_script_enabled=script)
    with page.expect_response(lambda response: response.request.method == "POST") as answer:
        classify(page, file)
    assert answer.value.status == status
    expect(page.get_by_role("alert")).to_contain_text(title)
    expect(page.locator("input[type=file]")).to_have_count(1)


def test_broken_image(open_page: Open, sample_image: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.png"
    whole = sample_image.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    page = open_page("pt-BR")
    classify(page, file)
    expect(page.get_by_role("alert")).to_contain_text("Não foi possível ler a imagem")


def test_too_large_a_file_is_not_even_sent(open_page: Open, tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(bytes(8 * 1024 * 1024 + 1))
    page = open_page()
    sent = []
    page.on("request", lambda request: sent.append(request.method))
    classify(page, file)
    expect(page.get_by_role("status")).to_have_text("This image is too large: at most 8 MB.")
    assert "POST" not in sent


def test_too_large_a_file_without_script(open_page: Open, tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(bytes(9 * 1024 * 1024))
    page = open_page(java_script_enabled=False)
    classify(page, file)
    expect(page.get_by_role("alert")).to_contain_text("The image is too large")


def test_keyboard(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    # Long before it is needed: Playwright does not wait until the browser hands choosers over.
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("input[type=file]")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(200):
        if choosers:
            break
        page.wait_for_timeout(50)
    choosers[0].set_files(sample_image)
    expect(page.get_by_role("status")).to_contain_text(sample_image.name)
    page.keyboard.press("Tab")
    choice = page.get_by_label("Model version")
    expect(choice).to_be_focused()
    page.keyboard.type("version 1")
    expect(choice).to_have_value("1.0")
    page.keyboard.press("Tab")
    expect(page.locator("button[type=submit]")).to_be_focused()
    page.keyboard.press("Enter")
    check_result(page)
    # A screen reader goes on from the verdict, and Tab from there to the next image.
    expect(page.locator("#verdict")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("input[type=file]")).to_be_focused()


def test_back_after_a_result(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    classify(page, sample_image)
    check_result(page)
    page.go_back()
    expect(page.locator("button[type=submit]")).to_be_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_fits_every_screen(open_page: Open, sample_image: Path, scheme: str, width: int) -> None:
    page = open_page("pt-BR", color_scheme=scheme, viewport={"width": width, "height": 800})
    for _ in ("form", "result"):
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) == 0
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shade = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
        assert (shade < 64) == (scheme == "dark")
        if page.locator(".badge").count() == 0:
            classify(page, sample_image)
            check_result(page, "pt-BR")

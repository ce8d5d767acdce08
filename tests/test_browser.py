"""The page in a real Chromium, in front of the running service: one image, and every screen."""

import re
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed")

from axe_playwright_python.sync_playwright import Axe
from conftest import Open
from playwright.sync_api import FileChooser, Page, expect

from frontend import samples

LANGUAGES = [("en-GB", "en"), ("pt-BR", "pt-BR")]
CELLS = {
    "en": ["Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil"],
    "pt-BR": ["Eosinófilo", "Linfócito", "Monócito", "Neutrófilo"],
}
BADGES = {
    "en": ["Confident", "Uncertain", "No answer"],
    "pt-BR": ["Confiante", "Incerto", "Sem resposta"],
}
QUESTION = {"en": "Which white blood cell is this?", "pt-BR": "Que glóbulo branco é este?"}
WITHOUT_SCRIPT = {"java_script_enabled": False}
# What WCAG 2.2 asks for at level AA, and what axe holds good practice.
RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def check_answer(page: Page, language: str = "en") -> None:
    """Check the picture, the verdict and the bars of an answer, with or without the script."""
    card = page.locator(".result")
    expect(card.locator(".badge")).to_have_text(re.compile("|".join(BADGES[language])))
    expect(page.locator("html")).to_have_attribute("lang", language)
    rows = card.locator("tbody tr")
    assert sorted(rows.locator("th").all_inner_texts()) == CELLS[language]
    percentages = card.locator(".percent").all_inner_texts()
    mark = "," if language == "pt-BR" else "."
    assert all(re.fullmatch(rf"\d+\{mark}\d%", share) for share in percentages)
    shares = [float(share.rstrip("%").replace(",", ".")) for share in percentages]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert shares == sorted(shares, reverse=True)
    picture = card.locator("img.picture")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 0
    verdict = card.locator("#verdict").inner_text()
    if card.locator(".badge").inner_text() != BADGES[language][2]:
        assert verdict.split(",")[0] == rows.first.locator("th").inner_text()


def choose(page: Page, *images: Path) -> None:
    """Choose images; without the script, send the form, too."""
    page.locator("#image").set_input_files(list(images))
    send = page.locator("button[type=submit]")
    if send.is_visible():
        send.click()


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
@pytest.mark.parametrize("script", [True, False])
def test_one_image(
    open_page: Open, sample_image: Path, locale: str, language: str, script: bool
) -> None:
    page = open_page(locale, java_script_enabled=script)
    expect(page.locator("h1")).to_have_text(QUESTION[language])
    choose(page, sample_image)
    check_answer(page, language)
    # 2.0 outlines the cell that it found.
    outline = page.locator(".outlines rect")
    expect(outline).to_have_count(1)
    frame, box = page.locator(".frame").bounding_box(), outline.bounding_box()
    assert frame
    assert box
    assert frame["x"] < box["x"] < box["x"] + box["width"] < frame["x"] + frame["width"]
    assert frame["y"] < box["y"] < box["y"] + box["height"] < frame["y"] + frame["height"]


def test_one_image_is_announced(open_page: Open, sample_image: Path) -> None:
    page = open_page()
    choose(page, sample_image)
    expect(page.locator("#announcement")).to_have_text(
        re.compile(r"^Neutrophil\. Confident\. \d+\.\d%$")
    )


@pytest.mark.parametrize(("locale", "language"), LANGUAGES)
@pytest.mark.parametrize("script", [True, False])
def test_samples(open_page: Open, locale: str, language: str, script: bool) -> None:
    page = open_page(locale, java_script_enabled=script)
    offered = page.locator(".sample")
    assert offered.count() == len(samples.drawn() + samples.photographs())
    neutrophil = CELLS[language][3]
    offered.filter(has_text=neutrophil).first.click()
    check_answer(page, language)
    expect(page.locator("#verdict")).to_contain_text(neutrophil)


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


@pytest.mark.parametrize("script", [True, False])
def test_chosen_version(open_page: Open, sample_image: Path, script: bool) -> None:
    page = open_page(java_script_enabled=script)
    choice = page.get_by_label("Model version")
    expect(choice).to_have_value("")
    choice.select_option("version 1.0")
    choose(page, sample_image)
    check_answer(page)
    expect(page.get_by_text(re.compile("Answered by .*version 1.0"))).to_be_visible()
    expect(choice).to_have_value("1.0")
    # 1.0 reads the field as a whole.
    expect(page.locator(".outlines rect")).to_have_count(0)


BAD_FILES = [
    ("notes.txt", b"no picture at all", "This kind of file is not supported"),
    ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "This kind of file"),
    ("empty.png", b"", "The file is empty"),
    ("large.png", bytes(9 * 1024 * 1024), "The image is too large"),
]


@pytest.mark.parametrize(("name", "content", "title"), BAD_FILES)
@pytest.mark.parametrize("script", [True, False])
def test_bad_file(
    open_page: Open, tmp_path: Path, name: str, content: bytes, title: str, script: bool
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    page = open_page(java_script_enabled=script)
    sent: list[int] = []
    page.on("request", lambda request: sent.append(len(request.post_data_buffer or b"")))
    choose(page, file)
    where = page.locator("#verdict") if script else page.get_by_role("alert")
    expect(where).to_contain_text(title)
    expect(page.locator("#image")).to_have_count(1)
    # What is known to be too large is not even sent.
    assert not script or max(sent, default=0) < 8 * 1024 * 1024


@pytest.mark.parametrize("script", [True, False])
def test_broken_image(open_page: Open, sample_image: Path, tmp_path: Path, script: bool) -> None:
    file = tmp_path / "half.png"
    whole = sample_image.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    page = open_page("pt-BR", java_script_enabled=script)
    choose(page, file)
    where = page.locator("#verdict") if script else page.get_by_role("alert")
    expect(where).to_contain_text("Não foi possível ler a imagem")


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
    expect(page.locator("#image")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(200):
        if choosers:
            break
        page.wait_for_timeout(50)
    choosers[0].set_files([sample_image, sample_image])
    expect(page.locator(".tile.confident")).to_have_count(2)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.locator(".tile:focus").count():
            break
    page.keyboard.press("ArrowRight")
    second = page.locator(".tile").nth(1)
    expect(second).to_be_focused()
    expect(second).to_have_attribute("aria-selected", "true")
    page.keyboard.press("3")
    expect(second).to_contain_text("✓ Monocyte")
    page.keyboard.press("0")
    expect(second).to_contain_text("Neutrophil")


def check_with_axe(page: Page) -> None:
    """Find nothing that axe can tell to be wrong, in light or dark."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        page.wait_for_timeout(300)
        found = Axe().run(page, options=RULES).response["violations"]
        assert not found, [
            (rule["id"], node["html"], node["failureSummary"])
            for rule in found
            for node in rule["nodes"]
        ]


@pytest.mark.parametrize("locale", ["en-GB", "pt-BR"])
@pytest.mark.parametrize("path", ["/", "/models", "/models/1.0", "/models/2.0", "/nowhere"])
def test_pages_are_accessible(open_page: Open, locale: str, path: str) -> None:
    check_with_axe(open_page(locale, path, bypass_csp=True))


@pytest.mark.parametrize("locale", ["en-GB", "pt-BR"])
@pytest.mark.parametrize("width", [390, 1280])
def test_answers_are_accessible(
    open_page: Open, sample_image: Path, tmp_path: Path, locale: str, width: int
) -> None:
    page = open_page(locale, bypass_csp=True, viewport={"width": width, "height": 800})
    choose(page, sample_image)
    check_answer(page, "pt-BR" if locale == "pt-BR" else "en")
    page.locator("[data-do=explain]").click()
    # The first explanation of a worker loads torch.
    expect(page.locator(".heat")).to_be_visible(timeout=60_000)
    check_with_axe(page)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"bad")
    choose(page, bad, *(sample.path for sample in samples.drawn()))
    expect(page.locator("[data-do=cancel]")).to_be_hidden()
    check_with_axe(page)
    page.locator(".tile.failed").click()
    check_with_axe(page)


def test_answer_without_script_is_accessible(open_page: Open, sample_image: Path) -> None:
    # axe needs the script: the form is sent by it, and the page that answers has none.
    page = open_page("pt-BR", bypass_csp=True)
    page.locator("#image").set_input_files(sample_image)
    check_answer(page, "pt-BR")
    page.locator("#image").set_input_files(sample_image)
    with page.expect_navigation():
        page.evaluate(
            "document.querySelector('.samples form').requestSubmit("
            "document.querySelector('.sample'))"
        )
    check_answer(page, "pt-BR")
    check_with_axe(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1280])
@pytest.mark.parametrize("script", [True, False])
def test_fits_every_screen(
    open_page: Open, sample_image: Path, scheme: str, width: int, script: bool
) -> None:
    page = open_page(
        "pt-BR",
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
        java_script_enabled=script,
    )

    def check() -> None:
        # Without the script, an answer is there before its style.
        page.wait_for_load_state()
        assert page.evaluate(OVERFLOW) == 0
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shade = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
        assert (shade < 64) == (scheme == "dark")

    check()
    choose(page, sample_image)
    check_answer(page, "pt-BR")
    check()
    if script:
        choose(page, sample_image, sample_image)
        expect(page.locator(".tile.confident")).to_have_count(3)
        check()

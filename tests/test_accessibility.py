"""The page in Chromium: keyboard, screen sizes, and the checks of axe."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed")

from axe_playwright_python.sync_playwright import Axe
from conftest import SERVED, Open
from page_stand_in import choose, choose_and_wait, serving_drawings
from playwright.sync_api import Page, expect

from frontend import samples

DRAWN = [sample.path for sample in samples.drawn()]
# WCAG 2.2 at level AA, and axe's best practices.
RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Serve the page in front of a service that knows the drawings."""
    with serving_drawings() as (address, _service):
        yield address


def check_with_axe(page: Page) -> None:
    """Check that axe finds no fault, in light or dark."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found = Axe().run(page, options=RULES).response["violations"]
        assert not found, [
            (rule["id"], node["html"], node["failureSummary"])
            for rule in found
            for node in rule["nodes"]
        ]


@pytest.mark.parametrize("path", ["/", "/models", f"/models/{SERVED[0]}", "/nowhere"])
def test_pages_pass_axe(open_address: Open, address: str, path: str) -> None:
    check_with_axe(open_address(address + path, bypass_csp=True, reduced_motion="reduce"))


@pytest.mark.parametrize("width", [390, 1280])
def test_answers_pass_axe(open_address: Open, address: str, tmp_path: Path, width: int) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"bad")
    page = open_address(
        address,
        bypass_csp=True,
        reduced_motion="reduce",
        viewport={"width": width, "height": 800},
    )
    choose(page, DRAWN[0])
    page.locator("[data-do=explain]").click()
    expect(page.locator(".heat")).to_be_visible()
    check_with_axe(page)
    choose_and_wait(page, bad, *DRAWN)
    page.locator(".tile.failed").click()
    page.get_by_label("Leukocytes").fill("7.2")
    page.keyboard.press("Tab")
    expect(page.locator(".absolute")).to_be_visible()
    check_with_axe(page)


def test_answer_without_script_passes_axe(open_address: Open, address: str) -> None:
    # axe needs the script, so the form is sent by it; the page that answers uses none.
    page = open_address(address, "pt-BR", bypass_csp=True, reduced_motion="reduce")
    with page.expect_navigation():
        page.evaluate(
            "document.querySelector('.samples form').requestSubmit("
            "document.querySelector('.sample'))"
        )
    expect(page.locator("#verdict")).to_have_text("Eosinófilo")
    check_with_axe(page)


def test_keyboard(open_address: Open, address: str) -> None:
    page = open_address(address)
    # Playwright intercepts the dialog from here on: it does not wait for that later.
    page.on("filechooser", lambda chooser: None)
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#image")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    # The two eosinophils come first.
    chooser.value.set_files(DRAWN[:3])
    first, second = page.locator(".tile").nth(0), page.locator(".tile").nth(1)
    # The keys work at once.
    expect(first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(second).to_be_focused()
    expect(second).to_have_attribute("aria-selected", "true")
    page.keyboard.press("3")
    labelled = page.locator(".tile.labelled")
    expect(labelled).to_contain_text("✓ Monocyte")
    while not page.locator(".tile.labelled:focus").count():
        page.keyboard.press("ArrowRight")
    page.keyboard.press("0")
    expect(labelled).to_have_count(0)


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (768, "light"), (1280, "dark")])
@pytest.mark.parametrize("script", [True, False])
def test_fits_the_screen(
    open_address: Open, address: str, width: int, scheme: str, script: bool
) -> None:
    # Portuguese has the longer words.
    page = open_address(
        address,
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
    choose(page, DRAWN[0])
    expect(page.locator("#verdict")).to_have_text("Eosinófilo")
    check()
    if script:
        choose(page, *DRAWN[:3])
        expect(page.locator(".tile:not(.asking) canvas[data-drawn]")).to_have_count(6)
        page.locator("#leukocytes").fill("7,2")
        page.keyboard.press("Tab")
        expect(page.locator(".absolute")).to_be_visible()
        check()
        page.route("**/api/predictions", lambda route: None)
        choose(page, *DRAWN[3:6])
        expect(page.locator(".tile.asking")).to_have_count(3)
        check()

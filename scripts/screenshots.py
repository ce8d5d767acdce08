"""Take screenshots of the page for the docs: `make screenshots`, to docs/screenshots/.

It starts its own service and uploads only drawn cells.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright
from tqdm import tqdm

from scripts.draw_cells import GREY, NATURAL_CELLS
from scripts.smear import draw_field
from serving.settings import ROOT
from testing import chromium
from testing.service import deployed

TARGET = ROOT / "docs" / "screenshots"
SAMPLES = ROOT / "frontend" / "static" / "samples"
DESK, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
# Drawings of each class; the seed is the number of the drawing.
MANY = {"NEUTROPHIL": 9, "LYMPHOCYTE": 6, "MONOCYTE": 3, "EOSINOPHIL": 2}


def main() -> int:
    """Take all screenshots; return the exit code."""
    program = chromium.find()
    if not program:
        print(f"error: {chromium.MISSING}.", file=sys.stderr)
        return 1
    # With the data set, the page offers its photographs.
    os.environ.pop("BLOOD_CELLS_DATA", None)
    TARGET.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        cells = draw_many(Path(scratch))
        with deployed(Path(scratch)) as service, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            for name in take(browser, service.frontend_url, cells):
                print(f"wrote {TARGET / name}.jpg")
    return 0


def draw_many(folder: Path) -> list[Path]:
    """Draw many cells, and write one damaged file."""
    paths: list[Path] = []
    for seed in tqdm(range(max(MANY.values())), desc="drawing cells", unit="field"):
        for label in NATURAL_CELLS:
            if seed < MANY[label]:
                path = folder / f"slide-{len(paths) + 1:02}.png"
                picture = draw_field([(label, 0.5, 0.5)], seed, (320, 240), NATURAL_CELLS, GREY)
                picture.save(path)
                paths.append(path)
    broken = folder / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:2000])
    return [*paths[:7], broken, *paths[7:], SAMPLES / "field-1.jpg", SAMPLES / "red-cells-1.jpg"]


def take(browser: Browser, address: str, cells: list[Path]) -> Iterator[str]:
    """Bring the page into each state, save a screenshot, and yield its name."""
    one, field, none = (SAMPLES / f"{name}-1.jpg" for name in ("neutrophil", "field", "red-cells"))

    @contextmanager
    def opened(path: str = "/", **options: Any) -> Iterator[Page]:
        context = browser.new_context(**{"viewport": DESK, "locale": "en-GB", **options})
        page = context.new_page()
        page.goto(address + path)
        yield page
        context.close()

    def save(page: Page, name: str, whole: bool = True) -> str:
        # No hover, and transitions at their end.
        page.mouse.move(0, 0)
        if whole:
            page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(500)
        page.screenshot(path=TARGET / f"{name}.jpg", full_page=whole, type="jpeg", quality=82)
        return name

    def ask(page: Page, *images: Path) -> None:
        page.set_input_files("#image", list(images))
        page.wait_for_selector(".workbench[aria-busy=false]")

    with opened() as page:
        yield save(page, "empty")
        ask(page, one)
        page.click("[data-do=explain]")
        page.wait_for_selector(".heat:not([hidden])")
        yield save(page, "one")
    with opened() as page:
        page.select_option("#version", "1.0")
        ask(page, SAMPLES / "eosinophil-1.jpg")
        yield save(page, "uncertain")
    with opened() as page:
        ask(page, none)
        yield save(page, "rejected")
    with opened() as page:
        ask(page, *cells)
        page.click(".tile >> nth=2")
        page.keyboard.press("1")
        yield save(page, "many")
        page.click(".filters [data-key=open]")
        yield save(page, "failed", whole=False)
        page.click(".filters [data-key=all]")
        page.emulate_media(color_scheme="dark")
        yield save(page, "dark", whole=False)
        page.emulate_media(color_scheme="light", media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        yield save(page, "print")
    with opened(locale="pt-BR", viewport=PHONE, is_mobile=True, has_touch=True) as page:
        yield save(page, "phone-empty")
        ask(page, *cells[:9])
        yield save(page, "phone")
    with opened(java_script_enabled=False) as page:
        page.set_input_files("#image", field)
        page.click("button[type=submit]")
        yield save(page, "without-script")
    with opened("/models") as page:
        yield save(page, "models")
    with opened("/models/3.0") as page:
        yield save(page, "model")
    with opened("/nowhere", locale="pt-BR") as page:
        yield save(page, "error")


if __name__ == "__main__":
    sys.exit(main())

"""Photograph the running page with a drawn cell on it, for the README: docs/page.png."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "page.png"


def main() -> int:
    """Upload a sample and save what the page shows; return the exit code."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not program:
        print("error: no Chromium: install it, or set CHROMIUM to its path.", file=sys.stderr)
        return 1
    url = f"http://127.0.0.1:{os.environ.get('FRONTEND_PORT', '5000')}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900}, locale="en-GB")
        page.goto(url)
        page.set_input_files("input[type=file]", ROOT / "serving" / "samples" / "neutrophil.png")
        page.click("button[type=submit]")
        page.wait_for_selector("table")
        TARGET.parent.mkdir(exist_ok=True)
        page.screenshot(path=TARGET, full_page=True)
        browser.close()
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

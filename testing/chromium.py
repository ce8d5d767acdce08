"""Find the browser that measures and tests the page."""

from __future__ import annotations

import os
import shutil

MISSING = "no Chromium: install it, or set CHROMIUM to its path"


def find() -> str | None:
    """Return the path of this machine's Chromium, None if there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")

"""Cell crops: an 80x60 window around each located cell.

The window is scaled so that a cell fills three quarters of its height at any magnification.
"""

from __future__ import annotations

from collections.abc import Sequence

from handler.locator import Located
from handler.preprocessing import HEIGHT, WIDTH, Box, Pixels, cut

# Window height divided by the longer side of the cell's box.
ZOOM = 1.35


def cut_out(field: Pixels, located: Sequence[Located]) -> list[Pixels]:
    """Cut each located cell out of its field (H, W, 3): (60, 80, 3)."""
    return [cut(field, window(cell.box), (WIDTH, HEIGHT)) for cell in located]


def window(box: Box, zoom: float = ZOOM, proportions: float = WIDTH / HEIGHT) -> Box:
    """Return the window around a cell's box; it may extend beyond the image."""
    left, top, right, bottom = box
    down = max(right - left, bottom - top) * zoom / 2
    across = down * proportions
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - across, y - down, x + across, y + down

"""Heat maps to lay over the upload: where a network looked (handler/attribution.py), as a PNG."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from handler.preprocessing import Box, Floats, Size

# The longer side of what is laid over the upload. Maps are smooth: a page can stretch them.
CANVAS = 640

# Yellow to red, which stands out from violet, in steps that look alike (in OKLab).
RAMP = ((255, 240, 90), (251, 197, 76), (243, 153, 62), (231, 107, 49), (216, 50, 36))
MAX_ALPHA = 200
# So few that the PNG is small, so many that no edges show.
LEVELS = 32


def canvas_size(size: Size) -> Size:
    """Return a size of the upload's proportions, at most 640 on the longer side and no larger."""
    shrink = min(1.0, CANVAS / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def place(heat: Floats, window: Box, size: Size) -> Floats:
    """Put a map that covers a window of the upload, in its pixels, onto a canvas (h, w).

    The window may reach beyond the upload; outside the window there is no heat.
    """
    left, top, right, bottom = window
    # The upload's corners, in pixels of the map.
    across, down = heat.shape[1] / (right - left), heat.shape[0] / (bottom - top)
    corners = (-left * across, -top * down, (size[0] - left) * across, (size[1] - top) * down)
    placed = Image.fromarray(heat).transform(
        canvas_size(size), Image.Transform.EXTENT, corners, Image.Resampling.BILINEAR
    )
    return np.asarray(placed)


def to_png(heat: Floats) -> str:
    """Colour heat (h, w) in [0, 1] as a PNG in base64: the hotter the redder and less transparent.

    It has a palette with alpha, half the size of RGBA.
    """
    levels = np.linspace(0, 1, LEVELS)
    stops = np.linspace(0, 1, len(RAMP))
    columns = [np.interp(levels, stops, channel) for channel in np.transpose(RAMP)]
    palette = np.rint(np.stack([*columns, levels * MAX_ALPHA], 1)).astype(np.uint8)
    image = Image.fromarray(np.rint(heat * (LEVELS - 1)).astype(np.uint8))
    image.putpalette(palette.tobytes(), "RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")

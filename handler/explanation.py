"""Heat maps (handler/attribution.py) as PNG images to overlay on the upload."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from handler.preprocessing import Box, Floats, Size

# Longer side of the overlay in pixels. Maps are smooth: a page can stretch them.
CANVAS = 640

# Yellow to red, which contrasts with violet stains, in perceptually even steps (OKLab).
RAMP = ((255, 240, 90), (251, 197, 76), (243, 153, 62), (231, 107, 49), (216, 50, 36))
MAX_ALPHA = 200
# Few enough for a small PNG, enough to show no edges.
LEVELS = 32


def canvas_size(size: Size) -> Size:
    """Return the overlay's size: the upload's, scaled down to at most 640 on the longer side."""
    shrink = min(1.0, CANVAS / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def place(heat: Floats, window: Box, size: Size) -> Floats:
    """Draw a map of a window of the upload, in pixels of it, on an overlay (h, w) of zeros.

    The window may extend beyond the upload.
    """
    left, top, right, bottom = window
    # Corners of the upload in pixels of the map.
    across, down = heat.shape[1] / (right - left), heat.shape[0] / (bottom - top)
    corners = (-left * across, -top * down, (size[0] - left) * across, (size[1] - top) * down)
    placed = Image.fromarray(heat).transform(
        canvas_size(size), Image.Transform.EXTENT, corners, Image.Resampling.BILINEAR
    )
    return np.asarray(placed)


def to_png(heat: Floats) -> str:
    """Return heat (h, w) in [0, 1] as a base64 PNG: hotter is redder and less transparent.

    A palette with alpha takes half the bytes of RGBA.
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

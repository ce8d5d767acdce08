"""Changes of an image that a version should withstand, each in several amounts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

Change = Callable[..., Image.Image]


def blur(image: Image.Image, amount: float) -> Image.Image:
    """Blur by a Gaussian with a standard deviation of this percentage of the width."""
    return image.filter(ImageFilter.GaussianBlur(image.width * amount / 100))


def jpeg(image: Image.Image, amount: float) -> Image.Image:
    """Compress to this quality."""
    out = BytesIO()
    image.save(out, "JPEG", quality=int(amount))
    return Image.open(out).convert("RGB")


def brightness(image: Image.Image, amount: float) -> Image.Image:
    """Multiply the brightness."""
    return ImageEnhance.Brightness(image).enhance(amount)


def hue(image: Image.Image, amount: float) -> Image.Image:
    """Rotate the hue, in degrees."""
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] = (pixels[..., 0].astype(int) + round(amount / 360 * 256)) % 256
    return Image.fromarray(pixels, "HSV").convert("RGB")


def rotation(image: Image.Image, amount: float) -> Image.Image:
    """Rotate around the centre; corners become black."""
    return image.rotate(amount, Image.Resampling.BICUBIC)


def scale(image: Image.Image, amount: float) -> Image.Image:
    """Zoom in on the centre (above 1) or out (below), surrounded by the image's own light."""
    width, height = image.size
    across, down = width / amount / 2, height / amount / 2
    window = (width / 2 - across, height / 2 - down, width / 2 + across, height / 2 + down)
    return image.transform(
        image.size,
        Image.Transform.EXTENT,
        window,
        Image.Resampling.BICUBIC,
        fillcolor=light_of(image),
    )


def light_of(image: Image.Image) -> tuple[int, ...]:
    """Return the colour of the brightest tenth of an image."""
    return tuple(int(part) for part in np.percentile(np.asarray(image), 90, axis=(0, 1)))


CHANGES: dict[str, tuple[str, Sequence[float], Change]] = {
    "blur": ("% of the width", (0, 0.25, 0.5, 1, 1.5, 2), blur),
    "JPEG quality": ("quality", (95, 75, 50, 30, 15, 8), jpeg),
    "brightness": ("factor", (0.5, 0.7, 0.85, 1, 1.15, 1.3, 1.6), brightness),
    "hue": ("degrees", (-30, -20, -10, 0, 10, 20, 30), hue),
    "rotation": ("degrees", (0, 15, 45, 90, 135, 180, 270), rotation),
    "scale": ("factor", (0.4, 0.6, 0.8, 1, 1.25, 1.6, 2), scale),
}

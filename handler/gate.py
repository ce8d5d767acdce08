"""The input of the gate, which checks whether an image shows a stained nucleus.

The gate itself is an ONNX graph like the networks (training/gate.py).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from handler.preprocessing import Pixels

# Width and height: small enough to average out pixel noise and to cost next to nothing, large
# enough that the smallest nuclei are still some pixels wide.
SIZE = (40, 30)


def shrink(pixels: Pixels) -> Pixels:
    """Scale an image (H, W, 3) to the gate's input (30, 40, 3)."""
    # A reducing gap of 1 averages whole pixels first: faster, and as good here.
    return np.asarray(Image.fromarray(pixels).resize(SIZE, Image.Resampling.BOX, reducing_gap=1))

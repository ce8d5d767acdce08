"""Heat maps of the evidence for a class, by occlusion: how much the answer needs each place.

Soft patches of the image's mean colour cover the network's input, one after the other (Zeiler and
Fergus 2014). The heat of a place is how much the class's logit falls, averaged over the patches
around it. This needs only outputs of the network, so it explains the graph that serves.
"""

from __future__ import annotations

import numpy as np

from handler.engine import Network
from handler.preprocessing import HEIGHT, WIDTH, Floats, Pixels

# Patches across and down, and the standard deviation of each, a Gaussian, in pixels. More patches
# find no more evidence. With even numbers none covers the middle, where a cell's crop has the cell.
ACROSS, DOWN, RADIUS = 5, 5, 6.0
# The fall of the logit that is full heat, unless the largest is greater: slight evidence is pale.
FULL = 0.5


def attribute(network: Network, image: Pixels, label: int, batch_size: int) -> Floats:
    """Return a heat map (60, 80) in [0, 1] of a class in one of the network's inputs."""
    copies = np.concatenate([image[None], _covered(image)])
    parts = (copies[start : start + batch_size] for start in range(0, len(copies), batch_size))
    whole, *covered = np.concatenate([network(part)[:, label] for part in parts])
    falls = whole - np.array(covered)
    heat: Floats = np.maximum(np.tensordot(falls, PATCHES, 1) / PATCHES.sum(0), 0)
    heat /= max(heat.max(), FULL)
    return heat


def _covered(image: Pixels) -> Pixels:
    """Return a copy of an image (60, 80, 3) with each patch on it."""
    light = image.astype(np.float32)
    copies: Floats = PATCHES[..., None] * (light.mean((0, 1)) - light)
    copies += light
    # Rounds in a fifth of the time of np.rint.
    return (copies + np.float32(0.5)).astype(np.uint8)


def _bells(count: int, side: int) -> Floats:
    """Return evenly spaced Gaussians (count, side) with a maximum of 1."""
    centres = (np.arange(count, dtype=np.float32)[:, None] + 0.5) * side / count
    distances = np.arange(side, dtype=np.float32) + 0.5 - centres
    bells: Floats = np.exp(-((distances / RADIUS) ** 2) / 2)
    return bells


# How much each patch covers of each pixel (25, 60, 80), in [0, 1].
PATCHES = (_bells(DOWN, HEIGHT)[:, None, :, None] * _bells(ACROSS, WIDTH)[:, None]).reshape(
    -1, HEIGHT, WIDTH
)

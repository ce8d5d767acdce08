"""Where a network looked: heat maps to lay over the upload.

A map divides a class's logit among the places of the last convolution by integrated gradients
(captum's; Sundararajan et al. 2017): by how the logit changes from a blank picture of the image's
own mean colour to the image. Grad-CAM gives a channel one weight for all places, which suits
networks that average over the places before they decide; there the two do equally well. One that
does not, as version 1.0, it explains wrongly: covering what it marks changes the answer little.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from handler.preprocessing import HEIGHT, WIDTH, Box, Size

# From blank to image; more steps change nothing to see.
STEPS = 8
# Max-pooling hands its gradient to single pixels. Averaged over this many, twice, maps agree
# better with what covering parts of an image does to the answer.
BLUR = 13
# The longer side of what is laid over the upload. Maps are smooth: a page can stretch them.
CANVAS = 640

# What a place adds to the logit; less is rounding, and all that a blank picture has.
MIN_SHARE = 1e-5

Heat = npt.NDArray[np.float32]

# Yellow to red, which stands out from violet, in steps that look alike (in OKLab).
RAMP = ((255, 240, 90), (251, 197, 76), (243, 153, 62), (231, 107, 49), (216, 50, 36))
MAX_ALPHA = 200
# So few that the PNG is small, so many that no edges show.
LEVELS = 32


@torch.inference_mode(False)
@torch.enable_grad()
def heat_maps(
    network: nn.Module, layer: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Map N inputs (N, 3, 60, 80) and a class for each (N,) to what spoke for it (N, 60, 80).

    Each map is divided by its own maximum, and 0 if nothing spoke for the class. The network runs,
    forth and back, on eight times N inputs at once.
    """
    # Comes with matplotlib: a second and 30 MB, that only those who explain should pay.
    from captum.attr import LayerIntegratedGradients

    # Tensors of inference mode can't take part in gradients, their copies can.
    inputs, targets = inputs.clone(), targets.to(inputs.device, copy=True)
    blank = inputs.mean((2, 3), keepdim=True).expand_as(inputs)
    explainer = LayerIntegratedGradients(network, layer)
    shares = explainer.attribute(inputs, blank, targets, n_steps=STEPS).detach()
    heat = F.interpolate(shares.sum(1, keepdim=True), (HEIGHT, WIDTH), mode="bilinear")
    for _ in range(2):
        heat = F.avg_pool2d(heat, BLUR, 1, BLUR // 2, count_include_pad=False)
    heat = heat[:, 0].clamp(min=0)
    top = heat.amax((1, 2), keepdim=True)
    return torch.where(top > MIN_SHARE, heat / top, 0.0)


def canvas_size(size: Size) -> Size:
    """Return a size of the upload's proportions, at most 640 on the longer side and no larger."""
    shrink = min(1.0, CANVAS / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def place(heat: Heat, window: Box, size: Size) -> Heat:
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


def to_png(heat: Heat) -> str:
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

"""Heat maps of the evidence for a class, by integrated gradients. Imports torch and captum.

Integrated gradients (Sundararajan et al. 2017) distribute a class's logit over the places of the
last convolution, as the input goes from the image's mean colour to the image. Grad-CAM is cheaper,
and as good for networks that pool over all places. Version 1.0 does not, and its Grad-CAM maps are
wrong: covering a marked area barely changes the answer (measured in tests/test_explanation.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import LayerIntegratedGradients
from torch import nn
from torch.nn import functional as F

from handler.networks import BloodCellNet, CellNet
from handler.preprocessing import HEIGHT, WIDTH, Floats

# Steps of the integral; more make no visible difference.
STEPS = 8
# Side of the mean filter in pixels, applied twice. Max-pooling passes its gradient to single
# pixels; smoothed maps agree better with occlusion.
BLUR = 13
# A smaller share of the logit is rounding error.
MIN_SHARE = 1e-5


def attribute(network: BloodCellNet | CellNet, inputs: Floats, labels: Sequence[int]) -> Floats:
    """Return a heat map (N, 60, 80) in [0, 1] for each input (N, 3, 60, 80) and its class."""
    device = next(network.parameters()).device
    images = torch.from_numpy(inputs).to(device)
    maps = heat_maps(network, network.last_convolution, images, torch.tensor(labels))
    heat: Floats = maps.cpu().numpy()
    return heat


@torch.enable_grad()
def heat_maps(
    network: nn.Module, layer: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return a heat map (N, 60, 80) for each input (N, 3, 60, 80) and its class, targets (N,).

    Each map has a maximum of 1, or is 0 if there is no evidence for the class. The network runs
    forward and backward on 8 N inputs at once.
    """
    targets = targets.to(inputs.device)
    blank = inputs.mean((2, 3), keepdim=True).expand_as(inputs)
    explainer = LayerIntegratedGradients(network, layer)
    shares = explainer.attribute(inputs, blank, targets, n_steps=STEPS).detach()
    heat = F.interpolate(shares.sum(1, keepdim=True), (HEIGHT, WIDTH), mode="bilinear")
    for _ in range(2):
        heat = F.avg_pool2d(heat, BLUR, 1, BLUR // 2, count_include_pad=False)
    heat = heat[:, 0].clamp(min=0)
    top = heat.amax((1, 2), keepdim=True)
    return torch.where(top > MIN_SHARE, heat / top, 0.0)

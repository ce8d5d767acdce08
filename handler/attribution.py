"""Where a network looked, by its gradients. Loads torch and captum, for who asks for it.

A map divides a class's logit among the places of the last convolution by integrated gradients
(captum's; Sundararajan et al. 2017): by how the logit changes from a blank picture of the image's
own mean colour to the image. Grad-CAM gives a channel one weight for all places, which suits
networks that average over the places before they decide; there the two do equally well. One that
does not, as version 1.0, it explains wrongly: covering what it marks changes the answer little.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import LayerIntegratedGradients
from torch import nn
from torch.nn import functional as F

from handler.networks import BloodCellNet, CellNet
from handler.preprocessing import HEIGHT, WIDTH, Floats

# From blank to image; more steps change nothing to see.
STEPS = 8
# Max-pooling hands its gradient to single pixels. Averaged over this many, twice, maps agree
# better with what covering parts of an image does to the answer.
BLUR = 13
# What a place adds to the logit; less is rounding, and all that a blank picture has.
MIN_SHARE = 1e-5


def attribute(network: BloodCellNet | CellNet, inputs: Floats, labels: Sequence[int]) -> Floats:
    """Map N inputs (N, 3, 60, 80) and a class for each to what spoke for it (N, 60, 80)."""
    device = next(network.parameters()).device
    seen = torch.from_numpy(inputs).to(device)
    maps = heat_maps(network, network.last_convolution, seen, torch.tensor(labels))
    heat: Floats = maps.cpu().numpy()
    return heat


@torch.enable_grad()
def heat_maps(
    network: nn.Module, layer: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Map N inputs (N, 3, 60, 80) and a class for each (N,) to what spoke for it (N, 60, 80).

    Each map is divided by its own maximum, and 0 if nothing spoke for the class. The network runs,
    forth and back, on eight times N inputs at once.
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

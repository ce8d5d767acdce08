"""Torchvision's transforms beside a CPU build of torch.

The torchvision on PyPI is built for CUDA. Beside the CPU build of torch its compiled part can't
load, and its import fails because an operator has no schema ("torchvision::nms does not exist").
Its Python part, all that training uses, works once the schemas are there. Where torchvision loads
by itself, this does nothing but import it.
"""

from __future__ import annotations

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # Kept for as long as the process lives: when this goes, so do the schemas.
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision.transforms import v2

__all__ = ["v2"]

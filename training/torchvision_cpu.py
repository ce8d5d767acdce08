"""Torchvision's transforms with a CPU build of torch.

The torchvision on PyPI is built for CUDA. With a CPU build of torch its import fails because an
operator has no schema ("torchvision::nms does not exist"). Its Python part, which is all that
training uses, works once the schemas are defined.
"""

from __future__ import annotations

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # The schemas are removed when this object is.
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision.transforms import v2

__all__ = ["v2"]

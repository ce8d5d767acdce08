"""The seed's network: two 3x3 convolutions, dropout, two linear layers, four classes.

It looks at the whole 80x60 field, less its mean colour. It is not a detector: it does not know
where the cell is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from handler.preprocessing import HEIGHT, WIDTH

CLASSES = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL")
# Brings the images to about unit variance.
CONTRAST = 5.0


class BloodCellNet(nn.Module):
    """Map images (N, 3, 60, 80) in [0, 1] to logits (N, 4), in the order of CLASSES.

    The channels of the two convolutions, the max-pooling after each (1: none) and the width of
    the hidden layer are free; the rest is the seed's.
    """

    def __init__(
        self,
        channels: Sequence[int],
        pools: Sequence[int],
        hidden: int,
        dropout: Sequence[float],
    ) -> None:
        super().__init__()
        # ReLU and max-pooling commute; pooling first leaves ReLU a quarter of the work or less.
        self.features = nn.Sequential(
            nn.Conv2d(3, channels[0], 3, padding=1),
            nn.MaxPool2d(pools[0]),
            nn.ReLU(),
            nn.Conv2d(channels[0], channels[1], 3, padding=1),
            nn.MaxPool2d(pools[1]),
            nn.ReLU(),
            nn.Dropout(dropout[0]),
            nn.Flatten(),
        )
        height, width = (side // pools[0] // pools[1] for side in (HEIGHT, WIDTH))
        self.classifier = nn.Sequential(
            nn.Linear(channels[1] * height * width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout[1]),
            nn.Linear(hidden, len(CLASSES)),
        )

    @property
    def last_convolution(self) -> nn.Module:
        """Return the layer that a heat map is of."""
        return self.features[3]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Less its own mean colour, so that lamp, exposure and white balance matter less.
        images = (images - images.mean((2, 3), keepdim=True)) * CONTRAST
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits

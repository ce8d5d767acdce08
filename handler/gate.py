"""A cheap look, before any network: is there a stained nucleus in this picture?

Colours are read as optical densities: what each spot takes of the red, green and blue light that
the picture's own background lets through. So neither the lamp's colour nor its strength matters.
A nucleus is purple or blue: it takes green and red, hardly blue. Red cells take green and blue,
hardly red. Whatever the laboratory, nothing in a smear takes red and blue but leaves green.

This is what the look goes by; how it is done stands with the networks (handler/networks.py), as it
is served in the same way.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from handler.preprocessing import Pixels

# So small that the noise of single pixels cancels, and that it costs next to nothing; the smallest
# nuclei are still some pixels wide.
SIZE = (40, 30)
# Darker than this part of the brightest is not the field, but what a rotation or an eyepiece
# leaves round it.
BLACK = 0.15
# The share of the field that is taken to be darker than the background: the cells may crowd.
CROWDED = 0.8
# A lamp's strongest channel is no more than this times its weakest. Of what is more coloured, the
# rest is the picture's own colour.
TINT = 1.4
# A tone that is added to all, so that black takes a finite part of the light.
DARK = 4
# The density that tells a nucleus in a pale smear. A darker one does not count for more, or a
# purple speck would make up for its surroundings.
DEEP = 0.25
# Half the sides of the squares that a nucleus may fill: a small lymphocyte's in a wide field, and
# up to one that fills most of the picture.
RADII = (1, 2, 4)
# The part of the surroundings that is held against a spot. All of it would be best against purple
# clouds and gradients, but a nucleus that fills the picture is surrounded by itself.
SURROUNDINGS = 0.6
# A picture whose colours are foreign by a sixteenth, in density, can't make up for it.
FOREIGN = 16


def shrink(pixels: Pixels) -> Pixels:
    """Scale a picture to what the gate looks at: (30, 40, 3)."""
    # The gap of 1 averages whole pixels first, which is quicker and no worse here.
    return np.asarray(Image.fromarray(pixels).resize(SIZE, Image.Resampling.BOX, reducing_gap=1))

"""How versions are trained and measured: the constants that code and model cards share."""

from __future__ import annotations

# The classes that versions are trained on: each writes its own to its card, in this order. 1.0 and
# the original images have no basophils.
CLASSES = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL", "BASOPHIL")
FIELD_CLASSES = CLASSES[:4]
# Folds of the cross-validation over all photographs, and of the smaller ones within the training
# data, which choose a seed, a network or a temperature.
FOLDS, INNER_FOLDS = 5, 3
# One in HELD_OUT groups of a laboratory's cells is held out for evaluation.
HELD_OUT = 4
# Cells of each class that a laboratory needs at least.
MIN_CELLS = 5
# The share of true cells that are not rejected, in each laboratory left out; and of the cells of
# the laboratory that a version is adapted to.
KEPT, KEPT_OWN = 0.9, 0.98
# The accuracy of `confident` answers.
RIGHT = 0.95
# Bins of the expected calibration error.
BINS = 15
# Resamples of the bootstrap behind each interval.
RESAMPLES = 10_000

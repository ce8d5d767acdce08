"""How versions are trained and measured: the constants that code and model cards share."""

from __future__ import annotations

# The classes that versions are trained on: each writes them to its card, in this order.
CLASSES = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL")
# Folds of the cross-validation over all photographs, and of the smaller ones within the training
# data, which choose a seed, a network or a temperature.
FOLDS, INNER_FOLDS = 5, 3
# One in HELD_OUT groups of a laboratory's cells is held out for evaluation.
HELD_OUT = 4
# Cells of each class that a laboratory needs at least.
MIN_CELLS = 5
# The share of true cells that each threshold keeps: `stain` rejects pictures, `foreign` cells.
KEPT = {"stain": 0.997, "foreign": 0.98}
# The accuracy of `confident` answers.
RIGHT = 0.95
# Bins of the expected calibration error.
BINS = 15
# Resamples of the bootstrap behind each interval.
RESAMPLES = 10_000

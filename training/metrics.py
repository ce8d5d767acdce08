"""Accuracy, precision, recall and F1, with intervals by photograph.

TEST's 2,487 images were made from 71 photographs, and images of one photograph are correct or wrong
together. The bootstrap therefore resamples photographs (a cluster bootstrap: Davison and Hinkley
1997, chapter 3.8). In other laboratories, a slide or a patient takes the photograph's place.

A class without images has no figures and does not count in a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score, roc_curve

from training.protocol import CLASSES, RESAMPLES

Array = npt.NDArray[np.float64]
# What stands in the place of a class where no cell was found.
NOT_FOUND = -1


def confusion_by_photograph(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], photographs: list[str]
) -> Array:
    """Count the images of each photograph: (P, true class, predicted class).

    The last column counts images in which no cell was found.
    """
    names = {name: index for index, name in enumerate(sorted(set(photographs)))}
    counts = np.zeros((len(names), len(CLASSES), len(CLASSES) + 1))
    rows = np.array([names[name] for name in photographs])
    np.add.at(counts, (rows, labels, predicted), 1)
    return counts


def balanced(strata: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Array:
    """Return weights (N,) that are equal for all strata, and for all labels in a stratum."""
    weights = np.zeros(len(labels))
    for stratum in np.unique(strata):
        here = strata == stratum
        kinds = np.unique(labels[here])
        for label in kinds:
            these = here & (labels == label)
            weights[these] = 1 / these.sum() / len(kinds)
    shares: Array = weights / weights.sum()
    return shares


def resamples(size: int, seed: int = 0) -> Array:
    """Draw how often each of `size` photographs is in each resample: (RESAMPLES, size)."""
    random = np.random.default_rng(seed)
    return random.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(float)


def summarize(counts: Array, seed: int = 0) -> dict[str, Any]:
    """Return the figures of counts (P, true, predicted) as {"value", "interval"} of 95 %.

    `image_accuracy` is the share of correct images, `photograph_accuracy` its mean by photograph.
    """
    draws = resamples(len(counts), seed)
    total = counts.sum(0)
    resampled = np.tensordot(draws, counts, 1)
    shares = accuracy(counts)
    shown = _shown(total)
    columns = sorted({*shown, *np.flatnonzero(total.sum(0)).tolist()})

    def figure(statistic: Callable[[Array], Array]) -> dict[str, Any]:
        return _figure(statistic(total[None])[0], statistic(resampled))

    return {
        "images": int(total.sum()),
        "photographs": len(counts),
        "image_accuracy": figure(accuracy),
        "photograph_accuracy": _figure(shares.mean(), draws @ shares / len(counts)),
        "macro_recall": figure(partial(_macro_recall, shown)),
        "classes": {
            CLASSES[index]: {
                "images": int(total[index].sum()),
                "photographs": int((counts[:, index].sum(1) > 0).sum()),
                "precision": figure(partial(_precision, index)),
                "recall": figure(partial(_recall, index)),
                "f1": figure(partial(_f1, index)),
            }
            for index in shown
        },
        "predicted": [[*CLASSES, "no cell"][column] for column in columns],
        "confusion": total[np.ix_(shown, columns)].astype(int).tolist(),
    }


def mean_macro_recall(parts: Sequence[Array]) -> dict[str, Any]:
    """Return the mean macro recall of laboratories, from the counts of each."""
    values, resampled = [], []
    for seed, counts in enumerate(parts):
        total = counts.sum(0, keepdims=True)
        shown = _shown(total[0])
        values.append(_macro_recall(shown, total))
        draws = np.tensordot(resamples(len(counts), seed), counts, 1)
        resampled.append(_macro_recall(shown, draws))
    return _figure(float(np.mean(values)), np.mean(resampled, axis=0))


def separation(cells: npt.NDArray[Any], others: npt.NDArray[Any]) -> dict[str, Any]:
    """Return the AUROC of scores, and the share of other images kept with 95 % of the cells."""
    labels = np.repeat([0, 1], [len(cells), len(others)])
    scores = np.concatenate([cells, others])
    kept_others, kept_cells, _ = roc_curve(1 - labels, -scores)
    return {
        "images": len(others),
        "auroc": round(float(roc_auc_score(labels, scores)), 4),
        "fpr_at_95_tpr": round(float(kept_others[np.argmax(kept_cells >= 0.95)]), 4),
    }


def _shown(total: Array) -> list[int]:
    """Return the classes that have images."""
    shown: list[int] = np.flatnonzero(total.sum(1)).tolist()
    return shown


def accuracy(counts: Array) -> Array:
    """Return the share of correct images, for each of R confusion matrices."""
    return _ratio(np.trace(counts, axis1=1, axis2=2), counts.sum((1, 2)))


def _precision(index: int, counts: Array) -> Array:
    return _ratio(counts[:, index, index], counts[:, :, index].sum(1))


def _recall(index: int, counts: Array) -> Array:
    return _ratio(counts[:, index, index], counts[:, index].sum(1))


def _macro_recall(classes: Sequence[int], counts: Array) -> Array:
    recalls = [_recall(index, counts) for index in classes]
    mean: Array = np.mean(recalls, axis=0)
    return mean


def _f1(index: int, counts: Array) -> Array:
    both = counts[:, index].sum(1) + counts[:, :, index].sum(1)
    return _ratio(2 * counts[:, index, index], both)


def _figure(value: float, resampled: Array) -> dict[str, Any]:
    if np.isnan(resampled).all():
        return {"value": None, "interval": None}
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return {
        "value": round(float(value), 6),
        "interval": [round(float(low), 6), round(float(high), 6)],
    }


def _ratio(part: Array, whole: Array) -> Array:
    """Divide; 0 / 0 is NaN, which intervals exclude."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)

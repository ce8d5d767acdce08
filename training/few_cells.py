"""Measure what a few labelled cells of a laboratory add: few_cells.json.

A linear head is trained on the embeddings of 5, 10 or 25 labelled cells of each class, in a second;
nothing else changes. Its answer is blended with the network's own:

    log p = log p_head + weight * log(p_network + 0.0001)

The head minimises the cross-entropy, summed over the labelled cells, plus |W|^2 / (2 C); intercepts
are free. It reads embeddings less the mean of the labelled cells, divided by the mean deviation of
their features. C and the weight of a laboratory are those that do best in the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from training import version_files
from training.calibrate import of_test
from training.crossvalidate import EMBEDDINGS
from training.data import DataError
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES
from training.table import Table

COUNTS = (5, 10, 25)
STRENGTHS = (0.005, 0.02, 0.05, 0.2)
WEIGHTS = (0.0, 0.25, 0.5, 1.0)
DRAWS = 10
# A class keeps this share of its cells for testing, if it has few.
TESTED = 0.5

# Added to the network's probabilities: the head can always overrule them.
LEAST = 1e-4

Array = np.ndarray
# The choices: (C, weight).
GRID = list(product(STRENGTHS, WEIGHTS))


@dataclass
class Embedded(Table):
    """N cells of the classes, as networks that never saw their laboratory see them."""

    laboratories: Array
    labels: Array
    groups: Array
    logits: Array
    embeddings: Array


def measure_few_cells(version: str) -> None:
    """Write few_cells.json: macro recall by the number of labelled cells, and the recipe."""
    card = version_files.read_card(version)
    cells = read(version, card)
    cells.logits = cells.logits[:, : len(CLASSES)] / card["temperature"]
    parts = {
        str(name): cells.take(cells.laboratories == name) for name in np.unique(cells.laboratories)
    }
    measured = {name: grid(part, f"a few cells of {name}") for name, part in parts.items()}
    laboratories = {}
    for name, part in parts.items():
        choice = best([measured[other] for other in parts if other != name])
        recalls = [recall(part.labels, part.logits), *measured[name][:, choice]]
        laboratories[name] = {
            "recipe": recipe(choice),
            "classes": [CLASSES[label] for label in np.unique(part.labels)],
            "points": [
                {"cells_a_class": count, "macro_recall": round(float(value), 4)}
                for count, value in zip((0, *COUNTS), recalls, strict=True)
            ],
        }
    document = {
        "draws": DRAWS,
        "recipe": recipe(best(list(measured.values()))),
        "laboratories": laboratories,
    }
    path = version_files.folder(version) / "few_cells.json"
    version_files.write_json(path, document)
    print(f"wrote {path}")


def recipe(choice: int) -> dict[str, float]:
    strength, weight = GRID[choice]
    return {"C": strength, "weight": weight}


def read(version: str, card: version_files.Card) -> Embedded:
    """Read the found cells of laboratories left out; raise DataError without embeddings."""
    rows = OutOfFold.of(version)
    rows = rows.take(rows.folds < 0)
    folder = version_files.scratch(version) / EMBEDDINGS
    # The rows of a laboratory follow each other.
    names = dict.fromkeys(rows.laboratories.tolist())
    try:
        embeddings = np.concatenate([np.load(folder / f"{name}.npy") for name in names])
    except OSError as error:
        raise DataError(f"{error}\nRun `make train VERSION={version}` first.") from error
    leaders = rows.leaders(card)
    rows, embeddings = rows.take(leaders), embeddings[leaders]
    cells = Embedded(rows.laboratories, rows.labels, rows.groups, rows.logits, embeddings)
    known = rows.found & (rows.labels < len(CLASSES))
    return cells.take(known & ~of_test(rows.names, rows.groups))


def grid(cells: Embedded, title: str) -> Array:
    """Return the macro recall for each count and each choice, (counts, choices): mean of draws."""
    recalls = np.zeros((len(COUNTS), DRAWS, len(GRID)))
    bar = tqdm(list(product(range(len(COUNTS)), range(DRAWS))), desc=title, mininterval=1)
    for at, seed in bar:
        labelled, unseen = draw(cells.labels, cells.groups, COUNTS[at], seed)
        own = cells.logits[unseen]
        heads = {
            strength: head(cells.take(labelled), cells.embeddings[unseen], strength)
            for strength in STRENGTHS
        }
        recalls[at, seed] = [
            recall(cells.labels[unseen], blend(heads[strength], own, weight))
            for strength, weight in GRID
        ]
    mean: Array = recalls.mean(1)
    return mean


def best(measured: list[Array]) -> int:
    """Return the index of the choice with the highest mean over laboratories and counts."""
    return int(np.mean(measured, axis=(0, 1)).argmax())


def draw(labels: Array, groups: Array, count: int, seed: int) -> tuple[Array, Array]:
    """Draw `count` cells of each class; return their indices, and those of all other groups."""
    random = np.random.default_rng(seed)
    present, sizes = np.unique(labels, return_counts=True)
    wanted = {
        label: min(count, int(size * TESTED)) for label, size in zip(present, sizes, strict=True)
    }
    labelled: list[int] = []
    for group in random.permutation(np.unique(groups)):
        for index in random.permutation(np.flatnonzero(groups == group)):
            if wanted[labels[index]]:
                wanted[labels[index]] -= 1
                labelled.append(index)
    return np.array(labelled), np.flatnonzero(~np.isin(groups, groups[labelled]))


def head(labelled: Embedded, embeddings: Array, strength: float) -> Array:
    """Train a head on the labelled cells; return its log probabilities (N, CLASSES) of others."""
    mean = labelled.embeddings.mean(0)
    # One scale for all features: the deviation of each, of so few cells, is little but noise.
    scale = labelled.embeddings.std(0).mean()
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit((labelled.embeddings - mean) / scale, labelled.labels)
    scores = np.full((len(embeddings), len(CLASSES)), -np.inf)
    scores[:, model.classes_] = model.predict_log_proba((embeddings - mean) / scale)
    return scores


def blend(head: Array, logits: Array, weight: float) -> Array:
    """Return the unnormalised log probabilities of head and network together."""
    blended: Array = head + weight * np.log(softmax(logits, 1) + LEAST)
    return blended


def recall(labels: Array, scores: Array) -> float:
    """Return the mean recall of the classes that there are."""
    right = scores.argmax(1) == labels
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))

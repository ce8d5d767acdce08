"""The head that the page trains in the browser, beside scikit-learn's."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from test_few_cells import cells

from serving.settings import ROOT
from training.few_cells import blend, draw

SCRIPT = """
import { blend, train } from "./frontend/static/js/head.js";
import { readFileSync } from "node:fs";
const { learned, labels, classes, C, weight, others, network } = JSON.parse(readFileSync(0));
const names = network[0].map((_, at) => String(at)), known = names.slice(0, classes);
const weights = train(learned.map((each) => Float32Array.from(each)), labels, classes, C);
console.log(JSON.stringify(others.map((each, at) => Object.values(blend(
  weights, known, weight, Float32Array.from(each),
  Object.fromEntries(network[at].map((share, k) => [names[k], share])),
)))));
"""


@pytest.mark.parametrize("strength", [0.005, 0.2])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_page_trains_the_same_head(strength: float, classes: int) -> None:
    node = shutil.which("node")
    if not node:
        pytest.skip("no Node")
    part = cells("here", classes=classes)
    # Embeddings have any scale and place.
    part.embeddings = part.embeddings * 0.3 + 2
    learned, others = draw(part.labels, part.groups, 10, 0)
    document = {
        "learned": part.embeddings[learned].tolist(),
        "labels": part.labels[learned].tolist(),
        "classes": classes,
        "C": strength,
        "weight": 0.25,
        "others": part.embeddings[others].tolist(),
    }
    logits = part.logits[others].astype(float)
    network = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    done = subprocess.run(
        [node, "--input-type=module", "-e", SCRIPT],
        cwd=ROOT,
        input=json.dumps(document | {"network": network.tolist()}),
        capture_output=True,
        text=True,
        check=True,
    )
    found = np.array(json.loads(done.stdout))
    assert found.sum(1) == pytest.approx(1)
    # A class that the head does not know keeps the network's probability.
    assert found[:, classes:] == pytest.approx(network[:, classes:])
    # scikit-learn stops earlier where the numbers have 32 bits.
    part.embeddings = part.embeddings.astype(float)
    mean, scale = part.embeddings[learned].mean(0), part.embeddings[learned].std(0).mean()
    # Of two classes scikit-learn has one row of weights: the difference of the two rows.
    same = strength * (2 if classes == 2 else 1)
    model = LogisticRegression(C=same, tol=1e-9, max_iter=1000)
    model.fit((part.embeddings[learned] - mean) / scale, part.labels[learned])
    scores = model.predict_log_proba((part.embeddings[others] - mean) / scale)
    padded = np.pad(scores, ((0, 0), (0, 5 - classes)), constant_values=-np.inf)
    recipe = np.exp(blend(padded, logits, 0.25)[:, :classes])
    share = network[:, :classes].sum(1, keepdims=True)
    expected = share * recipe / recipe.sum(1, keepdims=True)
    assert found[:, :classes] == pytest.approx(expected, abs=1e-5)

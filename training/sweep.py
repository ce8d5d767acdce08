"""Compare layouts of the whole-field network by grouped cross-validation within TRAIN.

Three folds: each image is predicted by a network that never saw its photograph. The layout to ship
is the smallest whose difference to the best may be zero (95 % interval of a paired bootstrap over
photographs). TEST is never opened.

Writes sweep.json and plots/trade_off.png to models/1.0/. An interrupted sweep continues.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format
from torch.utils.flop_counter import FlopCounterMode

from handler.preprocessing import HEIGHT, WIDTH
from training import data, plots
from training.fields import Batch, cross_predict
from training.metrics import Array, accuracy, confusion_by_photograph, resamples, summarize
from training.networks import BloodCellNet
from training.protocol import INNER_FOLDS
from training.recipes import FieldRecipe
from training.version_files import folder, scratch, write_json

CANDIDATES = {
    "8, 16 channels, pools 2, 4": FieldRecipe(channels=(8, 16), hidden=64),
    "16, 32 channels, pools 2, 2": FieldRecipe(pools=(2, 2)),
    "16, 32 channels, pools 2, 4": FieldRecipe(),
    "32, 64 channels, pools 2, 4": FieldRecipe(channels=(32, 64), hidden=128),
}


def sweep(epochs: int) -> None:
    """Compare layouts of the whole-field network: sweep.json."""
    images = data.list_images(data.data_root(), "TRAIN")
    everything = Batch.of(*data.load(images, "TRAIN"))
    results = [
        compare(name, replace(recipe, epochs=epochs), everything, images)
        for name, recipe in CANDIDATES.items()
    ]
    choose(results)
    for result in results:
        del result["counts"]
    here = folder("1.0")
    (here / "plots").mkdir(parents=True, exist_ok=True)
    write_json(here / "sweep.json", {"folds": INNER_FOLDS, "epochs": epochs, "networks": results})
    plots.trade_off(results, here / "plots" / "trade_off.png")
    print(json.dumps(results, indent=2))


def compare(
    name: str, recipe: FieldRecipe, everything: Batch, images: Sequence[data.Image]
) -> dict[str, Any]:
    """Cross-validate one recipe; return its accuracy, cost and size."""
    folds = data.grouped_folds(images, INNER_FOLDS, seed=0)
    slug = "".join(letter if letter.isalnum() else "-" for letter in name)
    logits, trained = cross_predict(recipe, everything, folds, scratch("sweep") / slug, f"{name}, ")
    network = trained.cpu()
    labels, predicted = everything.labels.cpu().numpy(), logits.argmax(1)
    counts = confusion_by_photograph(labels, predicted, [image.photograph for image in images])
    summary = summarize(counts)
    return {
        "name": name,
        "network": recipe.network(),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "multiply_adds": multiply_adds(network),
        "microseconds": microseconds(network),
        "accuracy": summary["image_accuracy"],
        "photograph_accuracy": summary["photograph_accuracy"],
        "recall": {key: value["recall"]["value"] for key, value in summary["classes"].items()},
        "counts": counts,
    }


def choose(results: list[dict[str, Any]]) -> None:
    """Mark the network of least work whose paired difference to the best may be zero."""
    best = max(results, key=lambda result: result["accuracy"]["value"])
    draws = resamples(len(best["counts"]))
    for result in results:
        behind = _accuracies(best, draws) - _accuracies(result, draws)
        low, high = np.percentile(behind, [2.5, 97.5])
        result["behind_the_best"] = [round(float(low), 4), round(float(high), 4)]
    equals = [result for result in results if result["behind_the_best"][0] <= 0]
    chosen = min(equals, key=lambda result: result["multiply_adds"])
    for result in results:
        result["chosen"] = result is chosen


def _accuracies(result: dict[str, Any], draws: Array) -> Array:
    return accuracy(np.tensordot(draws, result["counts"], 1))


@torch.inference_mode()
def multiply_adds(network: BloodCellNet) -> int:
    """Count the multiply-adds of one image."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, HEIGHT, WIDTH))
    return int(counter.get_total_flops()) // 2


@torch.inference_mode()
def microseconds(network: BloodCellNet, batch_size: int = 8, repeats: int = 50) -> int:
    """Return the median time of one image on one core, in a batch."""
    network = convert_conv2d_weight_memory_format(network, torch.channels_last)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.rand(batch_size, 3, HEIGHT, WIDTH).to(memory_format=torch.channels_last)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        network(images)
        times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return round(float(np.median(times)) / batch_size * 1e6)

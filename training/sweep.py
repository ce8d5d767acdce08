"""Compare networks by grouped cross-validation within TRAIN: `python -m training.sweep`.

Each candidate is trained on two thirds of TRAIN's photograph groups and predicts the third, three
times, so that every image is predicted by a network that never saw its photograph. The smallest
candidate that can't be told from the best (the 95 % interval of the paired difference, by a
bootstrap over photographs, reaches zero) is the one to ship. TEST is never opened.

Writes sweep.json and plots/trade_off.png to models/1.0/. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format
from torch.utils.flop_counter import FlopCounterMode

from handler.networks import BloodCellNet
from handler.preprocessing import HEIGHT, WIDTH
from training import data, plots
from training.fields import FOLDS, Batch, FieldRecipe, Run, predict
from training.metrics import Array, accuracy, confusion_by_photograph, resamples, summarize
from training.train import keep_memory
from training.version_files import SCRATCH, folder, write_json

CANDIDATES = {
    "8, 16 channels, pools 2, 4": FieldRecipe(channels=(8, 16), hidden=64),
    "16, 32 channels, pools 2, 2": FieldRecipe(pools=(2, 2)),
    "16, 32 channels, pools 2, 4": FieldRecipe(),
    "32, 64 channels, pools 2, 4": FieldRecipe(channels=(32, 64), hidden=128),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.sweep")
    parser.add_argument("--epochs", type=int, default=8)
    epochs = parser.parse_args(arguments).epochs
    try:
        images = data.list_images(data.data_root(), "TRAIN")
    except data.DataError as error:
        sys.exit(f"error: {error}")
    keep_memory()
    everything = Batch.of(*data.load(images, "TRAIN"), torch.device("cpu"))
    results = [
        compare(name, replace(recipe, epochs=epochs), everything, images)
        for name, recipe in CANDIDATES.items()
    ]
    choose(results)
    for result in results:
        del result["counts"]
    here = folder("1.0")
    (here / "plots").mkdir(parents=True, exist_ok=True)
    write_json(here / "sweep.json", {"folds": FOLDS, "epochs": epochs, "networks": results})
    plots.trade_off(results, here / "plots" / "trade_off.png")
    print(json.dumps(results, indent=2))
    return 0


def compare(
    name: str, recipe: FieldRecipe, everything: Batch, images: Sequence[data.Image]
) -> dict[str, Any]:
    """Cross-validate one recipe; return its accuracy, cost and size."""
    logits = torch.zeros(len(images), 4)
    for fold, (train, held_out) in enumerate(data.grouped_folds(images, FOLDS, seed=0)):
        slug = "".join(letter if letter.isalnum() else "-" for letter in name)
        checkpoint = SCRATCH / "sweep" / f"{slug}-{fold}.pt"
        run = Run(recipe, everything.take(train), None, fold, checkpoint)
        network = run.fit(f"{name}, fold {fold}")
        logits[torch.from_numpy(held_out)] = predict(network, everything.images[held_out])
    labels, predicted = everything.labels.numpy(), logits.argmax(1).numpy()
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
    """Mark the smallest network, by its work, whose paired difference to the best may be zero."""
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
    """Count the multiplications with addition that one image costs."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, HEIGHT, WIDTH))
    return int(counter.get_total_flops()) // 2


@torch.inference_mode()
def microseconds(network: BloodCellNet, batch_size: int = 8, repeats: int = 50) -> int:
    """Return the median time of one image on one core, in batches as the service has them."""
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


if __name__ == "__main__":
    sys.exit(main())

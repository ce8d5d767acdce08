"""Run independent pieces of work in parallel: one process for each core, one torch thread each.

Two processes are faster than one with two threads.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import torch
from tqdm import tqdm

from training.optimizer import keep_memory

# What networks train on.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def on_device() -> Iterator[None]:
    """Create new tensors on the DEVICE. It is a decorator, too."""
    with torch.device(DEVICE):
        yield


def each(function: Callable[[T], R], items: Sequence[T], title: str) -> Iterator[tuple[T, R]]:
    """Yield each item with what the function returns for it, as soon as that is known."""
    workers = min(os.cpu_count() or 1, len(items))
    if workers <= 1:
        for item in tqdm(items, desc=title, mininterval=1, disable=not items):
            yield item, function(item)
        return
    # Forked processes would inherit torch's threads in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start) as pool:
        jobs = {pool.submit(function, item): item for item in items}
        try:
            for job in tqdm(as_completed(jobs), title, len(jobs), mininterval=1):
                yield jobs[job], job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def start() -> None:
    """Prepare this process for its work."""
    torch.set_num_threads(1)
    keep_memory()

"""What a run has reached: kept on disk, used by the same run only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training import checkpoints, workers
from training.checkpoints import Checkpoint, columns
from training.fitting import ROW, History, _batch, fit
from training.recipes import Fit

KINDS = {"squares": ((2,), "i4"), "halves": ((), "f4")}


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 1)


def test_a_checkpoint_of_other_code_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    code = tmp_path / "code.py"
    code.write_text("old")
    path = tmp_path / "new" / "run.pt"
    Checkpoint(path, 1, ["code.py"]).save({"step": 3})
    assert Checkpoint(path, 1, ["code.py"]).load() == {"step": 3}
    assert Checkpoint(path, 2, ["code.py"]).load() is None
    code.write_text("new")
    assert Checkpoint(path, 1, ["code.py"]).load() is None


def numbers(seen: list[int], start: int, stop: int) -> dict[str, np.ndarray]:
    seen.append(start)
    every = np.arange(start, stop)
    return {"squares": np.stack([every, every**2], 1), "halves": every / 2}


def test_columns_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, and again if the run is another."""
    monkeypatch.setattr(checkpoints, "BLOCK", 4)
    seen: list[int] = []
    for _ in range(2):
        made = columns(tmp_path / "numbers", "run", [], 10, KINDS, partial(numbers, seen))
        assert made["squares"].tolist() == [[each, each**2] for each in range(10)]
        assert made["halves"].tolist() == [each / 2 for each in range(10)]
        assert seen == [0, 4, 8]
    columns(tmp_path / "numbers", "another", [], 10, KINDS, partial(numbers, seen))
    assert seen == [0, 4, 8] * 2


def test_interrupted_columns_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "BLOCK", 4)
    seen: list[int] = []

    def interrupted(start: int, stop: int) -> dict[str, np.ndarray]:
        if start == 4:
            raise KeyboardInterrupt
        return numbers(seen, start, stop)

    with pytest.raises(KeyboardInterrupt):
        columns(tmp_path / "numbers", "run", [], 10, KINDS, interrupted)
    made = columns(tmp_path / "numbers", "run", [], 10, KINDS, partial(numbers, seen))
    assert seen == [0, 4, 8]
    assert made["squares"][:, 1].tolist() == [each**2 for each in range(10)]


def cubes(start: int, stop: int) -> dict[str, np.ndarray]:
    return {"cubes": np.arange(start, stop) ** 3}


def test_processes_share_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 2)
    rows = 2 * checkpoints.BLOCK + 1
    made = columns(tmp_path / "cubes", "run", [], rows, {"cubes": ((), "i8")}, cubes)
    assert (made["cubes"] == np.arange(rows) ** 3).all()


RECIPE = Fit(2 * ROW + 30, 4, 1e-2, 0.05, decay=0.9, mean_from=0.3)


def train(checkpoint: Checkpoint | None, stop_at: int = 10_000) -> tuple[nn.Module, History]:
    """Fit a network with dropout and statistics to sums."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    inputs = torch.rand(30, 3, generator=torch.Generator().manual_seed(1))
    steps = 0

    def loss(
        batch: np.ndarray, random: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise KeyboardInterrupt
        rows = inputs[batch] + 0.01 * float(random.random())
        return (network(rows)[:, 0] - rows.sum(1)).square().mean(), {"more": 1.0}

    return network, fit(network, RECIPE, np.arange(30), loss, 0, "fitting", checkpoint)


def test_an_interrupted_run_continues_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, history = train(None)
    checkpoint = Checkpoint(tmp_path / "run.pt", "run", [])
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, ROW + 50)
    resumed, same = train(checkpoint)
    assert same == history
    assert len(history) == 2
    assert history[1]["train_loss"] < history[0]["train_loss"]
    assert history[0]["more"] == 1
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not resumed.training


def test_batches_have_all_rows_before_any_comes_again() -> None:
    rows = np.arange(100, 130)
    batches = [_batch(rows, 7, 0, step) for step in range(8)]
    for epoch in (batches[:4], batches[4:]):
        assert len(np.unique(np.concatenate(epoch))) == 28
    assert (batches[0] != batches[4]).any()
    few = _batch(rows[:3], 7, 0, 5)
    assert len(few) == 7
    assert set(few) == {100, 101, 102}

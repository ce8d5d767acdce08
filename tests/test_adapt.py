"""A version that learns a laboratory's own cells: what it trains on, judges by, writes and says."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handler import pipelines
from handler.cells import cut_out
from handler.locator import Located
from handler.networks import CellNet, Locator
from handler.preprocessing import decode
from handler.verdict import CLASSES, answer
from scripts.draw_cells import draw_cell
from serving.deployment.known_answers import SAMPLES
from serving.settings import MODEL, ROOT
from training import adapt, data, version_files
from training.adapt import draw_curve, main, measure, some, split
from training.calibrate import choose
from training.cells import PATCH, CellRecipe, CellSet, middle, surest
from training.crossvalidate import Judged
from training.data import OTHER, DataError, Sample
from training.version_files import Trained

NETWORK = {"channels": [8, 16], "dropout": 0.1}
CALIBRATION = {"temperature": 1.3, "thresholds": {"stain": 0.0123, "foreign": 0.5, "confident": 1}}
NAMES = (*CLASSES, "OTHER")


def be_apart(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Have versions read and written in a folder, and no data set at hand."""
    patch.setattr(version_files, "ROOT", root)
    patch.setattr(version_files, "SCRATCH", root / "scratch")
    patch.setenv("BLOOD_CELLS_DATA", str(root / "no photographs"))
    patch.delenv("PBC_DATA", raising=False)


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    be_apart(monkeypatch, tmp_path)


def write_base(locator: Locator, network: CellNet, version: str = "2.0", **card: Any) -> Path:
    """Write a made-up version to start from; return its folder."""
    described = {
        "input": "each cell",
        "finds_cells": True,
        "network": NETWORK,
        **CALIBRATION,
        **card,
    }
    version_files.write(version, Trained({"locator": locator, "network": network}, described, {}))
    folder = version_files.folder(version)
    (folder / "model-config.yaml").write_text("minWorkers: 5\n")
    return folder


def untrained() -> CellNet:
    torch.manual_seed(0)
    return CellNet(**NETWORK).eval()


def certain(label: int, mark: int = 0) -> CellNet:
    """Return a network that says the same of every cell; the logit for none of them marks it."""
    network = untrained()
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(9.0 * torch.eye(len(CLASSES) + 1)[label])
        network.classifier.bias[OTHER] = mark
    return network


def mark_of(network: CellNet) -> int:
    return round(network.classifier.bias[OTHER].item())


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def lay(folder: Path, counts: Sequence[int] = (12, 12, 12, 12, 6)) -> Path:
    """Lay so many empty files of each class."""
    for name, count in zip(NAMES, counts, strict=True):
        (folder / name).mkdir(parents=True)
        for at in range(count):
            (folder / name / f"{at:02}.png").touch()
    return folder


def teach(folder: Path, base: str = "2.0", version: str = "3.0") -> int:
    return main(["--from", base, "--cells", str(folder), "--version", version])


# From a folder of pictures to a version


@dataclass
class Run:
    code: int
    printed: str
    base: Path
    base_before: dict[str, bytes]
    written: Path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def draw_laboratory(folder: Path) -> None:
    """Draw a cell of each class, seen eight ways; some stand for others, and one picture is blank.

    A laboratory's own would differ more, but drawing takes long.
    """
    drawn = {name: np.asarray(draw_cell(name, 1, (160, 120))) for name in CLASSES}
    for name, cell in (drawn | {"OTHER": drawn["LYMPHOCYTE"]}).items():
        (folder / name).mkdir(parents=True)
        for turns in range(4):
            turned = np.rot90(cell, turns)
            Image.fromarray(turned).save(folder / name / f"{turns}.png")
            Image.fromarray(turned[::-1]).save(folder / name / f"{turns} mirrored.png")
    Image.new("RGB", (160, 120), (222, 219, 210)).save(folder / "MONOCYTE" / "blank.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Teach drawn cells to an untrained network, with the locator of 2.0."""
    root, printed = tmp_path_factory.mktemp("laboratory"), io.StringIO()
    shipped = torch.load(ROOT / "models" / "2.0" / "weights.pt", weights_only=True)
    locator = Locator()
    locator.load_state_dict(shipped["locator"])
    draw_laboratory(root / "cells")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        be_apart(patch, root)
        patch.setattr(adapt, "STEPS", 3)
        base = write_base(locator, untrained())
        before = contents(base)
        code = teach(root / "cells")
        return Run(code, printed.getvalue(), base, before, version_files.folder("3.0"))


def test_a_laboratorys_cells_make_a_version(run: Run) -> None:
    assert run.code == 0
    assert set(contents(run.written)) == {
        "weights.pt",
        "locator.onnx",
        "network.onnx",
        "gate.onnx",
        "card.json",
        "history.json",
        "metrics.json",
        "golden.json",
        "model-config.yaml",
    }
    assert f"wrote {run.written}" in run.printed
    assert "`make deploy VERSION=3.0`" in run.printed


def test_the_version_that_it_started_from_stays_as_it_was(run: Run) -> None:
    assert contents(run.base) == run.base_before


def test_the_card_tells_where_it_comes_from_and_is_calibrated_anew(run: Run) -> None:
    card, base = read(run.written / "card.json"), read(run.base / "card.json")
    assert (card["version"], card["adapted_from"]) == ("3.0", "2.0")
    for name in ("labels", "input", "finds_cells", "network", "parameters"):
        assert card[name] == base[name]
    assert 0.08 < card["temperature"] < 12.2
    assert card["temperature"] != base["temperature"]
    assert card["thresholds"].keys() == base["thresholds"].keys()
    assert card["thresholds"]["stain"] == base["thresholds"]["stain"]
    assert 0 < card["thresholds"]["foreign"] <= 1
    assert 0 < card["thresholds"]["confident"] <= 1
    assert read(run.written / "history.json")["adapted_from"] == "2.0"


def test_the_network_is_trained_and_the_locator_stays(run: Run) -> None:
    base, written = (
        torch.load(folder / "weights.pt", weights_only=True) for folder in (run.base, run.written)
    )
    assert same_weights(written["locator"], base["locator"])
    assert not same_weights(written["network"], base["network"])
    assert all(weights.isfinite().all() for weights in written["network"].values())


def test_the_workers_are_set_up_as_those_of_the_version_it_started_from(run: Run) -> None:
    assert (run.written / "model-config.yaml").read_text() == "minWorkers: 5\n"


def test_the_version_loads_and_finds_a_cell(run: Run) -> None:
    version = pipelines.load(run.written, read(run.written / "card.json"), 2)
    cells = run.written.parents[1] / "cells"
    picture = decode((cells / "NEUTROPHIL" / "0.png").read_bytes(), version.fit)
    [prediction] = version.predict([picture])
    [cell] = prediction.cells
    assert len(cell.logits) == len(CLASSES) + 1
    assert cell.box
    assert cell.box[0] < 80 < cell.box[2]
    assert cell.box[1] < 60 < cell.box[3]


def test_the_known_answers_are_what_the_version_says(run: Run) -> None:
    card, golden = read(run.written / "card.json"), read(run.written / "golden.json")
    assert set(golden) == {path.name for path in SAMPLES.glob("*.png")}
    version = pipelines.load(run.written, card, 2)
    picture = decode((SAMPLES / "monocyte.png").read_bytes(), version.fit)
    said = answer(MODEL, card, version.predict([picture])[0])
    assert said["cells"]
    assert golden["monocyte.png"] == pytest.approx(said["probabilities"], abs=1e-4)


def test_a_picture_without_a_cell_is_left_out_and_that_is_said(run: Run) -> None:
    assert "1 of 41 images show no white cell, and are left out" in run.printed


def test_without_the_old_cells_it_goes_on_and_says_so(run: Run) -> None:
    assert "without the old cells of photographs: " in run.printed
    assert "without the old cells of pbc: Set PBC_DATA" in run.printed
    assert "old_cells" not in read(run.written / "metrics.json")


def test_a_quarter_of_its_own_cells_judges_before_and_after(run: Run) -> None:
    metrics = read(run.written / "metrics.json")
    assert (metrics["version"], metrics["adapted_from"]) == ("3.0", "2.0")
    own = metrics["own_cells"]
    for when in ("before", "after"):
        assert own[when]["images"] == np.sum(own[when]["confusion"]) == 8
        assert [each["images"] for each in own[when]["classes"].values()] == [2] * 4
        assert f'"{when}": {{' in run.printed
        assert 0 <= own[when]["macro_recall"]["value"] <= 1


# What trains and what judges: with made-up cells, and trainings that do nothing


@dataclass
class Training:
    cells: CellSet
    recipe: CellRecipe
    seed: int
    start: dict[str, torch.Tensor]


def made_up(samples: Sequence[Sample], laboratory: str) -> CellSet:
    field = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    [cutout] = cut_out(field, [Located((20, 10, 60, 50), 0.9)])
    count = len(samples)
    return CellSet(
        [cutout] * count,
        np.zeros((count, PATCH, PATCH, 3), np.uint8),
        np.array([sample.label for sample in samples]),
        np.array([sample.group for sample in samples]),
        np.full(count, laboratory),
        np.ones(count, bool),
    )


def photographed(name: str, labels: Sequence[int] = (0, 1, 2, 3)) -> list[Sample]:
    return [Sample(Path(name), label, "", f"{name} {at}") for at, label in enumerate(labels)]


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Have cells cut out of nothing; record of which laboratory, and how the cell is chosen."""
    recorded: list[tuple[str, Any]] = []

    def collect(samples: list[Sample], laboratory: str, locator: Locator, choose: Any) -> CellSet:
        assert isinstance(locator, Locator)
        recorded.append((laboratory, choose))
        return made_up(samples, laboratory)

    monkeypatch.setattr(adapt, "collect", collect)
    return recorded


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, collected: list[tuple[str, Any]]) -> list[Training]:
    """Record the trainings; each gives a network that says NEUTROPHIL, marked by its number."""
    recorded: list[Training] = []

    def train(
        cells: CellSet, recipe: CellRecipe, seed: int, title: str, start: CellNet
    ) -> tuple[CellNet, list[dict[str, float]]]:
        recorded.append(Training(cells, recipe, seed, start.state_dict()))
        return certain(3, mark=len(recorded)), [{"train_loss": 1.0}]

    monkeypatch.setattr(adapt, "train_cells", train)
    return recorded


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Judged]:
    """Record what the version is calibrated on."""
    recorded: list[Judged] = []

    def record(each: Judged) -> dict[str, Any]:
        recorded.append(each)
        return choose(each) | {"temperature": 1.75}

    monkeypatch.setattr(adapt, "choose", record)
    return recorded


@pytest.fixture(params=["images", "slides"])
def laboratory(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, tuple[str, int]]:
    """Lay a laboratory's files, each of its own or on slides; return their groups and labels."""
    root = lay(tmp_path / "cells")
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.png"))
    groups = {name: name for name in files}
    if request.param == "slides":
        groups = {name: f"slide {at % 9}" for at, name in enumerate(files)}
        rows = [f"{name},{group}" for name, group in groups.items()]
        (root / "groups.csv").write_text("\n".join(["file,group", *rows]) + "\n")
    return {name: (groups[name], NAMES.index(name.split("/")[0])) for name in files}


def test_a_quarter_of_the_groups_never_trains(
    trainings: list[Training], laboratory: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    write_base(Locator(), certain(0))
    assert teach(tmp_path / "cells") == 0
    everything = {group for group, _label in laboratory.values()}
    trained = {group for training in trainings for group in training.cells.groups.tolist()}
    assert trained < everything
    judging = [each for each in laboratory.values() if each[0] not in trained]
    assert 0.15 * len(laboratory) < len(judging) < 0.35 * len(laboratory)
    own = read(version_files.folder("3.0") / "metrics.json")["own_cells"]["after"]
    four = [group for group, label in judging if label < OTHER]
    assert (own["images"], own["photographs"]) == (len(four), len(set(four)))


def test_all_the_others_train_what_is_shipped(
    trainings: list[Training], laboratory: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    write_base(Locator(), certain(0))
    assert teach(tmp_path / "cells") == 0
    *folds, last = trainings
    assert len(folds) == adapt.FOLDS
    trained = set(last.cells.groups.tolist())
    expected = [label for group, label in laboratory.values() if group in trained]
    assert sorted(last.cells.labels.tolist()) == sorted(expected)
    for fold in folds:
        assert set(fold.cells.groups.tolist()) < trained
    shipped = torch.load(version_files.folder("3.0") / "weights.pt", weights_only=True)
    assert same_weights(shipped["network"], certain(3, mark=len(trainings)).state_dict())


def test_it_is_calibrated_on_cells_judged_by_networks_that_had_not_seen_their_group(
    trainings: list[Training],
    judged: list[Judged],
    laboratory: dict[str, tuple[str, int]],
    tmp_path: Path,
) -> None:
    write_base(Locator(), certain(0))
    assert teach(tmp_path / "cells") == 0
    [calibrating] = judged
    last = trainings[-1].cells
    assert calibrating.labels.tolist() == last.labels.tolist()
    assert calibrating.groups.tolist() == last.groups.tolist()
    judges = calibrating.logits[:, OTHER].round().astype(int)
    assert set(judges.tolist()) == set(range(1, adapt.FOLDS + 1))
    for group, judge in zip(calibrating.groups, judges, strict=True):
        assert group not in trainings[judge - 1].cells.groups
    card = read(version_files.folder("3.0") / "card.json")
    assert card["temperature"] == 1.75
    expected = choose(calibrating)["thresholds"] | {"stain": CALIBRATION["thresholds"]["stain"]}
    assert card["thresholds"] == expected


def test_every_training_starts_from_the_older_versions_weights(
    trainings: list[Training], tmp_path: Path
) -> None:
    write_base(Locator(), certain(1), "4.0")
    assert teach(lay(tmp_path / "cells"), base="4.0") == 0
    assert len({training.seed for training in trainings}) == len(trainings) == adapt.FOLDS + 1
    for training in trainings:
        assert same_weights(training.start, certain(1).state_dict())
        assert training.recipe.channels == tuple(NETWORK["channels"])
        assert training.recipe.dropout == NETWORK["dropout"]
        assert training.recipe.steps == adapt.STEPS


@pytest.mark.usefixtures("trainings")
def test_before_is_the_older_version_and_after_is_the_new_one(tmp_path: Path) -> None:
    write_base(Locator(), certain(0))
    assert teach(lay(tmp_path / "cells")) == 0
    own = read(version_files.folder("3.0") / "metrics.json")["own_cells"]
    for when, said in (("before", 0), ("after", 3)):
        recalls = [each["recall"]["value"] for each in own[when]["classes"].values()]
        assert recalls == np.eye(len(CLASSES))[said].tolist()


@pytest.mark.usefixtures("trainings")
def test_a_version_of_a_laboratory_can_be_taught_on(tmp_path: Path) -> None:
    write_base(Locator(), certain(0))
    lay(tmp_path / "cells")
    assert teach(tmp_path / "cells") == 0
    assert teach(tmp_path / "cells", base="3.0", version="4.0") == 0
    assert read(version_files.folder("4.0") / "card.json")["adapted_from"] == "3.0"
    own = read(version_files.folder("4.0") / "metrics.json")["own_cells"]
    assert own["before"] == own["after"]


# Old cells


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """Have old cells at hand; record which are asked for."""
    asked: list[tuple[str, ...]] = []

    def photographs(_root: Path, *splits: str) -> list[Sample]:
        asked.append(("photographs", *splits))
        return photographed("photograph")

    def pbc(part: str | None = None) -> list[Sample]:
        asked.append(("pbc", str(part)))
        return photographed(f"pbc {part}", (0, 1, 2, 3, OTHER))

    monkeypatch.setattr(data, "data_root", lambda: tmp_path)
    monkeypatch.setattr(data, "photographs", photographs)
    monkeypatch.setattr(adapt, "pbc", pbc)
    return asked


def test_old_cells_that_may_train_train_beside_its_own(
    trainings: list[Training],
    collected: list[tuple[str, Any]],
    at_hand: list[tuple[str, ...]],
    tmp_path: Path,
) -> None:
    write_base(Locator(), certain(0))
    assert teach(lay(tmp_path / "cells")) == 0
    assert at_hand == [("photographs", "TRAIN"), ("pbc", "train")]
    assert sorted(collected, key=str) == sorted(
        [("own", middle), ("photographs", surest), ("pbc", middle)], key=str
    )
    for training in trainings:
        where = training.cells.laboratories
        assert set(where.tolist()) == {"own", "photographs", "pbc"}
        assert ((where == "photographs").sum(), (where == "pbc").sum()) == (4, 5)


@pytest.mark.usefixtures("trainings", "at_hand")
def test_what_it_says_of_old_cells_is_measured_before_and_after(tmp_path: Path) -> None:
    write_base(Locator(), certain(0))
    assert teach(lay(tmp_path / "cells")) == 0
    old = read(version_files.folder("3.0") / "metrics.json")["old_cells"]
    for when, said in (("before", 0), ("after", 3)):
        assert old[when]["images"] == 8
        assert np.array(old[when]["confusion"])[:, said].tolist() == [2] * 4


def test_old_cells_of_one_laboratory_are_used_without_the_other(
    trainings: list[Training],
    at_hand: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def missing() -> Path:
        raise DataError("run `make data`")

    monkeypatch.setattr(data, "data_root", missing)
    write_base(Locator(), certain(0))
    assert teach(lay(tmp_path / "cells")) == 0
    assert at_hand == [("pbc", "train")]
    assert set(trainings[-1].cells.laboratories.tolist()) == {"own", "pbc"}
    printed = capsys.readouterr().out
    assert "without the old cells of photographs: run `make data`" in printed
    assert "without the old cells of pbc" not in printed


# What is said when it can't be done


def refused(capsys: pytest.CaptureFixture[str], code: int, version: str = "3.0") -> str:
    """Return the one line that is said; nothing is written."""
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (code, len(said)) == (1, 1)
    assert not (version_files.folder(version) / "weights.pt").exists()
    return said[0]


def test_too_few_cells_are_said_clearly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_base(Locator(), untrained())
    code = teach(lay(tmp_path / "cells", (5, 5, 5, 4, 9)))
    assert "NEUTROPHIL has 4 cells; at least 5 of each class" in refused(capsys, code)


def test_an_unknown_class_is_said_clearly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_base(Locator(), untrained())
    (lay(tmp_path / "cells") / "BASOPHIL").mkdir()
    said = refused(capsys, teach(tmp_path / "cells"))
    assert "unknown classes: ['BASOPHIL']" in said


def test_a_missing_folder_is_said_clearly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_base(Locator(), untrained())
    code = teach(tmp_path / "nowhere")
    assert refused(capsys, code).endswith("nowhere is no folder.")


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut short"])
def test_a_file_that_is_no_image_is_said_clearly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    write_base(Locator(), untrained())
    lay(tmp_path / "cells", (5, 5, 5, 5, 0))
    for path in (tmp_path / "cells").glob("*/*.png"):
        Image.new("RGB", (8, 6)).save(path)
    broken = tmp_path / "cells" / "LYMPHOCYTE" / "03.png"
    broken.write_bytes(content)
    assert f"{broken} can't be read: Th" in refused(capsys, teach(tmp_path / "cells"))


def test_a_folder_in_which_no_cell_is_found_is_said_clearly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An untrained locator finds none."""
    write_base(Locator(), untrained())
    lay(tmp_path / "cells", (5, 5, 5, 5, 0))
    for path in (tmp_path / "cells").glob("*/*.png"):
        Image.new("RGB", (8, 6)).save(path)
    said = refused(capsys, teach(tmp_path / "cells"))
    assert "No white cell was found in any of the 20 images." in said


def test_a_base_that_is_no_version_is_said_clearly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = teach(lay(tmp_path / "cells"), base="7.0")
    assert "FROM=7.0 is no trained version" in refused(capsys, code)


def test_a_base_without_weights_is_said_clearly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (write_base(Locator(), untrained()) / "weights.pt").unlink()
    code = teach(lay(tmp_path / "cells"))
    assert "FROM=2.0 is no trained version" in refused(capsys, code)


@pytest.mark.parametrize("curve", [False, True])
def test_a_base_that_finds_no_cells_is_said_clearly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, curve: bool
) -> None:
    write_base(Locator(), untrained(), "1.0", finds_cells=False)
    lay(tmp_path / "cells")
    code = main(["--from", "1.0", "--curve"]) if curve else teach(tmp_path / "cells", "1.0")
    assert "FROM=1.0 looks at whole fields: start from one that finds" in refused(capsys, code)


@pytest.mark.parametrize(
    ("base", "version"), [("2.0", "2.0"), ("2.0", "1.0"), ("4.0", "4.0"), ("4.0", "2.0")]
)
@pytest.mark.usefixtures("trainings")
def test_a_version_that_is_taken_is_said_clearly_and_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str, version: str
) -> None:
    folders = [write_base(Locator(), untrained(), each) for each in ("1.0", "2.0", "4.0")]
    before = [contents(folder) for folder in folders]
    code = teach(lay(tmp_path / "cells"), base, version)
    assert f"{version} is taken: choose another VERSION." in refused(capsys, code)
    assert [contents(folder) for folder in folders] == before


@pytest.mark.parametrize("version", ["2.0/", "../3.0", "3", "new", "3.0."])
def test_a_version_that_is_none_is_said_clearly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, version: str
) -> None:
    before = contents(write_base(Locator(), untrained()))
    code = teach(lay(tmp_path / "cells"), version=version)
    assert "should look like 3.0" in refused(capsys, code)
    assert contents(version_files.folder("2.0")) == before


def test_a_base_that_is_not_calibrated_is_said_clearly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write_base(Locator(), untrained()) / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({name: card[name] for name in card if name != "thresholds"}))
    assert "FROM=2.0 is not calibrated" in refused(capsys, teach(lay(tmp_path / "cells")))


@pytest.mark.usefixtures("trainings")
def test_too_few_slides_to_judge_by_are_said_clearly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_base(Locator(), untrained())
    root = lay(tmp_path / "cells")
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.png"))
    rows = [f"{name},slide {at % 3}" for at, name in enumerate(files)]
    (root / "groups.csv").write_text("\n".join(["file,group", *rows]) + "\n")
    assert "EOSINOPHIL has 3 groups; at least 4" in refused(capsys, teach(root))


@pytest.mark.parametrize("given", [["--cells", "cells"], ["--version", "3.0"], []])
def test_a_folder_and_a_version_are_needed(
    capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--from", "2.0", *given])
    assert left.value.code == 2
    assert "both --cells and --version are needed" in capsys.readouterr().err


# Parts of the cells


def labelled(*counts: int) -> CellSet:
    """Return so many made-up cells of each class, mixed."""
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(len(counts)), counts))
    return made_up(photographed("cell", labels.tolist()), "own")


@pytest.mark.parametrize(("count", "expected"), [(1, [1, 1, 1, 1]), (4, [4, 4, 4, 3])])
def test_some_cells_are_so_many_of_each_of_the_four_classes(
    count: int, expected: list[int]
) -> None:
    chosen = some(labelled(9, 7, 5, 3, 8), count)
    assert np.bincount(chosen.labels).tolist() == expected
    assert len(set(chosen.groups.tolist())) == sum(expected)


def test_more_cells_include_the_fewer() -> None:
    cells = labelled(9, 9, 9, 9, 3)
    groups = [some(cells, count).groups.tolist() for count in (2, 5)]
    assert set(groups[0]) < set(groups[1])
    assert some(cells, 2).groups.tolist() == groups[0]


def test_some_cells_are_not_the_first_of_the_folder() -> None:
    """There they might be all of one slide."""
    cells = made_up(photographed("cell", [0] * 30), "own")
    assert set(some(cells, 6).groups.tolist()) != set(cells.groups[:6].tolist())


def test_a_split_keeps_every_cell_on_one_side() -> None:
    cells = labelled(9, 9, 9, 9, 4)
    rest, judging = split(cells)
    both = [*rest.groups.tolist(), *judging.groups.tolist()]
    assert sorted(both) == sorted(cells.groups.tolist())
    assert set(np.unique(judging.labels)) == {0, 1, 2, 3, OTHER}


def test_cells_that_are_none_of_the_four_are_not_measured() -> None:
    measured = measure(certain(2, mark=50), labelled(1, 2, 3, 4, 5))
    assert measured["images"] == 10
    assert np.array(measured["confusion"])[:, 2].tolist() == [1, 2, 3, 4]


# The curve


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record how the network is trained that never saw the laboratory."""
    recorded: list[tuple[Any, ...]] = []

    def train(_locator: Locator, *rest: Any) -> tuple[CellNet, list[dict[str, float]]]:
        recorded.append(rest)
        return certain(0, mark=100), []

    monkeypatch.setattr(adapt, "train_network", train)
    return recorded


@pytest.fixture
def curve(
    monkeypatch: pytest.MonkeyPatch,
    first: list[tuple[Any, ...]],
    trainings: list[Training],
    at_hand: list[tuple[str, ...]],
) -> Any:
    """Draw a curve of 0, 1 and 2 cells; return the document."""

    def asked(network: CellNet, cells: CellSet) -> dict[str, Any]:
        return {"macro_recall": f"{mark_of(network)} of {cells.groups[0]}"}

    monkeypatch.setattr(adapt, "CURVE", (0, 1, 2))
    monkeypatch.setattr(adapt, "measure", asked)
    pbc = adapt.pbc
    monkeypatch.setattr(
        adapt, "pbc", lambda part=None: [each for _ in range(3) for each in pbc(part)]
    )
    folder = write_base(Locator(), certain(1))
    assert main(["--from", "2.0", "--curve"]) == 0
    return read(folder / "adaptation.json")


def test_a_point_of_the_curve_is_what_so_many_cells_teach(curve: Any) -> None:
    """Judged by cells that never train; 100 is the network that never saw the laboratory."""
    expected = [
        {"cells_a_class": count, "own": f"{mark} of pbc test 0", "old": f"{mark} of photograph 0"}
        for count, mark in ((0, 100), (1, 1), (2, 2))
    ]
    assert curve == {"steps": adapt.STEPS, "points": expected}


@pytest.mark.usefixtures("curve")
def test_the_curve_starts_from_a_network_that_never_saw_the_laboratory(
    first: list[tuple[Any, ...]], at_hand: list[tuple[str, ...]], tmp_path: Path
) -> None:
    [(photographs, others, recipe, _seed, checkpoint)] = first
    assert {sample.path.name for sample in photographs} == {"photograph"}
    assert others == []
    assert recipe == adapt.RECIPES["2.0"]
    assert tmp_path / "scratch" in checkpoint.parents
    assert ("photographs", "TRAIN", "TEST") in at_hand


@pytest.mark.usefixtures("curve")
def test_each_point_is_trained_from_the_start_on_so_many_cells(trainings: list[Training]) -> None:
    for count, training in zip((1, 2), trainings, strict=True):
        own = training.cells.take(training.cells.laboratories == "pbc")
        assert np.bincount(own.labels).tolist() == [count] * 4
        assert all(group.startswith("pbc train") for group in own.groups)
        old = training.cells.take(training.cells.laboratories == "photographs")
        assert len(old.labels) == 4
        assert same_weights(training.start, certain(0, mark=100).state_dict())


@pytest.mark.usefixtures("curve")
def test_the_curve_writes_nothing_else(tmp_path: Path) -> None:
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"2.0"}
    expected = {"weights.pt", "locator.onnx", "network.onnx", "gate.onnx"}
    expected |= {"card.json", "history.json", "model-config.yaml", "adaptation.json"}
    assert set(contents(version_files.folder("2.0"))) == expected


def test_the_curve_of_an_adapted_version_is_refused_clearly() -> None:
    write_base(Locator(), untrained(), "3.0")
    with pytest.raises(DataError, match=r"FROM=3\.0 was adapted: the curve needs a version with"):
        draw_curve("3.0")


def test_the_curve_says_clearly_that_it_needs_the_data(
    first: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_base(Locator(), untrained())
    assert main(["--from", "2.0", "--curve"]) == 1
    assert "error: " in (said := capsys.readouterr().err)
    assert "does not hold the images: run `make data`" in said
    assert not first
    assert not (folder / "adaptation.json").exists()

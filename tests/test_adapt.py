"""Adapting a version to a laboratory: training cells, held-out cells, written files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from handler import pipelines
from handler.cells import cut_out
from handler.locator import Located
from handler.preprocessing import decode
from handler.verdict import answer
from scripts.draw_cells import draw_cell
from serving.deployment.known_answers import SAMPLES
from serving.settings import MODEL, ROOT
from training import adapt, data, protocol, version_files
from training.__main__ import main
from training.calibrate import choose
from training.cell_set import PATCH, CellSet, middle, surest
from training.data import OTHER, Sample
from training.networks import CellNet, Locator
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES
from training.recipes import RECIPES, CellRecipe
from training.version_files import Trained

NETWORK = {"channels": [8, 16], "dropout": 0.1}
CALIBRATION = {"temperature": 1.3, "thresholds": {"stain": 0.0123, "foreign": 0.5, "confident": 1}}
NAMES = (*CLASSES, "OTHER")


def be_apart(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Read and write versions in a folder, without any data set."""
    patch.setattr(version_files, "ROOT", root)
    patch.setattr(version_files, "SCRATCH", root / "scratch")
    patch.setenv("BLOOD_CELLS_DATA", str(root / "no photographs"))
    patch.delenv("PBC_DATA", raising=False)


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also skip the ONNX graphs, which take seconds; the fixture `adapted` writes them."""
    be_apart(monkeypatch, tmp_path)
    monkeypatch.setattr(version_files, "write_onnx", lambda *_: {})
    monkeypatch.setattr(adapt, "write_golden", lambda _: None)


def write_base(locator: Locator, network: CellNet, version: str = "2.0", **card: Any) -> Path:
    """Write a made-up version; return its folder."""
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
    return CellNet(len(CLASSES), **NETWORK).eval()


def certain(label: int, mark: int = 0) -> CellNet:
    """Return a network that answers the same for every cell; OTHER's logit marks it."""
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
    """Create empty files of each class."""
    for name, count in zip(NAMES, counts, strict=True):
        (folder / name).mkdir(parents=True)
        for at in range(count):
            (folder / name / f"{at:02}.png").touch()
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def teach(folder: Path, base: str = "2.0", version: str = "3.0") -> Result:
    return run("adapt", "--from", base, "--cells", folder, "--version", version)


def taught(folder: Path, base: str = "2.0", version: str = "3.0") -> Path:
    """Adapt a version; return the folder of the new one."""
    result = teach(folder, base, version)
    assert result.exit_code == 0, result.output
    return version_files.folder(version)


@dataclass
class Run:
    printed: str
    base: Path
    base_before: dict[str, bytes]
    written: Path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def draw_laboratory(folder: Path) -> None:
    """Draw a cell of each class, seen eight ways, and a blank image."""
    drawn = {name: np.asarray(draw_cell(name, 1, (160, 120))) for name in CLASSES}
    for name, cell in (drawn | {"OTHER": drawn["LYMPHOCYTE"]}).items():
        (folder / name).mkdir(parents=True)
        for turns in range(4):
            turned = np.rot90(cell, turns)
            Image.fromarray(turned).save(folder / name / f"{turns}.png")
            Image.fromarray(turned[::-1]).save(folder / name / f"{turns} mirrored.png")
    Image.new("RGB", (160, 120), (222, 219, 210)).save(folder / "MONOCYTE" / "blank.png")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train an untrained network on drawn cells, with the locator of 2.0."""
    root = tmp_path_factory.mktemp("laboratory")
    shipped = torch.load(ROOT / "models" / "2.0" / "weights.pt", weights_only=True)
    locator = Locator()
    locator.load_state_dict(shipped["locator"])
    draw_laboratory(root / "cells")
    with pytest.MonkeyPatch.context() as patch:
        be_apart(patch, root)
        patch.setattr(adapt, "STEPS", 2)
        base = write_base(locator, untrained())
        before = contents(base)
        result = teach(root / "cells")
        assert result.exit_code == 0, result.output
        return Run(result.output, base, before, version_files.folder("3.0"))


def test_a_laboratorys_cells_make_a_version(adapted: Run) -> None:
    """The base stays as it is, and the card names its origin."""
    written = contents(adapted.written)
    networks = {"weights.pt", "locator.onnx", "network.onnx", "gate.onnx"}
    documents = {"card.json", "history.json", "metrics.json", "golden.json", "model-config.yaml"}
    assert set(written) == networks | documents
    assert written["model-config.yaml"] == b"minWorkers: 5\n"
    assert contents(adapted.base) == adapted.base_before
    for line in (
        f"wrote {adapted.written}",
        "`make deploy VERSION=3.0`",
        "1 of 41 images show no white cell",
        "the old cells of photographs are not used: ",
        "the old cells of pbc are not used: Set PBC_DATA",
        "macro recall on own cells: ",
    ):
        assert line in adapted.printed
    card, base = read(adapted.written / "card.json"), read(adapted.base / "card.json")
    assert (card["version"], card["adapted_from"]) == ("3.0", "2.0")
    assert read(adapted.written / "history.json")["adapted_from"] == "2.0"
    for name in ("classes", "input", "finds_cells", "network", "parameters"):
        assert card[name] == base[name]
    assert card["temperature"] != base["temperature"]
    assert card["thresholds"].keys() == base["thresholds"].keys()
    assert card["thresholds"]["stain"] == base["thresholds"]["stain"]


def test_the_network_is_trained_and_the_locator_stays(adapted: Run) -> None:
    base, written = (
        torch.load(folder / "weights.pt", weights_only=True)
        for folder in (adapted.base, adapted.written)
    )
    assert same_weights(written["locator"], base["locator"])
    assert not same_weights(written["network"], base["network"])
    assert all(weights.isfinite().all() for weights in written["network"].values())


def test_the_known_answers_are_those_of_the_version(adapted: Run) -> None:
    card, golden = read(adapted.written / "card.json"), read(adapted.written / "golden.json")
    assert set(golden) == {path.name for path in SAMPLES.glob("*.png")}
    version = pipelines.load(adapted.written, card, 2)
    picture = decode((SAMPLES / "monocyte.png").read_bytes(), version.fit)
    said = answer(MODEL, card, version.predict([picture])[0])
    assert said["cells"]
    assert golden["monocyte.png"] == pytest.approx(said["probabilities"], abs=1e-4)


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
        np.array([cutout] * count, object),
        np.zeros((count, PATCH, PATCH, 3), np.uint8),
        np.array([sample.label for sample in samples]),
        np.array([sample.group for sample in samples]),
        np.full(count, laboratory),
    )


def photographed(name: str, labels: Sequence[int] = (0, 1, 2, 3)) -> list[Sample]:
    return [Sample(Path(name), label, "", f"{name} {at}") for at, label in enumerate(labels)]


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Make up cells; record the laboratory and how its cell is chosen."""
    recorded: list[tuple[str, Any]] = []

    def collect(samples: list[Sample], laboratory: str, locator: Locator, choose: Any) -> CellSet:
        assert isinstance(locator, Locator)
        recorded.append((laboratory, choose))
        return made_up(samples, laboratory)

    monkeypatch.setattr(adapt, "collect", collect)
    return recorded


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, collected: list[tuple[str, Any]]) -> list[Training]:
    """Record the trainings; each returns a network that answers NEUTROPHIL, with its number."""
    recorded: list[Training] = []

    def train(
        cells: CellSet, recipe: CellRecipe, seed: int, title: str, start: CellNet
    ) -> tuple[CellNet, list[dict[str, float]]]:
        recorded.append(Training(cells, recipe, seed, start.state_dict()))
        return certain(3, mark=len(recorded)), [{"train_loss": 1.0}]

    monkeypatch.setattr(adapt, "train_cells", train)
    return recorded


def slides(root: Path, count: int) -> dict[str, tuple[str, int]]:
    """Write groups.csv with some slides; return each file's slide and label."""
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.png"))
    groups = {name: f"slide {at % count}" for at, name in enumerate(files)}
    rows = [f"{name},{group}" for name, group in groups.items()]
    (root / "groups.csv").write_text("\n".join(["file,group", *rows]) + "\n")
    return {name: (groups[name], NAMES.index(name.split("/")[0])) for name in files}


def test_groups_are_never_divided(
    trainings: list[Training], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A quarter is held out; each fold is predicted by a network that never saw its groups."""
    calibrating: list[OutOfFold] = []

    def record(rows: OutOfFold) -> dict[str, Any]:
        calibrating.append(rows)
        return choose(rows) | {"temperature": 1.75}

    monkeypatch.setattr(adapt, "choose", record)
    laboratory = slides(lay(tmp_path / "cells"), 9)
    write_base(Locator(), certain(0))
    written = taught(tmp_path / "cells")
    *folds, last = trainings
    assert len(folds) == protocol.INNER_FOLDS
    trained = set(last.cells.groups.tolist())
    assert all(set(fold.cells.groups.tolist()) < trained for fold in folds)
    held_out = [each for each in laboratory.values() if each[0] not in trained]
    assert 0.15 * len(laboratory) < len(held_out) < 0.35 * len(laboratory)
    own = read(written / "metrics.json")["own_cells"]["after"]
    known = [group for group, label in held_out if label < OTHER]
    assert (own["images"], own["photographs"]) == (len(known), len(set(known)))
    expected = [label for group, label in laboratory.values() if group in trained]
    assert sorted(last.cells.labels.tolist()) == sorted(expected)
    shipped = torch.load(written / "weights.pt", weights_only=True)
    assert same_weights(shipped["network"], certain(3, mark=len(trainings)).state_dict())
    [rows] = calibrating
    assert rows.labels.tolist() == last.cells.labels.tolist()
    judges = rows.logits[:, OTHER].round().astype(int)
    assert set(judges.tolist()) == set(range(1, protocol.INNER_FOLDS + 1))
    for group, judge in zip(rows.groups, judges, strict=True):
        assert group not in trainings[judge - 1].cells.groups
    card = read(written / "card.json")
    assert card["temperature"] == 1.75
    stain = {"stain": CALIBRATION["thresholds"]["stain"]}
    assert card["thresholds"] == choose(rows)["thresholds"] | stain


def test_every_training_starts_from_the_older_version(
    trainings: list[Training], tmp_path: Path
) -> None:
    """The base is measured before, the new version after; it can be adapted again."""
    write_base(Locator(), certain(1))
    first = taught(lay(tmp_path / "cells"))
    assert [each.seed for each in trainings] == list(range(protocol.INNER_FOLDS + 1))
    for training in trainings:
        assert same_weights(training.start, certain(1).state_dict())
        assert training.recipe.channels == tuple(NETWORK["channels"])
        assert training.recipe.dropout == NETWORK["dropout"]
        assert training.recipe.steps == adapt.STEPS
    for when, said in (("before", 1), ("after", 3)):
        own = read(first / "metrics.json")["own_cells"][when]
        recalls = [each["recall"]["value"] for each in own["classes"].values()]
        assert recalls == np.eye(len(CLASSES))[said].tolist()
    second = taught(tmp_path / "cells", base="3.0", version="4.0")
    assert read(second / "card.json")["adapted_from"] == "3.0"
    own = read(second / "metrics.json")["own_cells"]
    assert own["before"] == own["after"]


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """Provide old cells; record which are read."""
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


def test_old_training_cells_train_beside_its_own(
    trainings: list[Training],
    collected: list[tuple[str, Any]],
    at_hand: list[tuple[str, ...]],
    tmp_path: Path,
) -> None:
    write_base(Locator(), certain(0))
    written = taught(lay(tmp_path / "cells"))
    assert at_hand == [("photographs", "TRAIN"), ("pbc", "train")]
    assert collected == [("own", middle), ("photographs", surest), ("pbc", middle)]
    for training in trainings:
        where = training.cells.laboratories
        assert set(where.tolist()) == {"own", "photographs", "pbc"}
        assert ((where == "photographs").sum(), (where == "pbc").sum()) == (4, 5)
    old = read(written / "metrics.json")["old_cells"]
    for when, said in (("before", 0), ("after", 3)):
        assert old[when]["images"] == 8
        assert np.array(old[when]["confusion"])[:, said].tolist() == [2] * 4


def assert_refused(result: Result, message: str) -> None:
    """One line says why, and nothing is written."""
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert (result.exit_code, len(errors)) == (1, 1), result.output
    assert message in errors[0]
    assert not (version_files.folder("3.0") / "weights.pt").exists()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((5, 5, 5, 4, 9), "NEUTROPHIL has 4 cells; each class needs at least 5"),
        ((5, 5, 5, 5, 0), "No white cell was found in any of the 20 images."),
    ],
)
def test_unusable_cells_are_refused(tmp_path: Path, counts: tuple[int, ...], message: str) -> None:
    write_base(Locator(), untrained())
    cells = lay(tmp_path / "cells", counts)
    for path in cells.glob("*/*.png"):
        Image.new("RGB", (8, 6)).save(path)
    assert_refused(teach(cells), message)
    (cells / "LYMPHOCYTE" / "03.png").write_bytes(b"no image")
    if "No white" in message:
        assert_refused(teach(cells), "LYMPHOCYTE/03.png can't be read: Th")


@pytest.mark.parametrize(
    ("base", "version", "message"),
    [
        ("7.0", "3.0", "Version 7.0 is not trained"),
        ("5.0", "3.0", "5.0 is not a trained version"),
        ("6.0", "3.0", "Version 6.0 is not calibrated"),
        ("1.0", "3.0", "1.0 classifies whole fields: start from one that finds cells"),
        ("8.0", "3.0", "8.0 does not have the classes EOSINOPHIL, LYMPHOCYTE, MONOCYTE, NEUTRO"),
        ("2.0", "2.0", "2.0 exists already: choose another VERSION."),
        ("2.0", "1.0", "1.0 exists already"),
        ("4.0", "4.0", "4.0 exists already"),
        ("2.0", "../3.0", "should look like 3.0"),
        ("2.0", "3", "should look like 3.0"),
    ],
)
def test_an_unusable_base_or_version_is_refused(
    tmp_path: Path, base: str, version: str, message: str
) -> None:
    for name in ("2.0", "4.0", "5.0", "6.0"):
        write_base(Locator(), untrained(), name)
    write_base(Locator(), untrained(), "1.0", finds_cells=False)
    write_base(Locator(), untrained(), "8.0", classes=[*CLASSES[:3], "BASOPHIL"])
    (version_files.folder("5.0") / "weights.pt").unlink()
    card = read(version_files.folder("6.0") / "card.json")
    del card["thresholds"]
    (version_files.folder("6.0") / "card.json").write_text(json.dumps(card))
    folder = version_files.folder(base)
    before = contents(folder) if folder.exists() else None
    assert_refused(teach(lay(tmp_path / "cells"), base, version), message)
    assert before == (contents(folder) if folder.exists() else None)
    if version == "3.0":
        assert_refused(run("curve", "--version", base), message)


@pytest.mark.usefixtures("trainings")
def test_too_few_slides_are_refused(tmp_path: Path) -> None:
    write_base(Locator(), untrained())
    slides(lay(tmp_path / "cells"), 3)
    refused = teach(tmp_path / "cells")
    assert_refused(refused, "EOSINOPHIL has 3 groups; each class needs at least 4")


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record the training of the network that never saw the laboratory."""
    recorded: list[tuple[Any, ...]] = []

    def train(_locator: Locator, *rest: Any) -> tuple[CellNet, list[dict[str, float]]]:
        recorded.append(rest)
        return certain(0, mark=100), []

    monkeypatch.setattr(adapt, "train_network", train)
    return recorded


def test_the_curve_measures_so_many_cells_from_a_network_that_never_saw_any(
    monkeypatch: pytest.MonkeyPatch,
    first: list[tuple[Any, ...]],
    at_hand: list[tuple[str, ...]],
    trainings: list[Training],
    tmp_path: Path,
) -> None:
    """On cells that never train; 100 marks the network that never saw the laboratory."""

    def asked(network: CellNet, cells: CellSet) -> dict[str, Any]:
        return {"macro_recall": f"{mark_of(network)} of {cells.groups[0]}"}

    pbc = adapt.pbc
    monkeypatch.setattr(adapt, "CURVE", (0, 1, 2))
    monkeypatch.setattr(adapt, "measure", asked)
    monkeypatch.setattr(adapt, "pbc", lambda part=None: pbc(part) * 3)
    folder = write_base(Locator(), certain(1))
    assert run("curve", "--version", "2.0").exit_code == 0
    expected = [
        {"cells_a_class": count, "own": f"{mark} of pbc test 0", "old": f"{mark} of photograph 0"}
        for count, mark in ((0, 100), (1, 1), (2, 2))
    ]
    curve = read(folder / "adaptation.json")
    assert curve == {"steps": adapt.STEPS, "points": expected}
    [(photographs, others, recipe, _seed, checkpoint)] = first
    assert {sample.path.name for sample in photographs} == {"photograph"}
    assert (others, recipe) == ([], RECIPES["2.0"])
    assert tmp_path / "scratch" in checkpoint.parents
    assert ("photographs", "TRAIN", "TEST") in at_hand
    for count, training in zip((1, 2), trainings, strict=True):
        own = training.cells.take(training.cells.laboratories == "pbc")
        assert np.bincount(own.labels).tolist() == [count] * 4
        assert all(group.startswith("pbc train") for group in own.groups)
        assert (training.cells.laboratories == "photographs").sum() == 4
        assert same_weights(training.start, certain(0, mark=100).state_dict())


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("5.0", "5.0 was adapted: the curve needs a version"),
        ("2.0", "does not hold the images: run `make data`"),
    ],
)
def test_a_curve_without_data_or_of_an_adapted_version_is_refused(
    first: list[tuple[Any, ...]], version: str, message: str
) -> None:
    folder = write_base(Locator(), untrained(), version)
    assert_refused(run("curve", "--version", version), message)
    assert not first
    assert not (folder / "adaptation.json").exists()

"""Adapting a version to a laboratory: training cells, held-out cells, written files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from handler import pipelines
from handler.locator import CANVAS
from handler.preprocessing import HEIGHT, WIDTH, Pixels, decode
from handler.verdict import answer
from scripts.draw_cells import draw_cell
from serving.deployment.known_answers import SAMPLES
from serving.settings import MODEL
from training import adapt, protocol, version_files
from training.__main__ import main
from training.calibrate import choose
from training.crops import PATCH, CellSet
from training.data import OTHER, Sample
from training.export import Served, is_quantized, to_onnx
from training.networks import CellNet, Locator
from training.out_of_fold import OutOfFold
from training.protocol import CLASSES, FIELD_CLASSES, KEPT_OWN
from training.recipes import RECIPES, Fit
from training.runs import Run as TrainingRun
from training.train import Prepared
from training.version_files import Trained
from training.views import NO_PARTNER, Views

NETWORK = {"channels": [8, 16], "dropout": 0.1}
CALIBRATION = {"temperature": 1.3, "thresholds": {"foreign": 0.5, "confident": 1}}
NAMES = (*CLASSES, "OTHER")
# Few cells of the laboratory's own, and many older ones.
SIZES = {"own": 5, "old": 300}


def be_apart(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Read and write versions in a folder, without any data set."""
    patch.setattr(version_files, "ROOT", root)
    patch.setattr(version_files, "SCRATCH", root / "scratch")
    patch.setenv("BLOOD_CELLS_DATA", str(root / "no photographs"))
    patch.delenv("PBC_DATA", raising=False)
    patch.delenv("LABORATORIES_DATA", raising=False)


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also skip the ONNX graphs, which take seconds."""
    be_apart(monkeypatch, tmp_path)
    monkeypatch.setattr(version_files, "to_onnx", lambda _network, path, _inputs: path.touch())
    monkeypatch.setattr(adapt, "write_golden", lambda _: None)


def write_base(
    locator: Locator,
    network: CellNet,
    version: str = "3.0",
    inputs: Mapping[str, Pixels] | None = None,
    **card: Any,
) -> Path:
    """Write a made-up version, in 8 bits if there are inputs; return its folder."""
    described = {
        "classes": list(CLASSES),
        "input": "each cell",
        "embedding": 32,
        "finds_cells": True,
        "network": NETWORK,
        **CALIBRATION,
        **card,
    }
    networks = {"locator": locator, "network": network}
    version_files.write(version, Trained(networks, described, {}, inputs or {}))
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


def lay(folder: Path, counts: Sequence[int] = (12, 12, 12, 12, 12, 6)) -> Path:
    """Create empty files of each class."""
    for name, count in zip(NAMES, counts, strict=True):
        (folder / name).mkdir(parents=True)
        for at in range(count):
            (folder / name / f"{at:02}.png").touch()
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def teach(folder: Path, base: str = "3.0", version: str = "4.0") -> Result:
    return run("adapt", "--from", base, "--cells", folder, "--version", version)


def taught(folder: Path, base: str = "3.0", version: str = "4.0") -> Path:
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
    drawn = {name: np.asarray(draw_cell(name, 1, (160, 120))) for name in FIELD_CLASSES}
    for name, cell in (drawn | {"OTHER": drawn["LYMPHOCYTE"]}).items():
        (folder / name).mkdir(parents=True)
        for turns in range(4):
            turned = np.rot90(cell, turns)
            Image.fromarray(turned).save(folder / name / f"{turns}.png")
            Image.fromarray(turned[::-1]).save(folder / name / f"{turns} mirrored.png")
    Image.new("RGB", (160, 120), (222, 219, 210)).save(folder / "MONOCYTE" / "blank.png")


def cut_out_drawn(samples: Sequence[Sample], laboratory: str, _locator: Locator) -> CellSet:
    """Cut out the cells as an untrained locator could not; skip what is blank."""
    fields = [np.asarray(Image.open(sample.path).resize((PATCH, PATCH))) for sample in samples]
    shown = [index for index, field in enumerate(fields) if field.std((0, 1)).max() > 1]
    cells = made_up([samples[index] for index in shown], laboratory)
    cells.patches = np.stack([fields[index] for index in shown])
    return cells


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train an untrained network on drawn cells."""
    root = tmp_path_factory.mktemp("laboratory")
    draw_laboratory(root / "cells")
    with pytest.MonkeyPatch.context() as patch:
        be_apart(patch, root)
        patch.setattr(adapt, "collect", cut_out_drawn)
        patch.setattr(adapt, "VIEWS", 8)
        patch.setattr(adapt, "FIT", Fit(2, 8, 1e-3, 0.05, decay=0.9, mean_from=0))
        random = np.random.default_rng(0)
        inputs = {
            "locator": random.integers(0, 256, (2, CANVAS, CANVAS, 3), np.uint8),
            "network": random.integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8),
        }
        base = write_base(Locator().eval(), untrained(), inputs=inputs)
        before = contents(base)
        result = teach(root / "cells")
        assert result.exit_code == 0, result.output
        return Run(result.output, base, before, version_files.folder("4.0"))


def test_a_laboratorys_cells_make_a_version(adapted: Run) -> None:
    """The base stays as it is, and the card names its origin."""
    written = contents(adapted.written)
    networks = {"weights.pt", "locator.onnx", "network.onnx"}
    documents = {"card.json", "history.json", "metrics.json", "golden.json", "model-config.yaml"}
    assert set(written) == networks | documents
    assert written["model-config.yaml"] == b"minWorkers: 5\n"
    assert contents(adapted.base) == adapted.base_before
    for line in (
        f"wrote {adapted.written}",
        "`make deploy VERSION=4.0`",
        "1 of 41 images show no white cell",
        "the old cells of photographs are not used: ",
        "the old cells of pbc are not used: Set PBC_DATA",
        "macro recall on held-out own cells: ",
    ):
        assert line in adapted.printed
    card, base = read(adapted.written / "card.json"), read(adapted.base / "card.json")
    assert (card["version"], card["adapted_from"]) == ("4.0", "3.0")
    assert read(adapted.written / "history.json")["adapted_from"] == "3.0"
    for name in ("classes", "input", "finds_cells", "embedding", "network", "parameters"):
        assert card[name] == base[name]
    assert card["temperature"] != base["temperature"]
    assert card["thresholds"].keys() == base["thresholds"].keys()


def test_the_network_is_trained_and_the_locator_stays(adapted: Run) -> None:
    base, written = (
        torch.load(folder / "weights.pt", weights_only=True)
        for folder in (adapted.base, adapted.written)
    )
    assert same_weights(written["locator"], base["locator"])
    assert not same_weights(written["network"], base["network"])
    assert all(weights.isfinite().all() for weights in written["network"].values())


def test_the_networks_compute_in_8_bits_as_those_of_the_base_do(adapted: Run) -> None:
    assert is_quantized(adapted.base / "network.onnx")
    assert is_quantized(adapted.written / "network.onnx")
    written, before = contents(adapted.written), adapted.base_before
    assert written["network.onnx"] != before["network.onnx"]
    assert written["locator.onnx"] == before["locator.onnx"]
    digests = read(adapted.written / "card.json")["sha256"]
    for name in ("network.onnx", "locator.onnx"):
        assert digests[name] == hashlib.sha256(written[name]).hexdigest()


def test_both_kinds_of_cells_set_the_ranges_of_8_bits() -> None:
    own, old = (made_up(photographed(name, [0] * count), name) for name, count in SIZES.items())
    own.patches[:] = 100
    inputs = adapt.calibration([own, old])
    assert inputs.shape == (adapt.CALIBRATION // 2 + SIZES["own"], HEIGHT, WIDTH, 3)
    assert (inputs == 100).all((1, 2, 3)).sum() == SIZES["own"]


def test_the_known_answers_are_those_of_the_version(adapted: Run) -> None:
    card, golden = read(adapted.written / "card.json"), read(adapted.written / "golden.json")
    assert set(golden) == {path.name for path in SAMPLES.glob("*.png")}
    version = pipelines.load(adapted.written, card, 2)
    picture = decode((SAMPLES / "monocyte.png").read_bytes(), version.fit)
    said = answer(MODEL, card, version.predict([picture])[0])
    assert golden["monocyte.png"] == pytest.approx(said["probabilities"], abs=1e-4)


@dataclass
class Training:
    cells: CellSet
    old: CellSet | None
    seed: int
    start: dict[str, torch.Tensor]


def made_up(samples: Sequence[Sample], laboratory: str) -> CellSet:
    count = len(samples)
    return CellSet(
        np.zeros((count, PATCH, PATCH, 3), np.uint8),
        np.array([sample.label for sample in samples]),
        np.array([sample.kind for sample in samples]),
        np.full(count, laboratory),
        np.array([sample.group for sample in samples]),
        np.array([sample.path.name for sample in samples]),
        np.zeros((count, 4), np.float32),
    )


def photographed(name: str, labels: Sequence[int] = (0, 1, 2, 3)) -> list[Sample]:
    return [Sample(Path(name), label, "", f"{name} {at}") for at, label in enumerate(labels)]


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make up cells; record the laboratory."""
    recorded: list[str] = []

    def collect(samples: list[Sample], laboratory: str, locator: Locator) -> CellSet:
        assert isinstance(locator, Locator)
        recorded.append(laboratory)
        return made_up(samples, laboratory)

    monkeypatch.setattr(adapt, "collect", collect)
    return recorded


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, collected: list[str]) -> list[Training]:
    """Record the trainings; each returns a network that answers NEUTROPHIL, with its number."""
    recorded: list[Training] = []

    def train(
        network: CellNet, own: CellSet, old_views: Any, card: Any, seed: int, title: str
    ) -> tuple[CellNet, list[dict[str, float]]]:
        recorded.append(Training(own, old_views, seed, network.state_dict()))
        return certain(3, mark=len(recorded)), [{"train_loss": 1.0}]

    def export(network: Served, path: Path, inputs: Pixels | None) -> None:
        path.touch() if isinstance(network, Locator) else to_onnx(network, path, inputs)

    monkeypatch.setattr(version_files, "to_onnx", export)
    monkeypatch.setattr(adapt, "train_on", train)
    monkeypatch.setattr(adapt, "views_of", lambda cells: cells)
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

    def record(rows: OutOfFold, kept: float) -> dict[str, Any]:
        calibrating.append(rows)
        return choose(rows, kept) | {"temperature": 1.75}

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
    assert card["thresholds"] == choose(rows, KEPT_OWN)["thresholds"]


def test_every_training_starts_from_the_older_version(
    trainings: list[Training], tmp_path: Path
) -> None:
    """The base is measured before, the new version after; it can be adapted again."""
    write_base(Locator(), certain(1))
    first = taught(lay(tmp_path / "cells"))
    assert [each.seed for each in trainings] == list(range(protocol.INNER_FOLDS + 1))
    for training in trainings:
        assert same_weights(training.start, certain(1).state_dict())
    for when, said in (("before", 1), ("after", 3)):
        own = read(first / "metrics.json")["own_cells"][when]
        recalls = [each["recall"]["value"] for each in own["classes"].values()]
        assert recalls == np.eye(len(CLASSES))[said].tolist()
    assert not is_quantized(first / "network.onnx")
    second = taught(tmp_path / "cells", base="4.0", version="5.0")
    assert read(second / "card.json")["adapted_from"] == "4.0"
    own = read(second / "metrics.json")["own_cells"]
    assert own["before"] == own["after"]


def test_old_training_cells_train_beside_its_own(
    trainings: list[Training],
    collected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Some of each laboratory that is there, without a quarter that is held out."""
    monkeypatch.setenv("PBC_DATA", str(lay(tmp_path / "pbc", (4, 4, 4, 4, 9, 4))))
    monkeypatch.setattr(adapt, "OLD", 4)
    write_base(Locator(), certain(0))
    written = taught(lay(tmp_path / "cells"))
    assert collected == ["own", "pbc"]
    for training in trainings:
        assert set(training.cells.laboratories.tolist()) == {"own"}
        assert training.old is not None
        assert np.bincount(training.old.labels).tolist() == [3] * 6
    old = read(written / "metrics.json")["old_cells"]
    for when, said in (("before", 0), ("after", 3)):
        assert old[when]["images"] == 5
        assert old[when]["classes"][CLASSES[said]]["recall"]["value"] == 1


def assert_refused(result: Result, message: str) -> None:
    """One line says why, and nothing is written."""
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert (result.exit_code, len(errors)) == (1, 1), result.output
    assert message in errors[0]
    assert not (version_files.folder("4.0") / "weights.pt").exists()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((5, 5, 5, 4, 0, 9), "NEUTROPHIL has 4 cells; each class needs at least 5"),
        ((5, 5, 5, 5, 0, 0), "No white cell was found in any of the 20 images."),
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
        ("7.0", "4.0", "Version 7.0 is not trained"),
        ("5.0", "4.0", "5.0 is not a trained version"),
        ("6.0", "4.0", "Version 6.0 is not calibrated"),
        ("1.0", "4.0", "1.0 classifies whole fields: start from one that finds cells"),
        ("8.0", "4.0", "8.0 does not have the classes EOSINOPHIL, LYMPHOCYTE, MONOCYTE, NEUTRO"),
        ("3.0", "3.0", "3.0 exists already: choose another VERSION."),
        ("3.0", "1.0", "1.0 exists already"),
        ("9.0", "9.0", "9.0 exists already"),
        ("3.0", "../4.0", "should look like 3.0"),
        ("3.0", "4", "should look like 3.0"),
    ],
)
def test_an_unusable_base_or_version_is_refused(
    tmp_path: Path, base: str, version: str, message: str
) -> None:
    for name in ("3.0", "5.0", "6.0", "9.0"):
        write_base(Locator(), untrained(), name)
    write_base(Locator(), untrained(), "1.0", finds_cells=False)
    write_base(Locator(), untrained(), "8.0", classes=[*CLASSES[:4], "BLAST"])
    (version_files.folder("5.0") / "weights.pt").unlink()
    card = read(version_files.folder("6.0") / "card.json")
    del card["thresholds"]
    (version_files.folder("6.0") / "card.json").write_text(json.dumps(card))
    folder = version_files.folder(base)
    before = contents(folder) if folder.exists() else None
    assert_refused(teach(lay(tmp_path / "cells"), base, version), message)
    assert before == (contents(folder) if folder.exists() else None)
    if version == "4.0":
        assert_refused(run("curve", "--version", base), message)


@pytest.mark.usefixtures("trainings")
def test_too_few_slides_are_refused(tmp_path: Path) -> None:
    write_base(Locator(), untrained())
    slides(lay(tmp_path / "cells"), 3)
    refused = teach(tmp_path / "cells")
    assert_refused(refused, "EOSINOPHIL has 3 groups; each class needs at least 4")


def test_the_curve_trains_networks_that_never_saw_the_laboratory(
    monkeypatch: pytest.MonkeyPatch, trainings: list[Training], tmp_path: Path
) -> None:
    """On so many of its cells and on older views, measured on its other groups."""
    samples = [
        Sample(Path(f"{name} {at}.png"), at % 5, "", f"{name} {at // 2}")
        for name in ("pbc", "raabin")
        for at in range(40)
    ]
    names = np.repeat(["pbc", "raabin"], 40)
    cells = CellSet.join([made_up(samples[:40], "pbc"), made_up(samples[40:], "raabin")])
    views = Views(np.zeros((80, 84, 112, 3), np.uint8), np.arange(80), np.full(80, NO_PARTNER))
    prepared = Prepared(RECIPES["3.0"], cells, names, views, None)  # type: ignore[arg-type]
    runs = [
        TrainingRun("shipped"),
        TrainingRun("without-pbc", "pbc"),
        TrainingRun("fold-0", fold=0),
    ]
    monkeypatch.setattr(adapt, "COUNTS", (2, 4))
    monkeypatch.setattr(adapt, "prepare", lambda _version: prepared)
    monkeypatch.setattr(adapt, "all_runs", lambda: runs)
    monkeypatch.setattr(adapt, "network_of", lambda _version, _run: (certain(0), []))
    folder = write_base(Locator(), certain(1))
    assert run("curve", "--version", "3.0").exit_code == 0
    curve = read(folder / "adaptation.json")
    points = [{"cells_a_class": count, "macro_recall": 0.2} for count in (0, 2, 4)]
    assert curve == {"steps": adapt.FIT.steps, "laboratories": {"pbc": {"points": points}}}
    for count, training in zip((2, 4), trainings, strict=True):
        assert np.bincount(training.cells.labels).tolist() == [count] * 5
        assert set(training.cells.laboratories.tolist()) == {"pbc"}
        assert same_weights(training.start, certain(0).state_dict())
        old: Any = training.old
        assert sorted(old[1].tolist()) == sorted(cells.labels[names == "raabin"].tolist())


def test_a_curve_of_an_adapted_version_is_refused() -> None:
    folder = write_base(Locator(), untrained(), "5.0")
    assert_refused(run("curve", "--version", "5.0"), "5.0 was adapted: the curve needs a version")
    assert not (folder / "adaptation.json").exists()

"""The report: every figure that it shows is one of the JSON files', and nothing else is shown."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handler.verdict import CLASSES
from training import data, report
from training.robustness import CHANGES
from training.version_files import ROOT, write_json

Json = dict[str, Any]
README = """# Made up

<!-- example: written by a test -->
old example
<!-- end of example -->
Between.
<!-- figures: written by a test -->
old figures
<!-- end of figures -->
The end.
"""
SHARES = {"confident": 0.6123, "uncertain": 0.2754, "rejected": 0.1123}
ANSWER = {"version": "2.0", "label": "NEUTROPHIL"}
# What older files lack, or a version that was not cross-validated.
OPTIONAL = (
    "calibration",
    "cross_validation",
    "label_doubts",
    "locator",
    "one_laboratory_from_the_other",
    "pbc",
    "rejection",
    "robustness",
    "test_photographs",
    "test_verdicts",
    "test_without_cells_also_in_train",
    "test_without_fields_also_in_train",
)
OPTIONAL_FILES = ("sweep.json", "served.json", "adaptation.json")


class Maker:
    """Makes up figures that all differ, so that none can stand in another's place."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def share(self, low: float = 0.6, high: float = 0.97) -> float:
        return round(float(self.random.uniform(low, high)), 6)

    def figure(self, low: float = 0.6, high: float = 0.97) -> Json:
        value = self.share(low, high)
        return {"value": value, "interval": [round(value - 0.0713, 6), round(value + 0.0217, 6)]}

    def summary(self, images: int, photographs: int, low: float = 0.6, high: float = 0.97) -> Json:
        names = ("image_accuracy", "photograph_accuracy", "macro_recall")
        return {
            "images": images,
            "photographs": photographs,
            **{name: self.figure(low, high) for name in names},
            "classes": {
                name: {
                    "images": images // 4,
                    "photographs": photographs // 4,
                    **{key: self.figure(low, high) for key in ("precision", "recall", "f1")},
                }
                for name in CLASSES
            },
            "confusion": self.random.integers(1, 500, (4, 4)).tolist(),
        }

    def calibration(self, ece: float) -> Json:
        middles = (np.arange(4, 15) + 0.5) / 15
        bins = [
            {
                "count": int(4000 * middle**9) + 7,
                "confidence": round(float(middle), 4),
                "accuracy": round(float(middle - ece), 4),
            }
            for middle in middles
        ]
        return {
            "ece": ece,
            "nll": self.share(0.3, 0.5),
            "brier": self.share(0.1, 0.3),
            "bins": bins,
        }

    def others(self, *kinds: str) -> Json:
        return {**self.stranger(120), "kinds": {kind: self.stranger(43) for kind in kinds}}

    def stranger(self, images: int) -> Json:
        part = {"images": images, "auroc": self.share(), "fpr_at_95_tpr": self.share(0.1, 0.3)}
        cut = self.share(0.3, 0.5)
        shares = {"confident": cut / 4, "uncertain": cut * 3 / 4, "rejected": 1 - cut}
        return {**part, "verdicts": {name: round(value, 4) for name, value in shares.items()}}


def metrics_of(version: str) -> Json:
    """Make up metrics.json, as training.evaluate writes it."""
    made = Maker(int(float(version)))
    finds_cells = version != "1.0"
    metrics = {
        "version": version,
        "temperature": 0.8421,
        "thresholds": {"stain": 0.2718, "foreign": 0.5123, "confident": 0.8765},
        "test": made.summary(2487, 71),
        "test_without_cells_also_in_train": made.summary(2285, 65),
        "test_without_fields_also_in_train": made.summary(2246, 62),
        "test_where_confident": made.summary(1579, 60),
        "test_verdicts": SHARES,
        "test_photographs": {"photographs": 71, "right": 63, "wrong": ["BloodImage_00026"]},
        "cross_validation": {
            **made.summary(12444, 348),
            "photographs_right": {"photographs": 348, "right": 321, "wrong": []},
            "cells_not_found": 17 if finds_cells else 0,
        },
        "calibration": {
            "images": 9957,
            "before": made.calibration(0.0712),
            "after": made.calibration(0.0134),
        },
        "label_doubts": [
            {
                "photograph": "BloodImage_00023",
                "label": "EOSINOPHIL",
                "looks_like": "NEUTROPHIL",
                "probability_of_label": 0.0312,
            }
        ],
        "pbc": {
            "split": "training/pbc.csv",
            **{
                how: {**made.summary(597, 597, 0.3, 0.6), "verdicts": SHARES}
                for how in ("as_uploaded", "scale_matched")
            },
        },
        "one_laboratory_from_the_other": {},
        "rejection": {
            "near": made.others("basophil", "erythroblast", "immature_granulocyte", "platelet"),
            "verdicts_of_cells": SHARES,
            "far": made.others("photograph", "text", "blank", "noise"),
        },
        "robustness": {
            "images": 271,
            "curves": {
                name: {
                    "unit": unit,
                    "points": [{"amount": each, "accuracy": made.share()} for each in amounts],
                }
                for name, (unit, amounts, _change) in CHANGES.items()
            },
        },
        "seed_project": json.loads((ROOT / "models/1.0/metrics.json").read_text())["seed_project"],
    }
    if finds_cells:
        metrics["one_laboratory_from_the_other"] = {
            "pbc from photographs": made.summary(2000, 2000),
            "photographs from pbc": made.summary(348, 319),
        }
        metrics["locator"] = {
            "boxes": 372,
            "found": 361,
            "recall": 0.9704,
            "false_boxes": 9,
            "false_share": 0.0243,
        }
    return metrics


def card_of(version: str) -> Json:
    field = {"channels": [16, 32], "pools": [2, 4], "hidden": 64, "dropout": [0.1, 0.3]}
    cells = {"channels": [16, 32, 64, 96], "dropout": 0.2}
    return {
        "version": version,
        "labels": list(CLASSES),
        "input": "80x60 RGB",
        "finds_cells": version != "1.0",
        "network": field if version == "1.0" else cells,
        "parameters": 148772,
        "sha256": {"weights.pt": "d928e62f"},
        "training_date": "2026-11-22",
        "temperature": 0.8421,
        "thresholds": {"stain": 0.2718, "foreign": 0.5123, "confident": 0.8765},
    }


def history_of(version: str) -> Json:
    loss = np.linspace(1.4, 0.4, 12).round(4).tolist()
    if version == "1.0":
        rows = [
            {
                "train_loss": each,
                "train_accuracy": 1 - each / 2,
                "validation_loss": each + 0.2,
                "validation_accuracy": 0.9 - each / 2,
            }
            for each in loss
        ]
        recipe = {"epochs": 12, "batch_size": 64}
        return {"recipe": recipe, "chosen_seed": 1, "seeds": {"0": rows, "1": rows, "2": rows}}
    return {
        "recipe": {"steps": 1200, "batch_size": 64},
        "locator_steps": 600,
        "steps_a_row": 100,
        "rows": [{"train_loss": each, "train_accuracy": 1 - each / 2} for each in loss],
    }


SERVED = {
    "images": 2487,
    "cores": 12,
    "image_accuracy": 0.8531,
    "answers_that_differ": 3,
    "milliseconds": {
        "one_core": {"median": 3.17, "95th percentile": 4.29},
        "service": {"median": 7.53, "95th percentile": 11.41},
    },
}


def adaptation_of(version: str) -> Json | None:
    """Make up the curve of own cells; a version that finds no cells has none."""
    made = Maker(99)
    points = [
        {"cells_a_class": count, "own": made.figure(), "old": made.figure()}
        for count in (0, 10, 100)
    ]
    return {"steps": 432, "points": points} if version != "1.0" else None


def make(root: Path, version: str, without: tuple[str, ...] = ()) -> Path:
    """Make up the files of a version; return its folder."""
    folder = root / "models" / version
    folder.mkdir(parents=True)
    metrics = metrics_of(version)
    write_json(
        folder / "metrics.json", {key: metrics[key] for key in metrics if key not in without}
    )
    write_json(folder / "card.json", card_of(version))
    write_json(folder / "history.json", history_of(version))
    write_json(folder / "golden.json", {"neutrophil.png": {}})
    if version == "1.0":
        shutil.copy(ROOT / "models" / "1.0" / "sweep.json", folder)
    else:
        write_json(folder / "adaptation.json", adaptation_of(version))
    write_json(folder / "served.json", SERVED)
    (folder / "weights.pt").write_bytes(bytes(1_234_567))
    (root / "README.md").write_text(README)
    return folder


@pytest.fixture(params=["1.0", "2.0"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make up both versions, report on both, and return the root."""
    root = tmp_path_factory.mktemp("both")
    for name in ("1.0", "2.0"):
        make(root, name)
        report.write(name, {**ANSWER, "version": name}, root)
    return root


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the plots out, which take seconds."""
    monkeypatch.setattr(report, "drawings", lambda measured: {})


def figures_in(document: Any) -> list[Json]:
    """List whatever has a value and an interval, at any depth."""
    if isinstance(document, dict) and set(document) == {"value", "interval"}:
        return [document]
    parts = document.values() if isinstance(document, dict) else ()
    return [figure for part in parts for figure in figures_in(part)]


def percentages(text: str) -> set[str]:
    return set(re.findall(r"[\d.]+%", text))


def assert_clean(text: str) -> None:
    """No gap shows, no mark of the template, no table is torn."""
    words = set(re.findall(r"[\w{}%]+", text))
    assert not words & {"None", "nan", "NaN", "{{", "}}", "{%", "%}", "inf", "Undefined"}
    assert "\n\n\n" not in text
    for rows in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in rows.splitlines()}) == 1, rows
        assert rows.splitlines()[1].startswith("|---|"), rows


def test_the_card_shows_what_was_measured(both: Path, version: str) -> None:
    text, metrics = (both / "models" / version / "CARD.md").read_text(), metrics_of(version)
    expected = {
        "test": figures_in(metrics["test"]["classes"]),
        "cross-validation": figures_in(metrics["cross_validation"]["classes"]),
        "pbc": figures_in(metrics["pbc"]["as_uploaded"]["classes"]),
        "by photograph": [metrics["test"]["photograph_accuracy"]],
        "alone": [
            part["macro_recall"] for part in metrics["one_laboratory_from_the_other"].values()
        ],
    }
    for name in (*(key for key in metrics if key.startswith("test")), "cross_validation"):
        if "macro_recall" in metrics[name] and name.startswith("test"):
            expected[name] = [metrics[name]["image_accuracy"]]
    for what, figures in expected.items():
        assert all(report.text(figure) in text for figure in figures), what


def test_the_card_shows_calibration_rejection_and_robustness(both: Path, version: str) -> None:
    text, metrics = (both / "models" / version / "CARD.md").read_text(), metrics_of(version)
    for when, part in metrics["calibration"].items():
        if when != "images":
            assert f"| {when} | {part['ece']} | {part['nll']} | {part['brier']} |" in text
    for part in ("near", "far"):
        for kind, each in metrics["rejection"][part]["kinds"].items():
            shares = " | ".join(f"{share:.1%}" for share in each["verdicts"].values())
            figures = f"{each['auroc']:.3f} | {each['fpr_at_95_tpr']:.1%} | {shares}"
            assert f"| {kind.replace('_', ' ')} | {each['images']} | {figures} |" in text
    for curve in metrics["robustness"]["curves"].values():
        assert all(f"{at['amount']}: {at['accuracy']:.1%}" in text for at in curve["points"])
    assert "| BloodImage_00023 | eosinophil | neutrophil | 3.1% |" in text
    assert ("361 were found (97.0%)" in text) == (version == "2.0")


def test_the_card_shows_the_settings_and_sizes(both: Path, version: str) -> None:
    text = (both / "models" / version / "CARD.md").read_text()
    assert "1,234,567 bytes" in text
    assert "148,772" in text
    assert "2026-11-22" in text
    assert "| temperature | 0.8421 |" in text
    assert "below 0.2718" in text
    assert "at least 0.8765" in text
    assert ("above 0.5123" in text) == (version == "2.0")


def test_the_card_shows_cost_and_own_cells(both: Path, version: str) -> None:
    text = (both / "models" / version / "CARD.md").read_text()
    assert "| one core | 3.17 ms | 4.29 ms |" in text
    assert "| service | 7.53 ms | 11.41 ms |" in text
    assert "Of 3 images the archive's probabilities differ" in text
    assert "the same machine of 12 cores" in text
    curve = adaptation_of(version)
    assert ("A laboratory's own cells" in text) == (curve is not None)
    for point in curve["points"] if curve else ():
        own, old = (report.text(point[what]) for what in ("own", "old"))
        assert f"| {point['cells_a_class']} | {own} | {old} |" in text


def test_no_percentage_comes_from_nowhere(both: Path, version: str) -> None:
    """Every percentage of the card is a number of the files, rounded."""
    text = (both / "models" / version / "CARD.md").read_text()
    files = json.dumps(
        [metrics_of(version), card_of(version), history_of(version), adaptation_of(version)]
    )
    numbers = {float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", files)}
    known = {f"{number:.1%}" for number in numbers}
    known |= {f"{number:.1%}" for number in (1 - kept for kept in report.KEPT.values())}
    known |= {f"{report.RIGHT:.1%}", "25.0%"}
    assert percentages(text) - known == set()


def test_the_card_counts_what_the_lists_of_photographs_hold(both: Path, version: str) -> None:
    text = (both / "models" / version / "CARD.md").read_text()
    test = data.photographs(Path(), "TEST")
    assert f"of\n{len(test)} photographs" in text
    for index, name in enumerate(CLASSES):
        count = sum(sample.label == index for sample in test)
        images = data.IMAGES_PER_CLASS["TEST"][name]
        assert f"| {name.lower()} | {count} | {images} |" in text


def test_each_version_says_what_it_can_not_do(both: Path) -> None:
    field, cells = ((both / "models" / name / "CARD.md").read_text() for name in ("1.0", "2.0"))
    assert "it cannot tell\nother cells from them" in field
    assert "### Where the cells are" not in field
    assert "learned from" not in field.lower()
    assert "or none of the four" in cells
    assert "cannot tell" not in cells


def test_the_headings_are_those_of_model_cards(both: Path, version: str) -> None:
    text = (both / "models" / version / "CARD.md").read_text()
    assert re.findall("^## (.*)$", text, re.MULTILINE) == [
        "Model details",
        "Intended use",
        "Out of scope",
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
    ]


@pytest.mark.parametrize("missing", [(name,) for name in OPTIONAL] + [OPTIONAL])
def test_what_was_not_measured_is_left_out(
    tmp_path: Path, version: str, missing: tuple[str, ...]
) -> None:
    folder = make(tmp_path, version, without=missing)
    for name in OPTIONAL_FILES if missing == OPTIONAL else ():
        (folder / name).unlink(missing_ok=True)
    measured = report.read(folder)
    text = report.card(measured)
    assert_clean(text)
    assert_clean(report.figures([measured]))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= anchors
    assert set(re.findall(r"\]\(plots/(\w+)\.png\)", text)) == set(report.drawings(measured))


def test_text_is_clean(both: Path) -> None:
    for path in (both / "README.md", *both.glob("models/*/CARD.md")):
        assert_clean(path.read_text())


def test_plots_are_drawn(both: Path, version: str) -> None:
    paths = list((both / "models" / version / "plots").glob("*.png"))
    assert {path.stem for path in paths} - {"trade_off", "adaptation"} == {
        "confusion",
        "laboratories",
        "rejection",
        "reliability",
        "robustness",
        "training",
    }
    assert any(path.stem == "trade_off" for path in paths) == (version == "1.0")
    assert any(path.stem == "adaptation" for path in paths) == (version == "2.0")
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert 0.01 < (pixels < 200).any(2).mean() < 0.8, path.name
        # Nothing is cut off: the outermost pixels are white.
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == 255).all(), path.name


def test_the_readme_shows_all_versions_side_by_side(both: Path) -> None:
    text = (both / "README.md").read_text()
    one, two = metrics_of("1.0"), metrics_of("2.0")
    rows = {
        "TEST by photograph": ("test", "photograph_accuracy"),
        "TEST by image, without cells that TRAIN shows, too": (
            "test_without_cells_also_in_train",
            "image_accuracy",
        ),
        "cross-validation, macro recall": ("cross_validation", "macro_recall"),
        "PBC as uploaded, macro recall": ("pbc", "as_uploaded", "macro_recall"),
    }
    for label, path in rows.items():
        ours = " | ".join(report.text(report.find(each, *path)) for each in (one, two))
        assert f"| {label} |  | {ours} |" in text
    auroc = " | ".join(f"{each['rejection']['near']['auroc']:.3f}" for each in (one, two))
    assert f"| told from other cells (AUROC) |  | {auroc} |" in text
    assert "| photographs of TEST's 71 that are right |  | 63 | 63 |" in text
    assert "| weights |  | 1.2 MB | 1.2 MB |" in text
    assert "| the same, asked through the service |  | 85.3% | 85.3% |" in text
    assert "| an image on one core, by turns with the next, median |  | 3.2 ms | 3.2 ms |" in text
    assert "| an image through the service, from Python, median |  | 7.5 ms | 7.5 ms |" in text
    alone = two["one_laboratory_from_the_other"]["pbc from photographs"]["macro_recall"]
    assert f"|  | as above | {report.text(alone)} |" in text
    assert "83.2% claimed, 80.5% by its own table" in text


def test_the_readme_keeps_the_rest(both: Path) -> None:
    text = (both / "README.md").read_text()
    assert text.startswith("# Made up\n\n<!-- example: written by a test -->\n```json\n")
    assert text.endswith("<!-- end of figures -->\nThe end.\n")
    assert "old example" not in text
    assert "old figures" not in text


@pytest.mark.usefixtures("undrawn")
def test_the_report_writes_the_same_again(both: Path, version: str) -> None:
    """And an older version's example does not replace the newest one's."""
    paths = [both / "README.md", both / "models" / version / "CARD.md"]
    before = [path.read_text() for path in paths]
    assert json.dumps({**ANSWER, "version": "2.0"}) in before[0]
    report.write(version, {**ANSWER, "version": version}, both)
    assert [path.read_text() for path in paths] == before


@pytest.mark.usefixtures("undrawn")
def test_one_version_is_enough(tmp_path: Path, version: str) -> None:
    make(tmp_path, version)
    report.write(version, root=tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert f"| version {version} |\n|---|---|---|\n" in text
    assert "old example" in text


def test_versions_are_in_order_and_only_those_measured_on_test(tmp_path: Path) -> None:
    for name in ("10.0", "9.0", "1.0"):
        make(tmp_path, name)
    make(tmp_path, "2.0", without=("test",))
    assert [each.name for each in report.all_measured(tmp_path)] == ["1.0", "9.0", "10.0"]


def test_a_readme_without_marks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# No marks\n")
    with pytest.raises(ValueError, match="marks of figures"):
        report.write_readme({"figures": ""}, path)


def test_a_version_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--version", "0.0"]) == 1
    assert "make evaluate VERSION=0.0" in capsys.readouterr().err


def measured_anew() -> list[report.Measured]:
    """List the versions whose metrics.json has all that training.evaluate measures now."""
    return [each for each in report.all_measured() if "calibration" in each.metrics]


def test_what_is_committed_is_what_would_be_written_now(tmp_path: Path) -> None:
    versions = measured_anew()
    if not versions or len(versions) < len(report.all_measured()):
        pytest.skip("a version was not measured anew yet")
    for each in versions:
        assert (each.folder / "CARD.md").read_text() == report.card(each)
        assert {path.stem for path in (each.folder / "plots").iterdir()} >= set(
            report.drawings(each)
        )
    copy = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", copy)
    report.write_readme({"figures": report.figures(versions)}, copy)
    assert copy.read_text() == (ROOT / "README.md").read_text()


def test_the_readmes_example_is_the_newest_versions_answer() -> None:
    newest = report.all_measured()[-1]
    if "calibration" not in newest.metrics:
        pytest.skip("the newest version was not measured anew yet")
    example = re.search(
        r"<!-- example:.*?```json\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert example
    answer = json.loads(example[1])
    assert answer["version"] == newest.name
    assert answer["probabilities"] == newest.golden["neutrophil.png"]

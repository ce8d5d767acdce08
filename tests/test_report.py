"""The report shows the figures of the JSON files, each in its place, and no other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import VERSIONS
from made_up_laboratories import version_one, version_three
from PIL import Image

from serving.settings import ROOT
from training import figures as docs
from training import measured, report, version_files
from training.__main__ import main
from training.measured import all_measured, find, read
from training.protocol import KEPT, RIGHT
from training.version_files import write_json

Json = dict[str, Any]
PAGES = {
    "README.md": "# Made up\n<!-- example: -->\nstale\n<!-- end of example -->\nBetween.\n"
    "<!-- accuracy: -->\n<!-- end of accuracy -->\nThe end.\n",
    "docs/accuracy.md": "Before.\n<!-- figures: -->\nstale\n<!-- end of figures -->\nThe end.\n",
}
# Versions may lack these, in metrics.json and beside it.
OPTIONAL = (
    "calibration",
    "cross_validation",
    "far",
    "label_doubts",
    "locator",
    "robustness",
    "test_photographs",
    "test_verdicts",
    "test_without_cells_also_in_train",
    "test_without_fields_also_in_train",
)
OPTIONAL_FILES = measured.OPTIONAL


KEPT_KEYS = ("amount", "seed_project", "from", "to", "recipe")


def scrambled(document: Any, random: np.random.Generator) -> Any:
    """Replace all shares and times, so that none can stand in another's place."""
    if isinstance(document, dict) and set(document) == {"value", "interval"}:
        value = round(random.uniform(0.1, 0.9), 6)
        return {"value": value, "interval": [round(value - 0.0713, 6), round(value + 0.0217, 6)]}
    if isinstance(document, dict):
        return {
            key: part if key in KEPT_KEYS else scrambled(part, random)
            for key, part in document.items()
        }
    if isinstance(document, list):
        return [scrambled(part, random) for part in document]
    return round(random.uniform(0.05, 0.95), 4) if isinstance(document, float) else document


def make(root: Path, name: str, of: str, without: tuple[str, ...] = ()) -> Path:
    """Make up a version like 1.0, whose files are committed, or like 3.0; return its folder."""
    folder = root / "models" / name
    folder.mkdir(parents=True)
    random = np.random.default_rng(int(float(name)))
    for part, document in (version_one() if of == "1.0" else version_three()).items():
        document = scrambled(document, random)
        if part == "metrics":
            document |= {"version": name}
            document = {key: each for key, each in document.items() if key not in without}
        write_json(folder / f"{part}.json", document)
    network, *others = json.loads((folder / "card.json").read_text())["sha256"]
    (folder / network).write_bytes(bytes(1_234_567))
    for graph in others:
        (folder / graph).write_bytes(b"")
    (root / "docs").mkdir(exist_ok=True)
    for page, content in PAGES.items():
        (root / page).write_text(content)
    return folder


@pytest.fixture(params=["1.0", "3.0"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make up both versions, report on both, and return the root."""
    root = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(version_files, "ROOT", root)
        for name in ("1.0", "3.0"):
            make(root, name, name)
        for name in ("1.0", "3.0"):
            report.write(name, {"version": name})
    return root


@pytest.fixture
def both(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(version_files, "ROOT", written)
    return written


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(version_files, "ROOT", tmp_path)
    return tmp_path


def figures_in(document: Any) -> list[Json]:
    """List whatever has a value and an interval, at any depth."""
    if isinstance(document, dict) and set(document) == {"value", "interval"}:
        return [document]
    parts = document.values() if isinstance(document, dict) else ()
    return [figure for part in parts for figure in figures_in(part)]


def assert_clean(text: str) -> None:
    """No gap, no mark of the template and no torn table is left."""
    words = set(re.findall(r"[\w{}%]+", text))
    assert not words & {"None", "nan", "NaN", "{{", "}}", "{%", "%}", "inf", "Undefined"}
    assert "\n\n\n" not in text
    for rows in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in rows.splitlines()}) == 1, rows
        assert rows.splitlines()[1].startswith("|---|"), rows


def test_the_card_shows_each_measurement(both: Path, version: str) -> None:
    this = read(version)
    text, metrics = (this.folder / "CARD.md").read_text(), this.metrics
    parts = metrics["left_out"]["laboratories"]
    shown = [
        *(metrics[part]["classes"] for part in ("test", "cross_validation")),
        metrics["test"]["photograph_accuracy"],
        metrics["left_out"]["macro_recall"],
        *({"macro": part["macro_recall"], **part["recall"]} for part in parts.values()),
        *(part["image_accuracy"] for key, part in metrics.items() if key.startswith("test_w")),
    ]
    assert all(docs.text(figure) in text for part in shown for figure in figures_in(part))
    for row, form, *path in (
        ("cells not rejected", "{:.1%}", "kept"),
        ("`confident` answers that are correct", "{:.1%}", "confident_right"),
        ("calibration error (ECE)", "{:.3f}", "ece"),
    ):
        cells = [form.format(find(part, *path)) for part in parts.values()]
        assert f"| {row} | {' | '.join(cells)} |" in text
    for when in ("before", "after"):
        part = metrics["calibration"][when]
        assert f"| {when} | {part['ece']} | {part['nll']} | {part['brier']} |" in text
    near = [part["near"]["kinds"] for part in parts.values() if "near" in part]
    for kinds in (*near, metrics["far"]["kinds"]):
        for kind, each in kinds.items():
            shares = " | ".join(f"{share:.1%}" for share in each["verdicts"].values())
            figures = f"{each['auroc']:.3f} | {each['fpr_at_95_tpr']:.1%} | {shares}"
            assert f"| {kind.replace('_', ' ')} | {each['images']:,} | {figures} |" in text
    for document in (this.few_cells, this.adaptation):
        for part in document["laboratories"].values() if document else ():
            recalls = " | ".join(f"{point['macro_recall']:.1%}" for point in part["points"])
            assert f"| {recalls} |" in text
    for part in metrics.get("locator", {"laboratories": {}})["laboratories"].values():
        for row in part["by_share"]:
            figures = f"{row['boxes']:,} | {row['recall']:.1%} | {row['false_share']:.1%}"
            assert (f"| {figures} |" in text) == (row["boxes"] > 0)
    for row in this.ablation["rows"] if this.ablation else ():
        assert f"| {row['name']} | " in text
    for curve in metrics["robustness"]["curves"].values():
        assert all(f"{at['amount']}: {at['accuracy']:.1%}" in text for at in curve["points"])
    for doubt in metrics["label_doubts"]:
        assert f"| {doubt['photograph']} | {doubt['label'].lower()} |" in text
    for spread in this.served["milliseconds"].values() if this.served else ():
        assert f"| {spread['median']} ms | {spread['95th percentile']} ms |" in text
    assert "1,234,567 bytes" in text
    assert f"| temperature | {this.card['temperature']} |" in text
    assert f"{this.card['parameters']:,}" in text
    for name, threshold in this.card["thresholds"].items():
        assert (str(threshold) in text) == (name != "foreign" or version == "3.0")


def test_every_percentage_is_a_number_of_the_files(both: Path, version: str) -> None:
    folder = both / "models" / version
    files = " ".join(path.read_text() for path in folder.glob("*.json"))
    numbers = {float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", files)}
    numbers |= {KEPT, RIGHT, 0.25}
    numbers |= {share for what in ("macro_recall", "kept") for share in docs.EARLIER[what].values()}
    numbers.add(float(np.mean(list(docs.EARLIER["macro_recall"].values()))))
    known = {f"{number:{form}}" for number in numbers for form in (".1%", ".0%")}
    assert set(re.findall(r"[\d.]+%", (folder / "CARD.md").read_text())) <= known


@pytest.mark.parametrize("missing", [*((name,) for name in OPTIONAL), OPTIONAL])
def test_what_was_not_measured_is_left_out(
    apart: Path, version: str, missing: tuple[str, ...]
) -> None:
    folder = make(apart, version, version, missing)
    for name in OPTIONAL_FILES if missing == OPTIONAL else ():
        (folder / name).unlink(missing_ok=True)
    this = read(version)
    text = report.card(this)
    assert_clean(text)
    assert_clean(docs.figures([this]))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= anchors
    assert set(re.findall(r"\]\(plots/(\w+)\.png\)", text)) == set(report.drawings(this))


def test_no_answer_on_test_is_confident(apart: Path, version: str) -> None:
    path = make(apart, version, version) / "metrics.json"
    write_json(path, json.loads(path.read_text()) | {"test_where_confident": None})
    this, row = read(version), "where the verdict is `confident`"
    text, accuracy = report.card(this), docs.figures([this])
    for each in (text, accuracy):
        assert_clean(each)
    assert row not in text
    assert f"| TEST by image, {row}, and how often |  | never |" in accuracy


def test_plots_are_drawn(both: Path, version: str) -> None:
    paths = list((both / "models" / version / "plots").glob("*.png"))
    assert {path.stem for path in paths} == set(report.drawings(read(version)))
    assert len(paths) == {"1.0": 7, "3.0": 8}[version]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert 0.01 < (pixels < 200).any(2).mean() < 0.8, path.name
        # Nothing is cut off: the outermost pixels are white.
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == 255).all(), path.name


def row_of(each: measured.Measured | None, laboratory: str) -> str:
    """Return a version's macro recall in a laboratory; of 2.0, which has no files, if None."""
    if each is None:
        return f"{docs.EARLIER['macro_recall'][laboratory]:.0%}"
    part = each.metrics["left_out"]["laboratories"][laboratory]
    return docs.text(part["macro_recall"])


def test_the_docs_show_all_versions_side_by_side(both: Path) -> None:
    readme, accuracy = ((both / page).read_text() for page in PAGES)
    versions = all_measured()

    def row(*path: str) -> str:
        return " | ".join(docs.text(find(each.metrics, *path)) for each in versions)

    for text in (readme, accuracy):
        assert_clean(text)
        assert f"| TEST by photograph |  | {row('test', 'photograph_accuracy')} |" in text
        pbc = (row_of(each, "pbc") for each in (versions[0], None, versions[1]))
        assert f"| PBC, Barcelona | {' | '.join(pbc)} |" in text
        # Versions are not measured in the same laboratories.
        assert "| mean |" not in text
        assert "83.2% claimed, 80.5% by its own table" in text
        assert text.endswith("-->\nThe end.\n")
        assert "stale" not in text
    auroc = " | ".join(f"{each.metrics['far']['auroc']:.3f}" for each in versions)
    assert f"| AUROC against images without a smear |  | {auroc} |" in accuracy
    assert "| weights |  | 1.2 MB | 1.2 MB |" in accuracy
    served = " | ".join(
        f"{each.served['milliseconds']['service']['median']:.1f} ms"
        for each in versions
        if each.served
    )
    assert f"Python, median |  | {served} |" in accuracy
    assert readme.startswith(
        '# Made up\n<!-- example: -->\n```json\n{"version": "3.0"}\n```\n<!-- end'
    )
    assert "Between." in readme


def test_the_report_writes_the_same_again(
    both: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an older version's example does not replace the newest one's."""
    monkeypatch.setattr(report, "drawings", lambda measured: {})
    paths = [*(both / page for page in PAGES), both / "models" / version / "CARD.md"]
    before = [path.read_text() for path in paths]
    report.write(version, {"version": version})
    assert [path.read_text() for path in paths] == before


def test_versions_are_in_order_and_only_those_measured_on_test(apart: Path) -> None:
    for name in ("10.0", "9.0", "1.0"):
        make(apart, name, "1.0")
    make(apart, "3.0", "3.0", without=("test",))
    assert [each.name for each in all_measured()] == ["1.0", "9.0", "10.0"]


def test_pages_without_marks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# No marks\n")
    with pytest.raises(ValueError, match=r"README\.md lacks the marks of figures"):
        docs.write_readme({"figures": ""}, tmp_path / "README.md")


def test_a_version_that_is_not_measured_is_refused() -> None:
    result = CliRunner().invoke(main, ["report", "--version", "0.0"])
    assert result.exit_code == 1
    assert "make evaluate VERSION=0.0" in result.output


def test_the_committed_files_are_up_to_date(tmp_path: Path) -> None:
    versions = all_measured()
    assert [each.name for each in versions] == VERSIONS
    for each in versions:
        assert (each.folder / "CARD.md").read_text() == report.card(each)
        plots = {path.stem for path in (each.folder / "plots").iterdir()}
        assert plots == set(report.drawings(each))
    parts = {"accuracy": docs.accuracy(versions)}, {"figures": docs.figures(versions)}
    for page, part in zip(PAGES, parts, strict=True):
        shutil.copy(ROOT / page, tmp_path / "page.md")
        docs.write_readme(part, tmp_path / "page.md")
        assert (tmp_path / "page.md").read_text() == (ROOT / page).read_text()


def test_the_readmes_example_is_the_newest_versions_answer() -> None:
    newest = all_measured()[-1]
    readme = (ROOT / "README.md").read_text()
    example = re.search(r"<!-- example:.*?```json\n(.*?)\n```", readme, re.DOTALL)
    assert example
    answer = json.loads(example[1])
    assert answer["version"] == newest.name
    assert answer["probabilities"] == newest.golden["neutrophil.png"]

"""Put into plots and prose what was measured: `python -m training.report --version 2.0`.

Reads the JSON files of models/<version>/ and writes its plots/ and CARD.md, a model card under the
headings of Mitchell et al. 2018 (text: card.md.jinja), and the README's figures of every version
side by side. Measures nothing: what is said of a version is what training.evaluate found, and
training.served, adapt and sweep, if they were asked.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from handler.verdict import CLASSES
from serving.deployment.known_answers import TOLERANCE
from training import data, plots
from training.calibrate import BINS, KEPT, RIGHT
from training.crossvalidate import FOLDS
from training.metrics import RESAMPLES
from training.version_files import ROOT

Json = dict[str, Any]
TEMPLATE = "card.md.jinja"
# What macro recall is measured on: where it stands in metrics.json, and how that is called.
CELLS = {
    "TEST": ("test",),
    "cross-validation, all photographs": ("cross_validation",),
    "PBC, as uploaded": ("pbc", "as_uploaded"),
    "PBC, scale matched": ("pbc", "scale_matched"),
    "PBC, learned from photographs alone": (
        "one_laboratory_from_the_other",
        "pbc from photographs",
    ),
    "photographs, learned from PBC alone": (
        "one_laboratory_from_the_other",
        "photographs from pbc",
    ),
}


@dataclass(frozen=True)
class Measured:
    """What the files of a version say."""

    folder: Path
    card: Json
    metrics: Json
    history: Json
    golden: Json
    sweep: Json | None
    served: Json | None
    adaptation: Json | None

    @property
    def name(self) -> str:
        return str(self.metrics["version"])

    @property
    def finds_cells(self) -> bool:
        return bool(self.card.get("finds_cells"))

    @property
    def weights_bytes(self) -> int:
        return (self.folder / "weights.pt").stat().st_size

    @property
    def recalls(self) -> dict[str, Json]:
        """Return what was measured on each set of cells, and told by macro recall."""
        found = {label: find(self.metrics, *path) for label, path in CELLS.items()}
        return {label: part for label, part in found.items() if part}


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on one version; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.report")
    parser.add_argument("--version", required=True)
    version = parser.parse_args(arguments).version
    try:
        write(version)
    except (OSError, KeyError) as error:
        print(f"error: {error}\nRun `make evaluate VERSION={version}` first.", file=sys.stderr)
        return 1
    return 0


def write(version: str, example: Json | None = None, root: Path = ROOT) -> None:
    """Write a version's plots and card, and the README's figures.

    The example is the version's answer to neutrophil.png; the README shows the newest version's.
    """
    measured = read(root / "models" / version)
    (measured.folder / "plots").mkdir(exist_ok=True)
    for name, draw in drawings(measured).items():
        draw(measured.folder / "plots" / f"{name}.png")
    (measured.folder / "CARD.md").write_text(card(measured))
    versions = all_measured(root)
    parts = {"figures": figures(versions)}
    if example and version == versions[-1].name:
        parts["example"] = f"```json\n{json.dumps(example)}\n```"
    write_readme(parts, root / "README.md")


def read(folder: Path) -> Measured:
    """Read a version's files; sweep.json, served.json and adaptation.json may be missing."""
    parts = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("card", "metrics", "history", "golden")
    }
    for name in ("sweep", "served", "adaptation"):
        path = folder / f"{name}.json"
        parts[name] = json.loads(path.read_text()) if path.exists() else None
    return Measured(folder, **parts)


def all_measured(root: Path = ROOT) -> list[Measured]:
    """Read every version that was measured on TEST, oldest first."""
    folders = (path.parent for path in (root / "models").glob("*/metrics.json"))
    known = [
        read(folder)
        for folder in folders
        if "test" in json.loads((folder / "metrics.json").read_text())
    ]
    # By length first: 10.0 comes after 9.0.
    return sorted(known, key=lambda each: [(len(part), part) for part in each.name.split(".")])


def find(document: Mapping[str, Any], *path: str) -> Any:
    """Return what lies at a path of keys, None if it leads nowhere."""
    here: Any = document
    for key in path:
        here = here.get(key) if here else None
    return here


# The plots.


def drawings(measured: Measured) -> dict[str, Callable[[Path], None]]:
    """Return what can be drawn of a version, by the plot's name."""
    metrics = measured.metrics
    found: dict[str, Callable[[Path], None]] = {
        "confusion": partial(plots.confusion, metrics["test"]["confusion"]),
        "training": partial(plots.training_curves, measured.history),
    }
    if "calibration" in metrics:
        found["reliability"] = partial(plots.reliability, metrics["calibration"])
    if "robustness" in metrics:
        found["robustness"] = partial(plots.robustness, metrics["robustness"]["curves"])
    if "rejection" in metrics:
        found["rejection"] = partial(plots.rejection, verdicts(metrics["rejection"]))
    if "pbc" in metrics:
        rows = {
            f"{label}\n({size(part, _clusters(label))})": part["macro_recall"]
            for label, part in measured.recalls.items()
        }
        found["laboratories"] = partial(plots.laboratories, rows)
    if measured.sweep:
        found["trade_off"] = partial(plots.trade_off, measured.sweep["networks"])
    if measured.adaptation:
        found["adaptation"] = partial(plots.adaptation, measured.adaptation["points"])
    return found


def verdicts(rejection: Json) -> dict[str, dict[str, dict[str, float]]]:
    """Return the verdicts' shares of each kind of picture, by groups of kinds."""
    groups = {"cells of the four classes": {"TEST and PBC": rejection["verdicts_of_cells"]}}
    for part, title in (("near", "other cells"), ("far", "no blood smear")):
        groups[title] = {
            f"{kind.replace('_', ' ')} ({each['images']})": each["verdicts"]
            for kind, each in rejection[part]["kinds"].items()
        }
    return groups


def size(part: Json, clusters: str = "photographs") -> str:
    """Tell how many images, and of how many photographs (or other clusters) if those are fewer."""
    images, count = part["images"], part["photographs"]
    return f"{images:,} images" + (f" of {count} {clusters}" if count < images else "")


def _clusters(label: str) -> str:
    """Return what stays together: images of a photograph, or photographs of a field."""
    return "fields" if label.startswith("photographs, ") else "photographs"


# The card.


def card(measured: Measured) -> str:
    """Return a version's model card, as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(data.HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "figure": text,
        "percent": lambda value: f"{value:.1%}",
        "count": lambda value: f"{value:,}",
        "size": size,
        "kind": lambda value: value.replace("_", " "),
    }
    rendered = environment.get_template(TEMPLATE).render(
        this=measured,
        card=measured.card,
        metrics=measured.metrics,
        history=measured.history,
        sweep=measured.sweep,
        served=measured.served,
        adaptation=measured.adaptation,
        classes=CLASSES,
        photographs=photograph_counts(),
        images=data.IMAGES_PER_CLASS,
        shared_cells=len(data.CELLS_ALSO_IN_TRAIN),
        pbc=pbc_counts(),
        seeds=seeds(measured.history),
        folds=FOLDS,
        resamples=RESAMPLES,
        kept=KEPT,
        right=RIGHT,
        tolerance=TOLERANCE,
        bins=BINS,
    )
    # What is left out leaves its empty lines behind.
    return re.sub(r"\n{3,}", "\n\n", rendered).lstrip()


def photograph_counts() -> dict[str, Counter[str]]:
    """Count the photographs of each split by class."""
    return {
        split: Counter(sample.kind for sample in data.photographs(Path(), split))
        for split in ("TRAIN", "TEST")
    }


def pbc_counts() -> dict[str, Counter[str]]:
    """Count PBC's images that may train and those that only judge, by class, and OTHER."""
    counts: dict[str, Counter[str]] = {"train": Counter(), "test": Counter()}
    with (data.HERE / "pbc.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            counts[row["part"]][row["file"].split("/")[0]] += 1
    return counts


def seeds(history: Json) -> str | None:
    """Tell how the seed was chosen, if one was."""
    if "seeds" not in history:
        return None
    last = [rows[-1] for rows in history["seeds"].values()]
    accuracies = ", ".join(f"{row['validation_accuracy']:.1%}" for row in last)
    losses = ", ".join(f"{row['validation_loss']:.2f}" for row in last)
    return (
        f"Trained from the random seeds {', '.join(history['seeds'])}, it reached {accuracies} "
        f"(loss {losses}) on the held-out third of TRAIN's photographs. Seed "
        f"{history['chosen_seed']}, of the lowest loss, was taken to train once more, on all of "
        "TRAIN."
    )


# The README.


def write_readme(parts: Mapping[str, str], path: Path = ROOT / "README.md") -> None:
    """Put what was measured between its marks in the README, so that it can't drift from it."""
    prose = path.read_text()
    for name, content in parts.items():
        pattern = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        found = pattern.search(prose)
        if not found:
            raise ValueError(f"{path.name} should hold the marks of {name}")
        prose = f"{prose[: found.end(1)]}{content}\n{prose[found.start(2) :]}"
    path.write_text(prose)


def figures(versions: Sequence[Measured]) -> str:
    """Return the figures of versions, side by side, as the Markdown that the README shows."""
    original = versions[0].metrics["seed_project"]
    lines = [
        _row("", "the original's README", *(f"version {each.name}" for each in versions)),
        "|---|---|" + "---|" * len(versions),
        *(_row(*row) for row in table(versions, original) if any(row[1:])),
        "",
        "| TEST, by class | | precision | recall | F1 |",
        "|---|---|---|---|---|",
        *(_row(*row) for row in class_table(versions, original)),
    ]
    for each in versions:
        if chosen := seeds(each.history):
            lines += ["", f"Version {each.name}: {chosen[0].lower()}{chosen[1:]}"]
    return "\n".join(lines)


def table(versions: Sequence[Measured], original: Json) -> list[list[str]]:
    """Return rows of a label, the original's figure, and each version's."""

    def row(label: str, tell: Callable[[Measured], str], theirs: str = "") -> list[str]:
        return [label, theirs, *(tell(each) for each in versions)]

    def figure(*path: str) -> Callable[[Measured], str]:
        return lambda each: text(find(each.metrics, *path))

    def plain(*path: str) -> Callable[[Measured], str]:
        return lambda each: _number(find(each.metrics, *path))

    theirs = (
        f"{original['image_accuracy']:.1%} claimed, "
        f"{original['image_accuracy_by_its_table']:.1%} by its own table"
    )
    without = "TEST by image, without"
    cells, fields = (f"test_without_{what}_also_in_train" for what in ("cells", "fields"))
    alone = "one_laboratory_from_the_other"
    return [
        row("TEST by image", figure("test", "image_accuracy"), theirs),
        row("the same, asked through the service", _through_the_service),
        row("TEST by photograph", figure("test", "photograph_accuracy")),
        row(f"photographs of TEST{_of(versions)} that are right", _photographs_right),
        row(f"{without} cells that TRAIN shows, too", figure(cells, "image_accuracy")),
        row(f"{without} fields that overlap TRAIN's", figure(fields, "image_accuracy")),
        row("TEST by image, where the verdict is `confident`, and how often", _confident),
        row("cross-validation, macro recall", figure("cross_validation", "macro_recall")),
        row("PBC as uploaded, macro recall", figure("pbc", "as_uploaded", "macro_recall")),
        row("PBC as uploaded, learned from photographs alone", _pbc_from_photographs),
        row(
            "photographs, learned from PBC alone",
            figure(alone, "photographs from pbc", "macro_recall"),
        ),
        row("calibration error (ECE)", plain("calibration", "after", "ece")),
        row("told from other cells (AUROC)", plain("rejection", "near", "auroc")),
        row("told from no smear at all (AUROC)", plain("rejection", "far", "auroc")),
        row("weights", lambda each: f"{each.weights_bytes / 1e6:.1f} MB"),
        row("an image on one core, by turns with the next, median", _milliseconds("one_core")),
        row("an image through the service, from Python, median", _milliseconds("service")),
    ]


def class_table(versions: Sequence[Measured], original: Json) -> list[list[str]]:
    """Return rows of class, whose figures, precision, recall and F1."""
    rows = []
    for name in CLASSES:
        count = versions[0].metrics["test"]["classes"][name]["photographs"]
        theirs = (f"{value:.0%}" for value in original["classes"][name].values())
        rows.append([f"{name.lower()} ({count} photographs)", "the original's README", *theirs])
        for each in versions:
            ours = each.metrics["test"]["classes"][name]
            three = (text(ours[key]) for key in ("precision", "recall", "f1"))
            rows.append(["", f"version {each.name}", *three])
    return rows


def text(figure: Json | None) -> str:
    """Return a figure with its interval, nothing of nothing."""
    if figure is None:
        return ""
    if figure["value"] is None:
        return "never"
    low, high = figure["interval"]
    return f"{figure['value']:.1%} ({low:.1%} to {high:.1%})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _of(versions: Sequence[Measured]) -> str:
    totals = {find(each.metrics, "test_photographs", "photographs") for each in versions} - {None}
    return f"'s {totals.pop()}" if totals else ""


def _photographs_right(each: Measured) -> str:
    right = find(each.metrics, "test_photographs", "right")
    return "" if right is None else str(right)


def _confident(each: Measured) -> str:
    sure, whole = each.metrics["test_where_confident"], each.metrics["test"]
    return f"{text(sure['image_accuracy'])}, {sure['images'] / whole['images']:.0%} of all"


def _through_the_service(each: Measured) -> str:
    return f"{each.served['image_accuracy']:.1%}" if each.served else ""


def _milliseconds(where: str) -> Callable[[Measured], str]:
    return lambda each: (
        f"{each.served['milliseconds'][where]['median']:.1f} ms" if each.served else ""
    )


def _pbc_from_photographs(each: Measured) -> str:
    """Return what the photographs alone teach of PBC; versions that know no more say it above."""
    alone = find(each.metrics, "one_laboratory_from_the_other", "pbc from photographs")
    if alone:
        return text(alone["macro_recall"])
    return "as above" if not each.finds_cells and "pbc" in each.metrics else ""


if __name__ == "__main__":
    sys.exit(main())

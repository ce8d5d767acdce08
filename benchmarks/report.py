"""Tables, figures and files of all reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from serving.settings import ROOT
from testing.service import machine
from training import data

RESULTS = ROOT / "benchmarks" / "results"
# Holds the tables that `make bench` and `make page` write.
PERFORMANCE = ROOT / "docs" / "performance.md"

Document = dict[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table, without the columns that are empty in every row."""
    texts = [
        ["" if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in rows
    ]
    kept = [at for at, head in enumerate(heads) if not head or any(row[at] for row in texts)]
    lines = [heads, ["---"] * len(heads), *texts]
    return "\n".join("| " + " | ".join(line[at] for at in kept) + " |" for line in lines)


def spread(figures: Sequence[float], form: str, unit: str = "") -> str:
    """Return a median, and the least and the greatest figure."""
    return f"{np.median(figures):{form}}{unit} ({min(figures):{form}} to {max(figures):{form}})"


def rounded(value: Any) -> Any:
    return round(float(value), 1) if isinstance(value, float) else value


def about() -> Document:
    """Return when and on what machine a report is measured."""
    return {"date": datetime.now(UTC).date().isoformat(), "machine": machine()}


def measured_on(document: Document) -> str:
    """Return when and where a report was measured, as text."""
    host = document["machine"]
    return f"{document['date']}, {host['cores']} cores ({host['processor']})"


def images_root() -> Path:
    """Return the folder of the images, or end the program with a message."""
    try:
        return data.data_root()
    except data.DataError as error:
        sys.exit(f"error: {error}")


def write(folder: Path, name: str, document: Document, page: str) -> None:
    """Write a report as JSON, and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / f"{name}.md").write_text(f"{page.rstrip()}\n")

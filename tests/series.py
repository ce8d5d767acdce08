"""Read metrics in tests: from text, from an exporter, from files of prometheus_client."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from serving.supervisor.exporter import Counts

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
INPUT_ERRORS = "bloodcells_input_errors_total"
PAGE_COUNT = "bloodcells_page_request_seconds_count"


def parsed(text: str) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def collected(collector: Collector) -> Series:
    """Return what a collector exports."""
    registry = CollectorRegistry()
    registry.register(collector)
    return parsed(generate_latest(registry).decode())


def read(folder: Path) -> Series:
    """Return all counts in a folder, as the exporter adds them up."""
    return collected(Counts(folder))


def key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))

"""The structure of the code: imports run downwards only (see docs/development.md)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from scripts import audit
from serving.settings import ROOT

# From the bottom to the top: a package imports from itself and from those before it.
FOLDERS = ["handler", "serving", "frontend", "training", "testing", "scripts", "benchmarks"]
# frontend and training are on one level.
FORBIDDEN = {("training", "frontend")}
SERVING = [
    "settings",
    "files",
    "http",
    "deployment",
    "torchserve",
    "restarts",
    "errors",
    "client",
    "predict",
    "rollout",
    "edge",
    "supervisor",
    "doctor",
    "cli",
    "__main__",
]


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the absolute name of each module that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from serving import edge` imports serving.edge.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward_imports(folder: Path, order: list[str], level: int) -> list[str]:
    """Return the imports in a folder's files that lead up in an order of names.

    The name of a module in the order is its part of that level: 0 is the top-level package.
    """
    found = []
    for path in folder.rglob("*.py"):
        importer = path.relative_to(ROOT).with_suffix("").parts[level]
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[:level] != list(folder.relative_to(ROOT).parts[:level]):
                continue
            name = parts[level] if len(parts) > level else ""
            above = name in order and order.index(name) > order.index(importer)
            if above or (importer, name) in FORBIDDEN:
                found.append(f"{path.relative_to(ROOT)} imports {module}")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_top_level_folders_import_downwards(folder: str) -> None:
    assert upward_imports(ROOT / folder, FOLDERS, level=0) == []


def test_serving_imports_downwards() -> None:
    assert upward_imports(ROOT / "serving", [*SERVING, "__init__"], level=1) == []


def test_each_module_of_serving_has_its_place() -> None:
    modules = {path.stem for path in (ROOT / "serving").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "serving").glob("*/__init__.py")}
    assert modules | packages <= set(SERVING)


@pytest.mark.parametrize("folder", ["handler", "serving", "frontend"])
def test_the_service_imports_only_its_requirements(folder: str) -> None:
    """Not what training installs beside them, such as torch."""
    served = audit.packages().keys()
    installed = {
        module
        for module, packages in packages_distributions().items()
        if served & set(map(canonicalize_name, packages))
    }
    for path in (ROOT / folder).rglob("*.py"):
        needed = {module.split(".")[0] for module in imported_modules(path)}
        assert needed <= installed | sys.stdlib_module_names | set(FOLDERS), path


def test_handler_imports_nothing_of_the_project() -> None:
    outside = set(FOLDERS) - {"handler"}
    for path in (ROOT / "handler").glob("*.py"):
        assert outside.isdisjoint(module.split(".")[0] for module in imported_modules(path))

"""experiments/ and benchmarks/ are users like any other: they import what is public."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = (
    "stockpot",
    "stockpot.analysis",
    "stockpot.evaluate",
    "stockpot.formats",
    "stockpot.integrations",
    "stockpot.recipes",
    "stockpot.tasks",
    "stockpot.tasks.clip",
    "stockpot.tasks.handwriting",
    "stockpot.testing",
    "stockpot.train",
    "stockpot.workers",
)
# What is measured is itself private, or is the command's own function.
EXCEPTIONS = {
    # It measures the passes of several commands by themselves.
    "benchmarks/grams.py": ("stockpot.analysis.geometry",),
    "benchmarks/learned.py": (
        "stockpot.mixing.coefficients",
        "stockpot.mixing.device_blocks",
        "stockpot.recipes.learned.objective",
        "stockpot.recipes.learned.optimisers",
    ),
    "experiments/adapters.py": ("stockpot.mixing",),
    "experiments/diagnostics.py": ("stockpot.report",),
    # Rules are named in text, as commands and records name them.
    "experiments/every_recipe.py": ("stockpot.mixing.rules.table",),
    "experiments/fuzz_folders.py": ("stockpot.cli",),
    # It aims at the readers themselves.
    "experiments/fuzz_records.py": (
        "stockpot.cli.output",
        "stockpot.evaluate.journal",
        "stockpot.recipes.reading",
        "stockpot.recipes.record",
        "stockpot.report",
        "stockpot.report.from_results",
        "stockpot.report.model",
        "stockpot.report.page",
        "stockpot.tasks.transformers",
        "stockpot.train.sweep.named",
        "stockpot.train.sweep.records",
    ),
    "experiments/base_size.py": ("stockpot.demo",),
    "experiments/handwriting.py": ("stockpot.demo",),
    "experiments/kills.py": ("stockpot.cli",),
    "experiments/learned.py": ("stockpot.mixing.coefficients",),
}
PROGRAMS = sorted(
    path.relative_to(ROOT)
    for folder in ("experiments", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
)


def _imported(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import of the package; the name is None for a whole module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "stockpot":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                (alias.name, None)
                for alias in node.names
                if alias.name.partition(".")[0] == "stockpot"
            )


def _is_public(module: str, name: str | None) -> bool:
    if name is not None and f"{module}.{name}" in PUBLIC:
        return True
    if module not in PUBLIC:
        return False
    return name is None or name in importlib.import_module(module).__all__


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_programs_import_what_is_public(program: Path) -> None:
    allowed = EXCEPTIONS.get(str(program), ())
    private = [
        f"{module}.{name or ''}"
        for module, name in _imported(ast.parse((ROOT / program).read_text()))
        if module not in allowed and not _is_public(module, name)
    ]
    assert not private


def test_an_exception_is_still_needed() -> None:
    for program, modules in EXCEPTIONS.items():
        used = {module for module, _ in _imported(ast.parse((ROOT / program).read_text()))}
        assert set(modules) <= used, program

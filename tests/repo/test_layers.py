"""Imports only point down, and folders on one layer leave each other alone (docs/design)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"

# From the bottom up: a line, not a lattice. A package imports from those before it.
LAYERS = (
    {"errors", "_optional", "_types", "_lazy", "_options", "_records", "_figures", "_markdown"}
    | {"_tracebacks"},
    {"io"},
    {"workers"},
    {"tensors"},
    {"formats"},
    {"mixing"},
    {"evaluate"},
    {"analysis"},
    {"recipes"},
    {"diagnosis"},
    {"train"},
    {"integrations"},
    {"tasks"},
    {"report"},
    {"demo"},
    {"cli", "__main__"},
)
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
TOP = len(LAYERS) - 1
# Layer 0 is small files rather than folders.
SIDEWAYS = {(a, b) for a in LAYERS[0] for b in LAYERS[0]} | {("__main__", "cli")}
# Still to be mended; nothing may be added.
KNOWN: set[str] = set()
# The conformance suite is handed readers and recipes and stands outside the layers: it may import
# anything, and nothing imports it.
OUTSIDE = {"testing"}
# Start-up of these must not wait for torch, which takes longer to import than they take to run.
NO_TORCH = ("formats", "tensors", "mixing", "cli", "report", "errors", "io", "_types")


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands, what it names, and when it runs."""

    file: str
    line: int
    source: str  # first part below stockpot, such as "mixing"
    target: str  # full dotted name
    typing_only: bool
    deferred: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"

    @property
    def part(self) -> str | None:
        """First part below stockpot of what is imported; None when it is another package."""
        parts = self.target.split(".")
        return (parts[1] if len(parts) > 1 else "") if parts[0] == "stockpot" else None


def _is_typing_guard(node: ast.If) -> bool:
    return "TYPE_CHECKING" in ast.unparse(node.test)


def _targets(node: ast.Import | ast.ImportFrom, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module is not None else [])])
    if module == "stockpot":  # `from stockpot import errors` names a module
        return [f"stockpot.{alias.name}" for alias in node.names]
    return [module]


def imports_of(text: str, dotted: str, file: str) -> Iterator[Import]:
    """Every import in `text`, the source of the module `dotted`."""
    package = dotted.split(".") if file.endswith("__init__.py") else dotted.split(".")[:-1]
    parts = dotted.split(".")
    source = parts[1] if len(parts) > 1 else ""

    def walk(node: ast.AST, typing_only: bool, deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for target in _targets(child, package):
                    yield Import(file, child.lineno, source, target, typing_only, deferred)
            elif isinstance(child, ast.If) and _is_typing_guard(child):
                for inner in child.body:
                    yield from walk(ast.Module([inner], []), True, deferred)
                for inner in child.orelse:
                    yield from walk(ast.Module([inner], []), typing_only, deferred)
            else:
                is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, typing_only, deferred or is_function)

    yield from walk(ast.parse(text), False, False)


def _all_imports() -> list[Import]:
    found = []
    for file in sorted((SRC / "stockpot").rglob("*.py")):
        relative = file.relative_to(SRC)
        dotted = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        found += imports_of(file.read_text(), dotted, str(relative))
    return found


def violation(item: Import) -> str | None:
    """Why this import is not allowed, or None."""
    if item.source in OUTSIDE or item.source == "" or item.part is None:
        return None
    if item.part == "__version__" or (item.part == "" and LAYER_OF[item.source] >= TOP - 1):
        return None
    if item.part == "":
        return f"{item}: import the module, not the root"
    if item.part not in LAYER_OF:
        return f"{item}: {item.part!r} is on no layer"
    here, there = LAYER_OF[item.source], LAYER_OF[item.part]
    if there > here:
        return f"{item}: from layer {here} up to layer {there}"
    if there == here and item.part != item.source:
        if (item.source, item.part) in SIDEWAYS:
            return None
        return f"{item}: {item.source} and {item.part} are on the same layer {here}"
    return None


def test_every_module_is_on_a_layer() -> None:
    parts = {p.stem for p in (SRC / "stockpot").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert parts - {"__pycache__", "__init__", "py.typed", "py"} - OUTSIDE <= set(LAYER_OF)


def test_imports_only_point_down() -> None:
    problems = [
        text
        for item in _all_imports()
        if item.file not in KNOWN and (text := violation(item)) is not None
    ]
    assert not problems, "\n".join(problems)


def test_what_is_still_to_be_mended_is_still_wrong() -> None:
    wrong = {item.file for item in _all_imports() if violation(item) is not None}
    assert wrong >= KNOWN, f"mended: take off the list: {sorted(KNOWN - wrong)}"


def test_the_lowest_layer_needs_only_the_standard_library() -> None:
    import sys

    outsiders = [
        str(item)
        for item in _all_imports()
        if item.source in LAYERS[0]
        and item.part is None
        and not item.typing_only
        and item.target.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert not outsiders


@pytest.mark.parametrize("package", ["torch", "torchmetrics", "matplotlib", "sklearn", "scipy"])
def test_heavy_packages_are_imported_where_they_are_used(package: str) -> None:
    """A module named `_torch` is the one place of a folder that needs torch, and counts as it."""
    eager = [
        str(item)
        for item in _all_imports()
        if item.source in (*NO_TORCH, "")
        and not item.file.endswith("_torch.py")
        and (item.target.partition(".")[0] == package or item.target.endswith(f"._{package}"))
        and not (item.deferred or item.typing_only)
    ]
    assert not eager


@pytest.mark.parametrize(
    ("module", "line", "forbidden"),
    [
        ("mixing.engine", "from stockpot.recipes.base import Recipe", True),
        ("mixing.engine", "from stockpot.evaluate import evaluator", True),
        ("mixing.engine", "import stockpot.formats.base", False),
        ("mixing.engine", "from stockpot import errors, cli", True),
        ("mixing.engine", "def f():\n    from stockpot.cli import app", True),
        ("mixing.engine", "from ..evaluate import evaluator", True),
        ("mixing.engine", "from .buffers import BufferPolicy", False),
        (
            "mixing.engine",
            "if TYPE_CHECKING:\n    from stockpot.evaluate import evaluator",
            True,
        ),
        ("mixing.engine", "if TYPE_CHECKING:\n    from stockpot.recipes.base import Recipe", True),
        ("mixing.engine", "from stockpot import __version__", False),
        ("cli.demo", "from stockpot.demo import run", False),
        ("cli.demo", "import stockpot", False),
        ("mixing.engine", "import stockpot", True),
        ("evaluate.task", "from stockpot.testing import check", True),
    ],
)
def test_the_reader_of_imports_sees_what_it_must(module: str, line: str, forbidden: bool) -> None:
    dotted = f"stockpot.{module}"
    found = list(imports_of(line, dotted, f"{module}.py"))
    assert any(violation(item) is not None for item in found) is forbidden

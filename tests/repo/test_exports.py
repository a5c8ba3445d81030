"""What each public module lists is what it has."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stockpot

SRC = Path(__file__).parents[2] / "src"


def _modules() -> list[str]:
    names = []
    for file in sorted((SRC / "stockpot").rglob("*.py")):
        parts = file.relative_to(SRC).with_suffix("").parts
        if not any(part.startswith("_") and part != "__init__" for part in parts):
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


def _file(name: str) -> Path:
    path = SRC.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_type_variable(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("TypeVar", "ParamSpec"))


def _own_names(tree: ast.Module, *, is_package: bool) -> set[str]:
    """Public names that the module itself makes; for a package also those that it brings up."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and not _is_type_variable(node.value):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif (
            isinstance(node, ast.ImportFrom)
            and is_package
            and (node.module or "").partition(".")[0] == "stockpot"
        ):
            names |= {alias.asname or alias.name for alias in node.names}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", [n for n in _modules() if n != "stockpot"])
def test_the_list_of_exports_is_complete(name: str) -> None:
    file = _file(name)
    own = _own_names(ast.parse(file.read_text()), is_package=file.name == "__init__.py")
    listed = getattr(importlib.import_module(name), "__all__", None)
    assert listed is not None or not own, f"{name} has no __all__ but defines {sorted(own)}"
    assert own <= set(listed or ()), f"not in __all__: {sorted(own - set(listed or ()))}"


@pytest.mark.parametrize("name", _modules())
def test_every_listed_export_exists(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert len(listed) == len(set(listed))
    for export in listed:
        assert getattr(module, export) is not None


def test_the_namespace_lists_exactly_what_it_can_import() -> None:
    assert set(stockpot.__all__) == set(stockpot._HOMES)
    assert set(stockpot.__all__) <= set(dir(stockpot))


def test_type_checkers_and_people_see_the_same_namespace() -> None:
    """The names under TYPE_CHECKING, which no run executes, are those that are looked up lazily."""
    tree = ast.parse(_file("stockpot").read_text())
    guard = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: node.module
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == stockpot._HOMES


def test_every_error_is_in_the_namespace() -> None:
    from stockpot import errors

    assert set(errors.__all__) <= set(stockpot.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'soupp'"):
        stockpot.soupp  # noqa: B018


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, stockpot; stockpot.MismatchError; assert 'torch' not in sys.modules, 'torch'"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)

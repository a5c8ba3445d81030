"""The figures of the code stay within what was agreed (scripts/code_figures.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "code_figures.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("code_figures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def figures(script: Any) -> Any:
    return script.measure()


def test_no_modules_import_each_other_in_a_circle(figures: Any) -> None:
    assert figures.circles == []


def test_functions_are_narrow(figures: Any) -> None:
    assert len(figures.wide) <= 15, figures.wide
    assert max((n for n, _ in figures.wide), default=0) <= 12


def test_functions_are_short(figures: Any) -> None:
    assert figures.median_function <= 8
    assert figures.p95_function <= 35


def test_everything_public_has_a_docstring(figures: Any) -> None:
    assert figures.undocumented == []


def test_the_public_namespaces_are_small_enough_to_keep(figures: Any) -> None:
    assert figures.public_names <= 130


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ({"a": {"b"}, "b": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, [["a", "b"]]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, [["a", "b", "c"]]),
        ({"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"c"}}, [["a", "b"], ["c", "d"]]),
    ],
)
def test_circles_are_found(
    script: Any, imports: dict[str, set[str]], expected: list[list[str]]
) -> None:
    assert script.circles(imports) == expected

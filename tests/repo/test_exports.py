"""The public namespaces hold what they list, and no more than can be kept stable."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stockpot

SRC = Path(__file__).parents[2] / "src"
PUBLIC = (
    "stockpot",
    "stockpot.formats",
    "stockpot.evaluate",
    "stockpot.analysis",
    "stockpot.recipes",
    "stockpot.train",
    "stockpot.tasks",
    "stockpot.integrations",
    "stockpot.testing",
)
LAZY = (*PUBLIC, "stockpot.mixing", "stockpot.tensors", "stockpot.workers")


@pytest.mark.parametrize("name", LAZY)
def test_every_listed_export_exists(name: str) -> None:
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    assert set(module.__all__) <= set(dir(module))
    for export in module.__all__:
        assert getattr(module, export) is not None


@pytest.mark.parametrize("name", LAZY)
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    module = importlib.import_module(name)
    with pytest.raises(AttributeError, match="no attribute 'soupp'"):
        module.soupp  # noqa: B018


@pytest.mark.parametrize("name", LAZY)
def test_no_export_is_called_like_a_module_beside_it(name: str) -> None:
    """Importing that module would put it in the place of the export."""
    module = importlib.import_module(name)
    folder = Path(module.__file__ or "").parent
    modules = {path.stem for path in folder.iterdir() if path.suffix in (".py", "")}
    assert not modules & set(module.__all__)


def test_every_error_is_in_the_namespace() -> None:
    from stockpot import errors

    own = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == "stockpot.errors"
    }
    assert {name for name in own if not name.startswith("_")} <= set(stockpot.__all__)


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, stockpot; stockpot.MismatchError; assert 'torch' not in sys.modules, 'torch'"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)

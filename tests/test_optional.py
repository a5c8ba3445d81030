"""Packages that only some features need."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from stockpot._optional import EXTRA_OF, require
from stockpot.cli import main
from stockpot.errors import OptionalDependencyError


def test_a_missing_package_names_the_line_that_installs_it() -> None:
    with pytest.raises(OptionalDependencyError, match=r"pip install 'stockpot\[vision\]'") as found:
        require("no_such_package.inner", extra="vision")
    assert (found.value.package, found.value.extra) == ("no_such_package", "vision")


def test_a_defect_inside_an_installed_package_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed_but_broken.py").write_text("import what_it_needs_and_lacks")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs") as found:
        require("installed_but_broken", extra="hf")
    assert not isinstance(found.value, OptionalDependencyError)


def test_every_extra_that_an_error_names_exists_and_brings_the_package() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    spelled = {
        "sklearn": "scikit-learn",
        "huggingface_hub": "huggingface-hub",
        "lm_eval": "lm-eval",
    }
    for package, extra in EXTRA_OF.items():
        names = [re.split(r"[><=\[ ]", line)[0] for line in extras[extra]]
        assert spelled.get(package, package) in names, (package, extra)


def test_no_extra_is_promised_that_no_code_uses() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = set(tomllib.loads(text)["project"]["optional-dependencies"])
    assert extras == {*EXTRA_OF.values(), "all", "test", "docs", "dev"}


def test_a_command_says_which_extra_it_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo", "--quick", "-o", str(tmp_path / "demo")]) == 1
    shown = capsys.readouterr().err
    assert "pip install 'stockpot[demo]'" in shown
    assert "Traceback" not in shown

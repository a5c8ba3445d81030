"""Packages that only some features need."""

from __future__ import annotations

from pathlib import Path

import pytest

from stockpot._optional import require
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

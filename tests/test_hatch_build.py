"""Compiling at installation: done where there is a compiler, done without where there is none."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_source_compiles_to_a_library_with_the_function(
    hook: ModuleType, tmp_path: Path
) -> None:
    library = tmp_path / "sums.so"
    assert hook.compile_sums(ROOT / hook.SOURCE, library)
    assert ctypes.CDLL(str(library)).stockpot_mix
    assert [path.name for path in tmp_path.iterdir()] == ["sums.so"]


def test_without_a_compiler_an_older_library_goes(
    hook: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = tmp_path / "sums.so"
    library.write_bytes(b"of an older source")
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    assert not hook.compile_sums(ROOT / hook.SOURCE, library)
    assert list(tmp_path.iterdir()) == []
    assert "NumPy makes them" in capsys.readouterr().err


def test_a_source_with_an_error_leaves_nothing(
    hook: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("int stockpot_mix(;")
    assert not hook.compile_sums(source, tmp_path / "sums.so")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.c"]


def test_the_environment_decides_what_a_wheel_holds(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> dict[str, Any]:
        data: dict[str, Any] = {"artifacts": []}
        made = object.__new__(hook.Compile)
        monkeypatch.setattr(hook.Compile, "target_name", "wheel")
        monkeypatch.setattr(hook.Compile, "root", str(tmp_path))
        made.initialize("standard", data)
        return data

    (tmp_path / hook.SOURCE).parent.mkdir(parents=True)
    (tmp_path / hook.SOURCE).write_text((ROOT / hook.SOURCE).read_text())
    monkeypatch.setenv("STOCKPOT_SUMS", "none")
    assert build() == {"artifacts": []}
    monkeypatch.setenv("STOCKPOT_SUMS", "required")
    assert build()["tag"].startswith("py3-none-linux")
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    with pytest.raises(RuntimeError, match="cannot be compiled"):
        build()
    monkeypatch.setenv("STOCKPOT_SUMS", "auto")
    assert build() == {"artifacts": []}
    monkeypatch.setenv("STOCKPOT_SUMS", "yes")
    with pytest.raises(ValueError, match="expected auto, required or none"):
        build()

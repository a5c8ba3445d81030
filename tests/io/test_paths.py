"""Where our own files are kept, and the order of names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stockpot.io.paths import cache_dir, natural_key, short_name, short_names


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", "/a")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("STOCKPOT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_dir() == Path("/b/stockpot")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/u")
    assert cache_dir() == Path("/home/u/.cache/stockpot")


def test_without_a_home_the_cache_is_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOCKPOT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert cache_dir().is_absolute()
    assert str(os.getuid()) in cache_dir().name


@pytest.mark.parametrize(
    "names",
    [
        ["a2", "a10", "a10b"],
        ["layer.2.w", "layer.10.w"],
        ["lr0.001_seed1", "lr0.001_seed2", "lr0.01_seed1"],
        ["run-02", "run-2", "run-3"],
        ["x", "x\u00b2", "x\u00b3"],
        ["n" + "1" * 5000, "n" + "2" * 5000, "n1" + "0" * 5000],
    ],
)
def test_numbers_in_names_are_sorted_by_size(names: list[str]) -> None:
    shuffled = [*names[1:], names[0]]
    assert sorted(shuffled, key=natural_key) == names


def test_short_names_have_as_many_folders_as_tell_them_apart() -> None:
    paths = ["/x/one/run/model.pt", "/x/two/run/model.pt", "/x/three", "hf:org/name", "/"]
    assert list(short_names(paths).values()) == ["one/run/model", "two/run/model", "three", "name",
                                                 "/"]  # fmt: skip
    assert short_names(["a.pt", "a.safetensors"]) == {p: p for p in ("a.pt", "a.safetensors")}
    assert short_names(["a.pt", "a.pt"]) == {"a.pt": "a"}
    assert [short_name(text) for text in ("", ".pt", "v1.5", "a.bin/")] == ["", ".pt", "v1.5", "a"]

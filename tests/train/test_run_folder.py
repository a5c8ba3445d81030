from __future__ import annotations

from pathlib import Path

import pytest

from stockpot.errors import OutputExistsError
from stockpot.train.run_folder import RunFolder


def folder(path: Path, **options) -> RunFolder:
    return RunFolder(path=path, marker="work.json", kind="a soup", owned=("part-*",), **options)


def test_the_same_work_continues_and_another_is_refused(tmp_path: Path) -> None:
    folder(tmp_path).claim({"seed": 1})
    (tmp_path / "part-0").touch()
    folder(tmp_path).claim({"seed": 1})
    with pytest.raises(OutputExistsError, match=r"a soup with other settings:\n  seed: 1, now 2"):
        folder(tmp_path).claim({"seed": 2})
    folder(tmp_path).claim({"seed": 2}, force=True)
    assert not (tmp_path / "part-0").exists()


def test_work_that_has_made_nothing_yet_gives_way(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    folder(tmp_path).claim({"seed": 1})
    folder(tmp_path).claim({"seed": 2})
    assert folder(tmp_path).read("work.json") == {"seed": 2}
    assert (tmp_path / "notes.txt").exists()


def test_what_is_worth_keeping_may_be_less_than_what_is_written(tmp_path: Path) -> None:
    place = folder(tmp_path, made=("*.weights",))
    place.claim({"seed": 1})
    (tmp_path / "part-0").touch()
    place.claim({"seed": 2})
    assert not (tmp_path / "part-0").exists()
    (tmp_path / "0.weights").touch()
    with pytest.raises(OutputExistsError):
        place.claim({"seed": 3})


@pytest.mark.parametrize(
    ("options", "ways"),
    [
        ({}, r"Continue it with the same ones, or choose another folder\.$"),
        ({"other": "--work"}, r"the same ones, or choose another folder \(--work\)\.$"),
        (
            {"force": "--force", "other": "--work"},
            r"the same ones, choose another folder \(--work\), or start over with --force\.$",
        ),
    ],
)
def test_a_refusal_lists_the_ways_out(tmp_path: Path, options: dict, ways: str) -> None:
    place = folder(tmp_path, **options)
    place.claim({"seed": 1})
    (tmp_path / "part-0").touch()
    with pytest.raises(OutputExistsError, match=ways):
        place.claim({"seed": 2})

"""Records are input like any other: bounded, typed, and refused with the place that is wrong."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockpot._records import MAX_BYTES, MAX_DEPTH, loads, parse, read_json, recorded_path
from stockpot.errors import ReportError, StockpotError


@dataclass(frozen=True)
class Score:
    value: float
    n: int | None = None


@dataclass(frozen=True)
class Positive:
    number: int
    inner: Positive | None = None

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"number is {self.number}")


@dataclass(frozen=True)
class Cat:
    kind: ClassVar[str] = "cat"
    lives: int = 9


@dataclass(frozen=True)
class Dog:
    kind: ClassVar[str] = "dog"
    name: str


@dataclass(frozen=True)
class Record:
    title: str
    role: Literal["base", "run"] = "run"
    scores: Mapping[str, Score | None] = field(default_factory=dict)
    pair: tuple[float, str] = (0.0, "")
    flags: tuple[bool, ...] = ()
    pet: Cat | Dog | None = None
    rest: Any = None
    cell: str | int | Score | None = None


def test_a_record_becomes_its_dataclasses() -> None:
    text = """{"title": "t", "role": "base", "scores": {"test": {"value": 1, "n": 3}, "x": null},
        "pair": [1, "a"], "flags": [true], "pet": {"kind": "dog", "name": "Rex"},
        "rest": {"any": [1]}, "cell": {"value": 0.5}, "unknown": 1}"""
    assert parse(Record, loads(text)) == Record(
        "t",
        "base",
        {"test": Score(1.0, 3), "x": None},
        (1.0, "a"),
        (True,),
        Dog("Rex"),
        {"any": [1]},
        Score(0.5),
    )


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "the record: expected an object"),
        ({}, "the record lacks 'title'"),
        ({"title": 3}, "title: expected text, found 3"),
        ({"title": None}, "title: expected text, found None"),
        ({"title": "t", "role": "king"}, "role: expected one of base, run"),
        ({"title": "t", "role": []}, "role: expected one of base, run"),
        (
            {"title": "t", "scores": {"test": {"value": "1"}}},
            r"scores\.test\.value: expected a num",
        ),
        ({"title": "t", "scores": {"test": {"value": True}}}, r"scores\.test\.value"),
        ({"title": "t", "scores": {"test": {}}}, r"scores\.test lacks 'value'"),
        ({"title": "t", "scores": []}, "scores: expected an object"),
        ({"title": "t", "pair": [1]}, "pair: expected a list"),
        ({"title": "t", "flags": [True, 1]}, r"flags\[1\]: expected true or false"),
        ({"title": "t", "pet": {"kind": "cow"}}, "pet"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(ReportError, match=place):
        parse(Record, value, error=ReportError)


def test_what_a_class_refuses_is_said_in_its_words_and_with_the_place_inside() -> None:
    with pytest.raises(ReportError, match=r"^number is 0$"):
        parse(Positive, {"number": 0}, error=ReportError)
    with pytest.raises(ReportError, match=r"^inner: number is 0$"):
        parse(Positive, {"number": 1, "inner": {"number": 0}}, error=ReportError)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "levels deep"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "levels deep"),
        ("[NaN]", "NaN is no finite number"),
        ("[-Infinity]", "no finite number"),
        ("[1e999]", "no finite number"),
        ("1" * 5000, "an integer of 5000 digits"),
        ('"\\ud800"', "is no text"),
        ('{"\\ud800": 1}', "is no text"),
        ("{", "Expecting"),
        (b"\xff", "utf-8"),
    ],
)
def test_json_beyond_the_bounds_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        loads(text)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_files_that_are_too_long_or_no_files_are_refused_at_once(tmp_path: Path) -> None:
    long, pipe = tmp_path / "long.json", tmp_path / "pipe.json"
    with long.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    os.mkfifo(pipe)
    for path, why in (
        (long, "longer than 64 MiB"),
        (pipe, "no regular file"),
        (tmp_path, "no regular file"),
    ):
        with pytest.raises(ReportError, match=why):
            read_json(path, error=ReportError)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*Record.__dataclass_fields__, "kind", "value", "name", "x"]), inner
        )
    ),
)


@given(json_values)
def test_any_json_is_a_record_or_an_error_of_stockpot(value: Any) -> None:
    with contextlib.suppress(StockpotError):
        assert isinstance(parse(Record, value), Record)


def test_a_recorded_path_leads_through_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "a").touch()
    monkeypatch.chdir(tmp_path / "out")
    assert recorded_path("../a") == str(tmp_path / "a")
    assert recorded_path("../gone") == str(tmp_path / "gone")
    assert recorded_path("b") == str(tmp_path / "out" / "b")


def test_a_recorded_path_keeps_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "far" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "inner")
    monkeypatch.chdir(tmp_path)
    assert recorded_path("link") == str(tmp_path / "link")
    assert recorded_path("link/../a") == str(tmp_path / "link" / ".." / "a"), "not the a beside it"

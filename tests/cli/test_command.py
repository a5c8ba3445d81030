"""Options of dataclass groups become those of a command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from stockpot._options import option
from stockpot.cli._command import LazyGroup, command


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is no list of numbers; write for example 1,2,3") from None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    checkpoints: tuple[str, ...] = option(help="Files.", metavar="CKPT", positional=True)
    weights: tuple[float, ...] | None = option(None, help="One each.", parse=_numbers)


@dataclass(frozen=True, kw_only=True)
class Choice:
    order: Literal["score", "random"] = option("score", help="In which to try them.")
    early: bool = option(True, help="Stop early.")
    force: bool = option(False, help="Overwrite.")
    workers: int = option(1, help="Processes.", minimum=1)
    output: str | None = option(None, help="Where to.", flags=("-o", "--output"), metavar="OUT")
    pattern: tuple[str, ...] = option((), help="Of names; may be given again.")


def run(*words: str) -> tuple[int, str, list[Any]]:
    seen: list[Any] = []

    def function(inputs: Inputs, choice: Choice) -> None:
        """Do it.

        \b
        stockpot do a b
        """
        seen.extend([inputs, choice])

    made = command("do", function, {"inputs": Inputs, "choice": Choice})
    result = CliRunner().invoke(made, list(words))
    return result.exit_code, result.output, seen


def test_groups_are_filled_from_what_was_typed() -> None:
    code, _, (inputs, choice) = run(
        "a", "b", "--weights", "1,2", "--order", "random", "--no-early", "-o", "x",
        "--pattern", "p", "--pattern", "q", "--workers", "3", "--force",
    )  # fmt: skip
    assert code == 0
    assert inputs == Inputs(checkpoints=("a", "b"), weights=(1.0, 2.0))
    assert choice == Choice(
        order="random", early=False, force=True, workers=3, output="x", pattern=("p", "q")
    )


def test_what_was_not_typed_has_the_defaults_of_the_dataclass() -> None:
    code, _, (inputs, choice) = run("a")
    assert code == 0
    assert (inputs, choice) == (Inputs(checkpoints=("a",)), Choice())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--weights", "1,x"], "no list of numbers"),
        (["a", "--order", "best"], "'best' is not one of"),
        (["a", "--workers", "0"], "0 is not in the range"),
        (["a", "--typo"], "No such option"),
    ],
)
def test_wrong_usage_is_named(words: list[str], message: str) -> None:
    code, output, seen = run(*words)
    assert code == 2
    assert message in output
    assert seen == []


def test_help_names_every_option_with_its_default() -> None:
    _, output, _ = run("--help")
    for text in ("-o, --output OUT", "--early / --no-early", "[default: score]", "stockpot do a b"):
        assert text in output


@dataclass(frozen=True, kw_only=True)
class Same:
    order: Literal["score", "random"] = option("score", help="Again.")
    early: bool = option(False, flags=("--soon",), help="Another with a field of this name.")


@dataclass(frozen=True, kw_only=True)
class Other:
    order: Literal["score", "random"] = option("random", help="Of another default.")


@dataclass(frozen=True, kw_only=True)
class Lists:
    counts: tuple[int, ...] = option((1,), help="Whole numbers.")
    grid: tuple[float, ...] | None = option(None, help="Numbers.")
    pairs: tuple[tuple[str, ...], ...] = option(
        (), help="Pairs.", parse=lambda text: tuple(text.split("=")), many=tuple
    )
    named: Mapping[str, str] = option(
        dict, help="Named.", parse=lambda text: tuple(text.split("=")), many=dict
    )


def filled(groups: dict[str, type], *words: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    made = command("do", lambda **given: seen.update(given), groups, help="Do it.")
    result = CliRunner().invoke(made, list(words))
    assert result.exit_code == 0, result.output
    return seen


def test_two_options_of_one_flag_are_a_defect() -> None:
    with pytest.raises(ValueError, match="two options are called --order"):
        command("do", lambda a, b: None, {"a": Choice, "b": Other})


def test_an_option_that_two_groups_declare_alike_is_one_and_both_get_its_value() -> None:
    found = filled({"a": Choice, "b": Same}, "--order", "random", "--soon", "--no-early")
    assert (found["a"].order, found["b"].order) == ("random", "random")
    assert (found["a"].early, found["b"].early) == (False, True), "flags tell these apart"


def test_lists_of_numbers_and_options_that_may_be_given_again() -> None:
    words = ["--counts", "1,4", "--grid", "0:1:0.5", "--pairs", "a=b", "--named", "c=d"]
    found = filled({"a": Lists}, *words)["a"]
    assert found == Lists(
        counts=(1, 4), grid=(0.0, 0.5, 1.0), pairs=(("a", "b"),), named={"c": "d"}
    )
    assert filled({"a": Lists})["a"] == Lists()


@dataclass(frozen=True, kw_only=True)
class Related:
    task: str | None = option(None, help="One.")
    program: str | None = option(None, flags=("--eval",), excludes="task", help="Or the other.")
    timeout: float | None = option(None, needs="program", help="Of the other.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eval", "x", "--task", "y"], "--eval and --task exclude each other: give one of them"),
        (["--timeout", "3", "--task", "y"], "--timeout means nothing without --eval"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(words: list[str], message: str) -> None:
    made = command("do", lambda a: None, {"a": Related}, help="Do it.")
    result = CliRunner().invoke(made, words)
    assert result.exit_code == 2
    assert message in result.output
    filled({"a": Related}, "--eval", "x", "--timeout", "3")


def test_help_has_a_section_for_each_group() -> None:
    made = command("do", lambda **given: None, {"a": Inputs, "b": Choice}, help="Do it.")
    lines = CliRunner().invoke(made, ["--help"]).output.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", "Inputs:", "Choice:"]


def test_a_group_lists_commands_without_making_them() -> None:
    def never() -> click.Command:
        raise AssertionError("made")

    group = LazyGroup("stockpot", lazy={"do": ("Do it.", never)})
    result = CliRunner().invoke(group, ["--help"])
    assert result.exit_code == 0
    assert "Do it." in result.output

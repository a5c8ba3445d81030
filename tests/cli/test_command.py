"""Options of dataclass groups become those of a command."""

from __future__ import annotations

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


def test_two_options_of_one_name_are_a_defect() -> None:
    with pytest.raises(ValueError, match="two options are called order"):
        command("do", lambda a, b: None, {"a": Choice, "b": Choice})


def test_a_group_lists_commands_without_making_them() -> None:
    def never() -> click.Command:
        raise AssertionError("made")

    group = LazyGroup("stockpot", lazy={"do": ("Do it.", never)})
    result = CliRunner().invoke(group, ["--help"])
    assert result.exit_code == 0
    assert "Do it." in result.output

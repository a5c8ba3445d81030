from __future__ import annotations

import inspect

from stockpot.cli.auto import auto
from stockpot.cli.greedy import greedy
from stockpot.cli.learned import learned
from stockpot.cli.trajectory import trajectory


def test_a_command_has_the_common_options_and_its_own_and_none_twice() -> None:
    names = list(inspect.signature(greedy).parameters)
    assert names[:2] == ["checkpoints", "output"]
    assert {"task", "command", "order", "accept", "seed", "json"} <= set(names)
    assert len(names) == len(set(names))
    assert "prefer" in inspect.signature(auto).parameters


def test_a_recipe_that_a_program_cannot_serve_requires_a_task() -> None:
    parameters = inspect.signature(trajectory).parameters
    assert parameters["task"].default is inspect.Parameter.empty
    assert "command" not in parameters


def test_only_a_recipe_that_fits_takes_a_second_program_to_decide() -> None:
    assert {"command", "eval_deciding"} <= set(inspect.signature(learned).parameters)
    assert "eval_deciding" not in inspect.signature(greedy).parameters


def test_options_that_make_no_sense_are_left_out() -> None:
    assert "base" not in inspect.signature(trajectory).parameters


def test_name_help_and_module_are_those_of_the_function_it_was_made_of() -> None:
    assert greedy.__name__ == "greedy"
    assert greedy.__module__ == "stockpot.cli.greedy"
    assert (greedy.__doc__ or "").startswith("Greedy soup")

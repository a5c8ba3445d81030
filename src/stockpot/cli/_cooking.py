"""Commands that cook a soup: what they share is written once, here.

Such a command differs from the others in the options of its recipe and in what it shows. It is
written as a function from those options to the recipe; `cooks` makes the whole command of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from stockpot.cli import _options as options
from stockpot.cli._mixing import check_output, save, saving
from stockpot.cli._render import emit
from stockpot.cli._scoring import evaluating, program

if TYPE_CHECKING:
    from stockpot.recipes.base import Recipe


Make: TypeAlias = "Callable[..., Recipe]"
Show: TypeAlias = Callable[[dict[str, Any]], str]
Also: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]

_PROGRAM = ("command", "eval_test", "direction", "eval_timeout", "eval_deciding")


def _first(
    checkpoints: options.Checkpoints,
    output: options.Output,
    task: options.TaskOrEval = None,
    command: options.Eval = None,
    eval_test: options.EvalTest = None,
    direction: options.Direction = "max",
    eval_timeout: options.EvalTimeout = None,
    eval_deciding: options.EvalDeciding = None,
) -> None:
    """The options that stand before a recipe's own."""


def _last(
    choose_on: options.ChooseOn = None,
    base: options.Base = None,
    dtype: options.Dtype = None,
    on_mismatch: options.OnMismatch = "error",
    key: options.Key = None,
    config_from: options.ConfigFrom = None,
    max_shard_size: options.MaxShardSize = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = None,
    workers: options.Workers = 1,
    seed: options.Seed = 0,
    cache: options.Cache = None,
    no_journal: options.NoJournal = False,
    threads: options.Threads = 2,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """The options that stand after them."""


def cooks(
    show: Show,
    *,
    programs: bool = True,
    decides: bool = False,
    without: tuple[str, ...] = (),
    also: Also | None = None,
) -> Callable[[Make], Callable[..., None]]:
    """Make a command of a function from a recipe's own options to the recipe.

    A parameter of that function with the name of a common option, such as `seed`, gets its value
    and is no option of its own. The function is called when the output and the common options have
    been checked, so it is the place to import the recipe.

    Args:
        show: what a person sees of the result, from its JSON.
        programs: whether `--eval` can take the place of `--task`; not where gradients are needed.
        decides: whether one program fits and another decides.
        without: common options that make no sense for this recipe.
        also: what else to do when the soup is saved, from its JSON and the options; returns what
            the JSON then says of it.
    """
    left_out = (*without, *(() if decides else ("eval_deciding",)))
    left_out += () if programs else _PROGRAM

    def decorate(make: Make) -> Callable[..., None]:
        first, last = (
            {name: parameter for name, parameter in _parameters(part).items()
             if name not in left_out}
            for part in (_first, _last)
        )  # fmt: skip
        if not programs:
            first["task"] = first["task"].replace(
                annotation=options.Task, default=inspect.Parameter.empty
            )
        common = {**first, **last}
        wanted = _parameters(make)
        own = {name: parameter for name, parameter in wanted.items() if name not in common}

        def run(**given: Any) -> None:
            defaults = {n: p.default for n, p in {**_FIRST, **_LAST}.items() if n in left_out}
            values = {**defaults, **given}
            _cook(values, lambda: make(**{name: values[name] for name in wanted}), show, also)

        run.__name__, run.__doc__, run.__module__ = make.__name__, make.__doc__, make.__module__
        parameters = [*first.values(), *own.values(), *last.values()]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        )
        return run

    return decorate


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    # What it returns is for type checkers: evaluating that name would import torch.
    function.__annotations__.pop("return", None)
    return dict(inspect.signature(function, eval_str=True).parameters)


_FIRST, _LAST = _parameters(_first), _parameters(_last)


def _cook(given: dict[str, Any], make: Callable[[], Recipe], show: Show, also: Also | None) -> None:
    kind = options.to_dtype(given["dtype"])
    how = saving(
        given["output"],
        **{name: given[name] for name in ("force", "threads", "config_from", "max_shard_size")},
    )
    runs = program(*(given[name] for name in _PROGRAM))
    check_output(how)
    recipe = make()
    from stockpot.mixing.ingredients import Ingredients

    ingredients = Ingredients(
        given["checkpoints"],
        **{name: given[name] for name in ("base", "on_mismatch", "key")},
    )
    scoring = (
        "cache", "no_journal", "device", "precision", "batch_size", "workers", "seed",
    )  # fmt: skip
    with evaluating(given["task"], program=runs, **{name: given[name] for name in scoring}) as (
        task,
        evaluator,
    ):
        soup = recipe.cook(
            ingredients, task, evaluator=evaluator, choose_on=given["choose_on"], dtype=kind
        )
    told = soup.to_json()
    data, text = save(soup, how)
    if also is not None:
        told |= also(told, given)
    emit({**told, **data}, f"{show(told)}\n\n{text}", as_json=given["json"])

"""The one entry point: the table of commands, and every failure as an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import get_type_hints

import click

import stockpot
from stockpot._optional import missing_package
from stockpot.cli._command import LazyGroup, command
from stockpot.cli.output import failure
from stockpot.errors import StockpotError
from stockpot.recipes.commands import COMMANDS

_INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended

# Name → where its function is, and its line in the list. Recipes have theirs in COMMANDS.
_BEFORE_RECIPES = {
    "demo": ("train:demo", "Run the whole method on real handwriting, in minutes."),
    "inspect": ("files:inspect", "Show what checkpoints hold and whether they will average."),
}
# Recipes whose commands have more than the options of a recipe.
_RECIPES_WITH_MORE = {"interpolate": "interpolate:interpolate"}
_AFTER_RECIPES = {
    "evaluate": ("analyse:evaluate", "Score checkpoints on every split and compare each two."),
    "diagnose": ("analyse:diagnose", "Say whether checkpoints will soup, and why or why not."),
    "sweep": ("train:sweep", "Fine-tune ingredients from one base, resumably."),
    "sparse": ("train:sparse", "Make a dense model sparse (sparse model soup)."),
    "compress": ("files:compress", "Store a sparse checkpoint in fewer bytes."),
    "expand": ("files:expand", "Store a compressed checkpoint dense again."),
    "clip-head": ("analyse:clip_head", "Make a zero-shot classifier of a CLIP-like model."),
    "verify": ("files:verify", "Rebuild a soup from its record and compare it bit for bit."),
    "report": ("analyse:report", "Make one self-contained HTML page of what was found."),
}
_JOURNAL = {
    "list": ("analyse:journal_list", "List what has been scored and is remembered."),
    "clear": ("analyse:journal_clear", "Forget what has been scored."),
}


def _of_function(name: str, place: str) -> click.Command:
    """The command of a function in this package, whose parameters are groups of options."""
    module, _, function = place.partition(":")
    found = getattr(importlib.import_module(f"stockpot.cli.{module}"), function)
    groups = {key: cls for key, cls in get_type_hints(found).items() if key != "return"}
    return command(name, found, groups)


def _of_recipe(name: str) -> click.Command:
    if name in _RECIPES_WITH_MORE:
        return _of_function(name, _RECIPES_WITH_MORE[name])
    from stockpot.cli.recipes import recipe_command

    return recipe_command(name)


def _journal() -> click.Command:
    return LazyGroup(
        "journal",
        help="""List or forget what has been scored.

        \b
        stockpot journal list
        stockpot journal clear --model 0f3c…
        """,
        no_args_is_help=True,
        lazy=dict(_functions(_JOURNAL)),
    )


def _cook() -> click.Command:
    from stockpot.cli.recipes import CookGroup

    return CookGroup()


def _functions(
    table: dict[str, tuple[str, str]],
) -> Iterator[tuple[str, tuple[str, Callable[[], click.Command]]]]:
    for name, (place, line) in table.items():
        yield name, (line, lambda name=name, place=place: _of_function(name, place))  # type: ignore[misc]


def _show_version(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        sys.stdout.write(f"stockpot {stockpot.__version__}\n")
        context.exit()


app = LazyGroup(
    "stockpot",
    help="""Turn the fine-tuned checkpoints you already have into one better model.

    \b
    stockpot inspect runs/*.safetensors                     will they average?
    stockpot average runs/*.safetensors -o soup.safetensors
    stockpot COMMAND --help                                 examples of each command
    """,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False,
            callback=_show_version, help="Show the version.",
        )
    ],
    lazy={
        **dict(_functions(_BEFORE_RECIPES)),
        **{
            name: (line, lambda name=name: _of_recipe(name))  # type: ignore[misc]
            for name, (_, line) in COMMANDS.items()
        },
        **dict(_functions(_AFTER_RECIPES)),
        "journal": ("List or forget what has been scored.", _journal),
        "cook": ("Make a soup by a recipe of your own.", _cook),
    },
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` are those of the process by default.

    With `--json` among them, stdout gets exactly one JSON object, also for a failure.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        return int(app.main(given, standalone_mode=False, prog_name="stockpot") or 0)
    except click.ClickException as error:
        if as_json:
            failure(error, as_json=True, kind="UsageError")
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # Whoever read the output has enough, as in `stockpot inspect … | head`. What is still
        # buffered goes nowhere, or the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (StockpotError, OSError) as error:
        failure(error, as_json=as_json)
        return 1
    except (KeyboardInterrupt, click.Abort):
        failure(KeyboardInterrupt("stopped"), as_json=as_json)
        return _INTERRUPTED
    except Exception as error:
        missing = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
        if missing is not None:
            failure(missing, as_json=as_json)
            return 1
        # A defect of ours: scripts still get their one object, people a trace.
        if as_json:
            failure(error, as_json=True)
        traceback.print_exc()
        return 1

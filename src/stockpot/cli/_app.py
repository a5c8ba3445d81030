"""The one entry point: builds the application and turns every failure into an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import stockpot
from stockpot._optional import missing_package
from stockpot.cli import (
    auto,
    average,
    clip_head,
    compress,
    demo,
    diagnose,
    evaluate,
    greedy,
    inspect,
    interpolate,
    journal,
    learned,
    pruned,
    report,
    sparse,
    sweep,
    trajectory,
    verify,
)
from stockpot.cli._render import failure
from stockpot.errors import StockpotError

_INTERRUPTED = 130  # what the parser turns Ctrl-C into, and shells expect

_COMMANDS: tuple[Callable[..., Any], ...] = (
    demo.demo,
    inspect.inspect,
    average.average,
    interpolate.interpolate,
    greedy.greedy,
    pruned.pruned,
    learned.learned,
    auto.auto,
    evaluate.evaluate,
    diagnose.diagnose,
    sweep.sweep,
    trajectory.trajectory,
    sparse.sparse,
    compress.compress,
    compress.expand,
    clip_head.clip_head,
    verify.verify,
    report.report,
)
# Plain text, because drawing help with rich would take longer than all else that --help does.
app = typer.Typer(
    name="stockpot",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"stockpot {stockpot.__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Turn the fine-tuned checkpoints you already have into one better model.

    \b
    stockpot inspect runs/*.safetensors                     will they average?
    stockpot average runs/*.safetensors -o soup.safetensors
    stockpot COMMAND --help                                 examples of each command
    """


for _command in _COMMANDS:
    app.command(no_args_is_help=_command is not demo.demo)(_command)
_journal = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="List or forget what has been scored."
)
_journal.command("list")(journal.journal_list)
_journal.command("clear")(journal.journal_clear)
app.add_typer(_journal, name="journal")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` are those of the process by default.

    With `--json` among them, stdout gets exactly one JSON object, also for a failure.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        code = app(given, standalone_mode=False, prog_name="stockpot") or 0
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        return int(code)
    except typer.TyperException as error:
        if as_json:
            failure(error, as_json=True, kind="UsageError")
        usage: Any = error  # the parser raises subclasses that know how to show themselves
        usage.show()
        return int(usage.exit_code)
    except BrokenPipeError:
        # Whoever read the output has enough, as in `stockpot inspect … | head`. What is still
        # buffered goes nowhere, or the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (StockpotError, OSError) as error:
        failure(error, as_json=as_json)
        return 1
    except (KeyboardInterrupt, typer.Abort):
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

"""The one entry point: the table of commands, and every failure as an exit code."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import get_type_hints

import click

import stockpot
from stockpot._optional import missing_package
from stockpot._tracebacks import one_line, place_of
from stockpot.cli._command import LazyGroup, command
from stockpot.cli.output import failure, note
from stockpot.errors import StockpotError, TaskError
from stockpot.recipes.commands import COMMANDS

# Commands that keep what is done, and go on with it when they are given again.
_CONTINUES = {
    "auto", "demo", "diagnose", "evaluate", "greedy", "interpolate", "learned", "pruned", "sparse",
    "sweep", "trajectory",
}  # fmt: skip

# Name → where its function is, and its line in the list. Recipes have theirs in COMMANDS.
_BEFORE_RECIPES = {
    "demo": ("train:demo", "Run the whole method on real handwriting, in minutes."),
    "inspect": ("files:inspect", "Show what checkpoints hold and whether they will average."),
}
# Recipes whose commands have more than the options of a recipe.
_RECIPES_WITH_MORE = {"interpolate": "interpolate:interpolate"}
_AFTER_RECIPES = {
    "merge": ("merge:merge", "Merge models by a mergekit configuration."),
    "evaluate": ("analyse:evaluate", "Score checkpoints on every split and compare each two."),
    "diagnose": ("analyse:diagnose", "Say whether checkpoints will soup, and why or why not."),
    "sweep": ("train:sweep", "Fine-tune ingredients from one base, resumably."),
    "sparse": ("train:sparse", "Make a dense model sparse (sparse model soup)."),
    "zoo": ("train:zoo", "Adapt models of other pretrainings to a task, folded into one."),
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


_ADAPTER = {
    "extract": ("adapters:extract", "Make an adapter of a full fine-tune."),
}

# How threads and libraries that are loaded say that there is no memory for them.
_NO_MEMORY = ("can't start new thread", "failed to map segment", "annot allocate memory")

# What people type → the command that is meant, or the answer.
_MEANT = {
    "uniform": "average is the uniform soup: stockpot average RUNS -o OUT",
    "mean": "stockpot average RUNS -o OUT",
    "nuslerp": "stockpot slerp A B --base BASE -o OUT",
    "karcher": "stockpot slerp RUNS -o OUT",
    "mono-soup": "stockpot arithmetic TUNED --base BASE --rule mono-soup --scale 1 -o OUT",
    "monosoup": "stockpot arithmetic TUNED --base BASE --rule mono-soup --scale 1 -o OUT",
    "mergekit": "stockpot merge CONFIG.yml -o OUT",
    "mergekit-yaml": "stockpot merge CONFIG.yml -o OUT",
    "soup": "stockpot greedy RUNS --task TASK -o OUT, or stockpot average RUNS -o OUT without data",
    "swa": "stockpot average RUNS -o OUT; along one run: stockpot trajectory",
    "ema": "stockpot trajectory CHECKPOINTS --task TASK -o OUT",
    "wise-ft": "stockpot interpolate BASE TUNED -o OUT",
    "wiseft": "stockpot interpolate BASE TUNED -o OUT",
    "lerp": "stockpot interpolate BASE TUNED --alpha 0.5 -o OUT",
    "ensemble": "stockpot evaluate RUNS --task TASK --ensemble",
    "best-single": "stockpot average RUNS --top 1 --task TASK -o OUT",
    "score": "stockpot evaluate RUNS --task TASK",
    "eval": "stockpot evaluate RUNS --task TASK",
    "compare": "stockpot evaluate RUNS --task TASK",
    "diff": "stockpot inspect A B",
    "show": "stockpot inspect CHECKPOINT",
    "info": "stockpot inspect CHECKPOINT",
    "check": "stockpot inspect RUNS, or stockpot verify SOUP",
    "train": "stockpot sweep --task TASK -o RUNS",
    "finetune": "stockpot sweep --task TASK -o RUNS",
    "prune": "stockpot sparse CKPT --task TASK --sparsity 0.9 -o OUT, or stockpot pruned RUNS",
    "task-arithmetic": "stockpot arithmetic RUNS --base BASE -o OUT",
    "stock": "stockpot model-stock RUNS --base BASE -o OUT",
    **{
        name: f"stockpot arithmetic RUNS --base BASE --rule {rule} -o OUT"
        for name, rule in {
            "ties": "ties", "dare": "dare", "dare-linear": "dare",
            "dare-ties": "dare,signs=elected", "breadcrumbs": "breadcrumbs", "della": "della",
            "sce": "sce", "iso-c": "iso-c", "isoc": "iso-c", "tsv-m": "tsv-m", "tsvm": "tsv-m",
        }.items()
    },
}  # fmt: skip


class _App(LazyGroup):
    """The application: it knows what people call its commands elsewhere."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named; for another name, what was meant."""
        if args[0] == "help":
            args = [*args[1:2], "--help"]
            if args == ["--help"] or args[0] not in self.lazy:
                sys.stdout.write(self.get_help(ctx) + "\n")
                ctx.exit()
        name = args[0]
        if name not in self.lazy and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.lazy, n=1)
            answer = _MEANT.get(name.lower().replace("_", "-"))
            answer = answer or (f"stockpot {near[0]}" if near else "stockpot --help lists them all")
            raise click.UsageError(f"There is no command {name!r}: {answer}", ctx)
        return super().resolve_command(ctx, args)


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


def _adapter() -> click.Command:
    return LazyGroup(
        "adapter",
        help="""Make an adapter of a full fine-tune.

        \b
        stockpot adapter extract base/ tuned/ --rank 16 -o small/
        """,
        no_args_is_help=True,
        lazy=dict(_functions(_ADAPTER)),
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


app = _App(
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
        "adapter": ("Make an adapter of a full fine-tune.", _adapter),
        "journal": ("List or forget what has been scored.", _journal),
        "cook": ("Make a soup by a recipe of your own.", _cook),
    },
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` are those of the process by default.

    With `--json` among them, stdout gets exactly one JSON object, also for a failure; with
    `--debug`, stderr gets the traceback of a failure.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    try:
        with _stopping():
            code = int(app.main(given, standalone_mode=False, prog_name="stockpot") or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the output has enough, as in `stockpot inspect … | head`. What is still
        # buffered goes nowhere, or the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        if "--debug" in given:
            note("".join(traceback.format_exception(error)))
        return _failed(error, given, as_json="--json" in given)


def _failed(error: BaseException, given: list[str], *, as_json: bool) -> int:
    """Say why a command failed; its exit code."""
    if isinstance(error, click.ClickException):
        if as_json:
            failure(error, as_json=True, kind="UsageError")
        usage = io.StringIO()
        error.show(usage)
        note(usage.getvalue().rstrip("\n"))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        again = set(given) & _CONTINUES
        text = f"stopped; `stockpot {min(again)} …` given again continues" if again else "stopped"
        failure(KeyboardInterrupt(text), as_json=as_json)
        return 128 + int(getattr(error.__cause__ or error, "signal", signal.SIGINT))
    if isinstance(error, ModuleNotFoundError):
        error = missing_package(error) or error
    if isinstance(error, StockpotError | OSError):
        failure(error, as_json=as_json)
        return 1
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        failure(MemoryError("there is not enough memory"), as_json=as_json)
        return 1
    if place_of(error) is not None:  # code of the person's own
        failure(TaskError(f"{one_line(error)}; --debug shows where"), as_json=as_json)
        return 1
    # A defect of ours: scripts still get their one object, people a trace.
    if as_json:
        failure(error, as_json=True)
    if "--debug" not in given:
        note("".join(traceback.format_exception(error)))
    return 1


class _Stopped(KeyboardInterrupt):
    """A signal asked this process to end; `signal` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped")
        self.signal = number


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command like Ctrl-C, so that it leaves nothing behind."""

    def stop(number: int, frame: object) -> None:
        raise _Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_closed_streams() -> None:
    """Give standard streams that were closed to /dev/null, before a file gets their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = io.StringIO()
    if sys.stderr is None:
        sys.stderr = io.StringIO()

"""Arguments and options that several commands share, and how their text is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stockpot._types import parse_bytes

if TYPE_CHECKING:
    from stockpot.tensors.spec import DType


Checkpoints = Annotated[
    list[str],
    typer.Argument(metavar="CKPT", help="Files or model folders; a sweep's folder is its runs."),
]
Output = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        help="A .safetensors or .pt file; any other name becomes a model folder.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="CKPT", help="The checkpoint that all were fine-tuned from."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", help="Section of a torch file that holds the weights, such as ema or state_dict."
    ),
]
OnMismatch = Annotated[
    Literal["error", "leave-out", "common"],
    typer.Option(
        "--on-mismatch",
        help="What to do with ingredients that do not fit.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Type of the output, such as bf16; default: that of the inputs."),
]
MaxMemory = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="SIZE", help="Memory to stay under: 1GB, 2GiB."),
]
MaxShardSize = Annotated[
    str | None,
    typer.Option("--max-shard-size", metavar="SIZE", help="Largest file of a folder, such as 5GB."),
]
ConfigFrom = Annotated[
    str | None,
    typer.Option(
        "--config-from", metavar="DIR", help="Model folder to copy config and tokenizer from."
    ),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads that read, sum and write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be read, written and needed; write nothing."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, also for failures.")]


Task = Annotated[
    str,
    typer.Option(
        "--task", metavar="TASK", help="Data and metric: handwriting, a task.yaml, or file.py:name."
    ),
]
TaskOrEval = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="Data and metric: handwriting, a task.yaml, or file.py:name. Or use --eval.",
    ),
]
Eval = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="CMD",
        help='A program that scores, in place of --task: "python score.py {checkpoint}"; it prints '
        "a number last, or JSON with score.",
    ),
]
EvalTest = Annotated[
    str | None,
    typer.Option("--eval-test", metavar="CMD", help="Another that reports and never chooses."),
]
EvalDeciding = Annotated[
    str | None,
    typer.Option(
        "--eval-deciding",
        metavar="CMD",
        help="Like --eval, on other data: decides whether what --eval fitted is taken.",
    ),
]
EvalTimeout = Annotated[
    float | None, typer.Option("--eval-timeout", metavar="SECONDS", help="Most for one run.")
]
Direction = Annotated[
    Literal["max", "min"], typer.Option("--direction", help="Of the number that --eval prints.")
]
ChooseOn = Annotated[
    str | None,
    typer.Option("--choose-on", metavar="SPLIT", help="Held-out split that decides, of several."),
]
EarlyRejection = Annotated[
    bool,
    typer.Option(
        "--early-rejection/--no-early-rejection",
        help="Stop scoring candidates that have lost; the soup is the same.",
    ),
]
SelectionOptimism = Annotated[
    Literal["scored", "full"],
    typer.Option(
        "--selection-optimism",
        help="Measure it among the candidates that were scored on all examples, or score the rest "
        "for it too.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="auto, accelerate, cpu, cuda, cuda:1, …; auto takes a GPU.")
]
Precision = Annotated[
    Literal["fp32", "bf16", "fp16"], typer.Option("--precision", help="Of forward passes.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Default: the task's own.")
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        min=1,
        help="Processes that divide the scoring, on the CPU; with --eval, programs run at a time.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of orders and of bootstrap intervals.")]
Cache = Annotated[
    str | None,
    typer.Option("--cache", metavar="DIR", help="Journal of what was scored; default: the user's."),
]
NoJournal = Annotated[
    bool, typer.Option("--no-journal", help="Score anew, and remember nothing of it.")
]


def numbers(text: str | None, option: str) -> list[float] | None:
    """The numbers of a comma-separated list."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers; write for example 1,2,3", param_hint=option
        ) from None


def grid(text: str | None, option: str) -> tuple[float, ...] | None:
    """The numbers of `first:last:step`, ends included, or of a comma-separated list.

    >>> grid("0:1:0.25", "--alphas")
    (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    if text is None or ":" not in text:
        found = numbers(text, option)
        return None if found is None else tuple(found)
    try:
        first, last, step = (float(part) for part in text.split(":"))
        n = round((last - first) / step)
        if n < 0 or n > 10_000:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(
            f"{text!r} is no grid; write first:last:step, for example 0:1:0.05", param_hint=option
        ) from None
    # Rounded, so that 0.15000000000000002 is the 0.15 that was meant.
    return tuple(round(first + i * step, 10) for i in range(n + 1))


def size(text: str | None, option: str) -> int | None:
    """The bytes that a size means."""
    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def to_dtype(text: str | None) -> DType | None:
    """The element type that a spelling means."""
    from stockpot.tensors.spec import parse_dtype

    try:
        return None if text is None else parse_dtype(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--dtype") from None

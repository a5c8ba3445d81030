"""Arguments and options that several commands share, and how their text is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stockpot._types import parse_bytes

if TYPE_CHECKING:
    from stockpot.checkpoint.spec import DType

__all__ = [
    "Base", "Checkpoints", "ConfigFrom", "DryRun", "Dtype", "Force", "Json", "Key", "MaxMemory",
    "MaxShardSize", "OnMismatch", "Output", "Threads", "numbers", "size", "to_dtype",
]  # fmt: skip

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
    typer.Option("--on-mismatch", help="What to do with ingredients that do not fit."),
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


def size(text: str | None, option: str) -> int | None:
    """The bytes that a size means."""
    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def to_dtype(text: str | None) -> DType | None:
    """The element type that a spelling means."""
    from stockpot.checkpoint.spec import parse_dtype

    try:
        return None if text is None else parse_dtype(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--dtype") from None

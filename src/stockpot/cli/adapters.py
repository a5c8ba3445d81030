"""Commands about adapters: extract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stockpot._options import option
from stockpot._types import format_bytes
from stockpot.cli.groups import Output, Show, _dtype, cut_off_text
from stockpot.cli.output import note, progress_bar
from stockpot.tensors.spec import DType


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What an adapter is made of."""

    heading: ClassVar[str] = "Checkpoints"

    base: str = option(positional=True, metavar="BASE", help="The model before fine-tuning.")
    tuned: str = option(positional=True, metavar="TUNED", help="The full model after it.")
    rank: int = option(minimum=1, metavar="R", help="Most of each update.")
    dtype: DType = option(DType.F32, parse=_dtype, help="Type of the factors, such as bf16.")
    transposed: bool = option(
        False, help="Linear layers are stored as (in, out), as in GPT-2 (fan_in_fan_out)."
    )
    exclude: tuple[str, ...] = option((), metavar="PATTERN", help="Tensors that stay the base's.")


@dataclass(frozen=True, kw_only=True)
class AdapterOutput(Output):
    """Where an adapter is written."""

    output: str = option(
        flags=("-o", "--output"), metavar="OUT", help="A folder, as PEFT writes adapters."
    )


def extract(checkpoints: Tuned, output: AdapterOutput, show: Show) -> None:
    """Make an adapter of a full fine-tune, so that it ships small.

    Each matrix that changed becomes the best update of rank R, and what that lacks is shown; norms
    and biases that changed are kept whole. A soup of full models can be made small in this way.

    \b
    stockpot adapter extract base/ soup/ --rank 16 -o small/
    """
    from stockpot.formats.adapters.extract import ExtractOptions
    from stockpot.formats.adapters.extract import extract as extract_adapter

    output.check()
    options = ExtractOptions(
        rank=checkpoints.rank,
        dtype=checkpoints.dtype,
        is_transposed=checkpoints.transposed,
        exclude=checkpoints.exclude,
    )
    with progress_bar() as progress:
        found = extract_adapter(
            checkpoints.base, checkpoints.tuned, output.output, options, force=output.force,
            progress=progress,
        )  # fmt: skip
    if found.whole:
        names = ", ".join(found.whole[:5]) + (", …" if found.whole[5:] else "")
        note(f"{len(found.whole)} tensors that are no matrices are kept whole: {names}")
    data = found.to_json()
    share = found.bytes / found.tuned_bytes
    text = (
        f"{found.path}: {format_bytes(found.bytes)}, {100 * share:.2f} % of the "
        f"{format_bytes(found.tuned_bytes)} of the full model"
    )
    show.emit(data, f"{text}\n\n{cut_off_text(data)}")

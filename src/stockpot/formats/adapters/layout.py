"""What an adapter's file says, before there is a base: its factors, and what it replaces whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from stockpot._types import JSON
from stockpot.errors import CheckpointFormatError
from stockpot.formats.base import Checkpoint
from stockpot.tensors.spec import TensorSpec

CONFIG = "adapter_config.json"
"""What PEFT writes beside an adapter's weights."""

Style = Literal["peft", "kohya", "diffusers"]


@dataclass(frozen=True, slots=True)
class Factors:
    """One low-rank update, s·B·A, by the names of its tensors.

    Attributes:
        module: what it belongs to, as the adapter calls it.
        down: name of A, (r, …).
        up: name of B, (…, r).
        rank: r.
        scale: s.
        magnitude: name of the magnitudes of DoRA, if it has them.
        is_embedding: whether A belongs to the rows of a table.
        alpha: name of the tensor that holds α, where a file has one.
    """

    module: str
    down: str
    up: str
    rank: int
    scale: float
    magnitude: str | None = None
    is_embedding: bool = False
    alpha: str | None = None


@dataclass(frozen=True)
class Layout:
    """What an adapter holds.

    Attributes:
        style: who wrote it.
        factors: in the order of the file.
        whole: tensor of the model → name of what takes its place: heads, biases.
        rows: table of the model → name of the rows that take the place of some, and which those
            are.
        is_transposed: whether linear layers are stored as (in, out) (`fan_in_fan_out`).
        base: what the configuration calls the base.
        config: the configuration of PEFT; empty for others.
    """

    style: Style
    factors: tuple[Factors, ...]
    whole: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    is_transposed: bool = False
    base: str | None = None
    config: Mapping[str, JSON] = field(default_factory=dict)


def not_low_rank(path: str, kind: str) -> CheckpointFormatError:
    """The refusal of an adapter that is of another kind than what can be averaged."""
    return CheckpointFormatError(
        f"{path} is an adapter of the kind {kind}, which is not averaged; expected LoRA, rsLoRA or "
        "DoRA: merge it into its base with the library that made it (in peft: "
        "merge_and_unload().save_pretrained(out)) and average the merged models"
    )


def paired(
    adapter: Checkpoint, ends: Mapping[str, str], *, module_of: Mapping[str, str]
) -> list[tuple[str, TensorSpec, TensorSpec]]:
    """Every module with its down and up factor; checked against each other.

    Args:
        adapter: the file.
        ends: name of a down factor → name of its up factor.
        module_of: name of a down factor → its module.

    Raises:
        CheckpointFormatError: a factor is missing, or ranks disagree or are 0.
    """
    problems: list[str] = []
    found = []
    for down, up in ends.items():
        a, b = adapter.get(down), adapter.get(up)
        if a is None or b is None:
            there, lacking = (down, up) if b is None else (up, down)
            problems.append(f"{there} is there and {lacking} is not")
            continue
        if len(a.shape) < 2 or len(b.shape) < 2 or not (a.dtype.mixable and b.dtype.mixable):
            problems.append(f"{down} and {up} are {a.shape} {a.dtype}, {b.shape} {b.dtype}")
        elif a.shape[0] == 0 or a.shape[0] != b.shape[1]:
            problems.append(f"the ranks of {down} {a.shape} and {up} {b.shape} are no common one")
        elif any(size != 1 for size in b.shape[2:]):
            problems.append(f"{up} is {b.shape}; expected kernels of size 1")
        else:
            found.append((module_of[down], a, b))
    refuse_damaged(adapter.path, problems)
    return found


def refuse_damaged(path: str, problems: Iterable[str]) -> None:
    """Raise one error for all `problems` of an adapter, if there are any."""
    listed = list(problems)
    if listed:
        more = f"; and {len(listed) - 5} more" if listed[5:] else ""
        raise CheckpointFormatError(
            f"{path} is no adapter that can be read: {'; '.join(listed[:5])}{more}. Save it again"
        )

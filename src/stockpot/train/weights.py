"""From a start to a model, and from a model to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from stockpot import formats as checkpoints
from stockpot._types import StrPath
from stockpot.errors import MismatchError
from stockpot.formats.base import Checkpoint
from stockpot.formats.output import OutputRequest, open_output
from stockpot.formats.placement import plan_output
from stockpot.tensors._torch import torch_dtype

Start: TypeAlias = StrPath | Checkpoint | Mapping[str, torch.Tensor] | nn.Module


def as_checkpoint(start: Start) -> Checkpoint:
    """`start` as a checkpoint: a path is opened, a state dict or module is wrapped."""
    if isinstance(start, Checkpoint):
        return start
    if isinstance(start, (str, os.PathLike)):
        return checkpoints.open(start)
    return checkpoints.from_state_dict(start)


def load_start(model: nn.Module, start: Checkpoint) -> None:
    """Copy every tensor of `start` into `model`, in the model's dtypes.

    Nothing is left at its own initialisation: a tensor that `start` lacks would differ from run to
    run, and runs that share no initialisation do not average.

    Raises:
        MismatchError: tensors are missing, unexpected or of another shape; `.problems` lists all.
    """
    try:
        start.load_into(model)
    except MismatchError as error:
        advice = (
            "Every run has to start from the same weights, a new head included: make the head "
            "once, save it with the rest, and start all runs from that file."
        )
        raise MismatchError(f"{error}\n{advice}", error.problems) from None


def save_weights(
    path: Path,
    values: Mapping[str, torch.Tensor],
    *,
    like: Checkpoint,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Write the tensors that `like` holds, in its dtypes and with its ties, whole or not at all."""
    request = OutputRequest(
        path=path, specs=dict(like), tied=like.tied, metadata=metadata or {}, like=like
    )
    with open_output(plan_output(request), force=force) as output:
        for name in like.distinct:
            value = values[name].detach().to("cpu", torch_dtype(like[name].dtype)).contiguous()
            output.write(name, 0, value.reshape(-1).view(torch.uint8).numpy().data)

"""Load a checkpoint into a model that exists, so that nothing is written to be scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stockpot.errors import MismatchError, Problem
from stockpot.mixing.mixture import Mixture

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from stockpot.formats.base import Checkpoint


def load_weights(model: nn.Module, source: Checkpoint, *, strict: bool = True) -> None:
    """Copy every tensor of `source` into `model`, in place, one tensor at a time.

    Values are converted to the dtype and device of the model's own tensors; a mixture computes them
    right there where it can. A name that is absent from `source` but tied in the model to one that
    is present counts as present.

    Args:
        model: gets the values; its parameters and buffers keep their identity.
        source: a checkpoint; `from_state_dict` makes one of a state dict.
        strict: refuse names that only one of the two has. Shapes must always agree.

    Raises:
        MismatchError: `problems` lists every missing, unexpected and misshapen tensor. Nothing has
            been copied then.
    """
    import torch

    own = model.state_dict()
    problems = list(_problems(own, source, strict=strict))
    if problems:
        raise MismatchError(_message(problems, source.path), problems)
    with torch.no_grad():
        for name in source:
            filled = isinstance(source, Mixture) and name in own and source.fill(name, own[name])
            if name in own and not filled:
                own[name].copy_(source.read(name))


def _problems(
    own: Mapping[str, torch.Tensor], source: Checkpoint, *, strict: bool
) -> Iterator[Problem]:
    for name, spec in source.items():
        if name in own:
            found, expected = spec.shape, tuple(own[name].shape)
            if found != expected:
                yield Problem(source.path, name, f"shape {found}", f"shape {expected}")
        elif strict:
            yield Problem(source.path, name, "in the weights", "not in the model")
    if strict:
        filled = {_storage(own[name]) for name in source if name in own}
        for name in own:
            tied = own[name].numel() > 0 and _storage(own[name]) in filled
            if name not in source and not tied:
                yield Problem(source.path, name, "missing", f"shape {tuple(own[name].shape)}")


def _storage(tensor: torch.Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _message(problems: list[Problem], path: str) -> str:
    shown = [f"  {p.tensor}: {p.found}, expected {p.expected}" for p in problems[:20]]
    if len(problems) > 20:
        shown.append(f"  … and {len(problems) - 20} more")
    return "\n".join(
        [
            f"the weights of {path} do not fit the model that the task builds "
            f"({len(problems)} tensors):",
            *shown,
            "Let the task's build() make the architecture that was saved, or choose the right "
            "part of the file with --key.",
        ]
    )

"""Put weights into a living model, so that nothing is written to disk to be scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from stockpot.errors import MismatchError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn


class Readable(Protocol):
    """A `Mixture`, or anything else that reads a tensor by its name."""

    @property
    def specs(self) -> Mapping[str, Any]:
        """Name → something with a `shape`."""
        ...

    def read(self, name: str, /) -> torch.Tensor:
        """The values of tensor `name`."""
        ...


Weights: TypeAlias = Readable | Mapping[str, Any]
"""What a model is filled from: a checkpoint, a mixture, or a mapping of names to tensors."""


def weight_specs(source: Weights) -> Mapping[str, Any]:
    """Name → something with a `shape`, of every tensor in `source`; no values are read."""
    if isinstance(source, Mapping):
        return source
    specs: Mapping[str, Any] = source.specs
    return specs


def weight_names(source: Weights) -> list[str]:
    """The names of the tensors that `source` holds."""
    return list(weight_specs(source))


def read_weights(source: Weights, name: str) -> torch.Tensor:
    """The values of one tensor of `source`."""
    read = getattr(source, "read", None)
    value: torch.Tensor = source[name] if read is None else read(name)  # type: ignore[index]
    return value


def load_weights(model: nn.Module, source: Weights, *, strict: bool = True) -> None:
    """Copy every tensor of `source` into `model`, in place, one tensor at a time.

    Values are converted to the dtype and device of the model's own tensors; a source that can
    `fill` a tensor, as a mixture does, computes them right there. A name that is absent from
    `source` but tied in the model to one that is present counts as present.

    Args:
        model: gets the values; its parameters and buffers keep their identity.
        source: a checkpoint, a mixture, or a mapping of names to tensors.
        strict: refuse names that only one of the two has. Shapes must always agree.

    Raises:
        MismatchError: `problems` lists every missing, unexpected and misshapen tensor. Nothing has
            been copied then.
    """
    import torch

    own = model.state_dict()
    names = weight_names(source)
    problems = list(_problems(own, source, names, strict=strict))
    if problems:
        raise MismatchError(_message(problems, getattr(source, "path", "the mixture")), problems)
    fill = getattr(source, "fill", None)
    with torch.no_grad():
        for name in names:
            if name in own and not (fill is not None and fill(name, own[name])):
                own[name].copy_(read_weights(source, name))


def _problems(
    own: Mapping[str, torch.Tensor], source: Weights, names: list[str], *, strict: bool
) -> Iterator[Problem]:
    path = str(getattr(source, "path", "the mixture"))
    specs = weight_specs(source)
    present = set(names)
    for name in names:
        if name in own:
            found, expected = tuple(specs[name].shape), tuple(own[name].shape)
            if found != expected:
                yield Problem(path, name, f"shape {found}", f"shape {expected}")
        elif strict:
            yield Problem(path, name, "in the weights", "not in the model")
    if strict:
        filled = {_storage(own[name]) for name in present if name in own}
        for name in own:
            tied = own[name].numel() > 0 and _storage(own[name]) in filled
            if name not in present and not tied:
                yield Problem(path, name, "missing", f"shape {tuple(own[name].shape)}")


def _storage(tensor: torch.Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _message(problems: list[Problem], path: object) -> str:
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

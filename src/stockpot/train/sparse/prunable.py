"""Which weights of a model may be pruned."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stockpot.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn


# transformers' Conv1D is a linear layer that stores its weight transposed.
_WEIGHTS_BY_TYPE_NAME = {"Conv1D": ("weight",)}
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable_names(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """Names of the weights that are pruned: those of every convolution and linear layer.

    The head is among them; norms, biases and embeddings are not, nor is a weight that a layer
    shares with an embedding. Weights under several names are listed once, by the first.

    Args:
        model: says the types of its modules; its values do not matter.
        include: shell patterns of parameters that are prunable, too, whatever their module.
        exclude: shell patterns of parameters that stay dense; they win over `include`.

    Raises:
        RecipeError: a pattern that names no parameter, or nothing is left to prune.

    >>> from torch import nn
    >>> prunable_names(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)))
    ('0.weight', '2.weight')
    """
    named = dict(model.named_parameters())
    _refuse_unmatched(named, include=include, exclude=exclude)
    by_type = _by_type(model)
    found = tuple(
        name
        for name, parameter in named.items()
        if (id(parameter) in by_type or _matches(name, include)) and not _matches(name, exclude)
    )
    if not found:
        raise RecipeError(
            "no weight is left to prune: the model has no convolution or linear layer outside "
            "the excluded patterns; include others by name"
        )
    return found


def _by_type(model: nn.Module) -> set[int]:
    from torch import nn

    layers = (nn.Linear, nn.modules.conv._ConvNd)
    prunable: set[int] = set()
    others: set[int] = set()
    for module in model.modules():
        names: tuple[str, ...] = _WEIGHTS_BY_TYPE_NAME.get(type(module).__name__, ())
        if isinstance(module, layers):
            names = ("weight",)
        elif isinstance(module, nn.MultiheadAttention):
            names = _ATTENTION
        for name, parameter in module.named_parameters(recurse=False):
            (prunable if name in names else others).add(id(parameter))
    return prunable - others


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_unmatched(
    named: dict[str, nn.Parameter], *, include: Sequence[str], exclude: Sequence[str]
) -> None:
    unused = [
        f"{kind} pattern {pattern!r}"
        for kind, patterns in (("include", include), ("exclude", exclude))
        for pattern in patterns
        if not any(_matches(name, (pattern,)) for name in named)
    ]
    if unused:
        names = ", ".join(list(named)[:8])
        raise RecipeError(f"{'; '.join(unused)}: no parameter has such a name, but {names}, …")

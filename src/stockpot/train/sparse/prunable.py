"""Which weights of a model may be pruned, and which of them structured pruning removes together."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

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


@dataclass(frozen=True, slots=True)
class Part:
    """Where the groups of a family lie in one tensor: slices along one dimension.

    Group g takes the indices `offset + g·width` up to `width` more along `dim`.
    """

    tensor: str
    dim: int
    offset: int = 0
    width: int = 1


@dataclass(frozen=True, slots=True)
class Groups:
    """A family of `n_groups` groups, each with a slice in every part: filters, neurons, heads."""

    n_groups: int
    parts: tuple[Part, ...]


def group_views(
    groups: Groups, index: int, arrays: Mapping[str, npt.NDArray[Any]]
) -> list[npt.NDArray[Any]]:
    """The slices of group `index`, as views into `arrays`."""
    views = []
    for part in groups.parts:
        start = part.offset + index * part.width
        where = (slice(None),) * part.dim + (slice(start, start + part.width),)
        views.append(arrays[part.tensor][where])
    return views


def whole_rows(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Groups, ...]:
    """Every row of every tensor is a group: the filters of convolutions, the neurons of layers."""
    return tuple(Groups(array.shape[0], (Part(name, 0),)) for name, array in arrays.items())


_QUERIES = ("query", "q_proj", "q_lin", "q", "to_q")
_KEYS = ("key", "k_proj", "k_lin", "k", "to_k")
_VALUES = ("value", "v_proj", "v_lin", "v", "to_v")
_OUTPUTS = ("out_proj", "o_proj", "out_lin", "proj", "o")
_FUSED = ("qkv", "in_proj")
_N_HEADS = ("num_attention_heads", "num_heads", "n_heads")


def find_groups(model: nn.Module, prunable: tuple[str, ...]) -> tuple[Groups, ...]:
    """The families of groups in `model`, of those weights that are `prunable`.

    Attention heads (rows of query, key and value, and the columns of the output that read them)
    where a module says how many it has and names its parts in a usual way; elsewhere the filters of
    convolutions and the neurons of linear layers. The last prunable weight is left out: its rows
    are the classes.
    """
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if n in set(prunable)}
    heads = [
        family
        for name, module in model.named_modules()
        if (family := _heads(model, name, module, shapes)) is not None
    ]
    taken = {part.tensor for family in heads for part in family.parts}
    transposed = _transposed(model)
    rows = []
    for name in list(shapes)[:-1]:
        if name not in taken:
            dim = 1 if name in transposed else 0
            rows.append(Groups(shapes[name][dim], (Part(name, dim),)))
    return (*heads, *rows)


def _transposed(model: nn.Module) -> set[str]:
    """Weights whose outputs lie along dimension 1."""
    from torch import nn

    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvTransposeNd) or type(module).__name__ == "Conv1D"
    }


def _heads(
    model: nn.Module, name: str, module: nn.Module, shapes: Mapping[str, tuple[int, ...]]
) -> Groups | None:
    counts = [getattr(module, key, 0) for key in _N_HEADS]
    n_heads = next((count for count in counts if isinstance(count, int) and count > 0), 0)
    if n_heads == 0:
        return None
    parts = _fused_parts(name, shapes, n_heads) or _separate_parts(name, shapes, n_heads)
    if not parts:
        return None
    output = _output_of(name, shapes)
    if output is not None and shapes[output][1] % n_heads == 0:
        parts.append(Part(output, 1, 0, shapes[output][1] // n_heads))
    return Groups(n_heads, tuple(parts))


def _weight(name: str, child: str) -> str:
    return f"{name}.{child}.weight" if name else f"{child}.weight"


def _fused_parts(name: str, shapes: Mapping[str, tuple[int, ...]], n_heads: int) -> list[Part]:
    own = f"{name}.in_proj_weight" if name else "in_proj_weight"
    for tensor in (own, *(_weight(name, child) for child in _FUSED)):
        if tensor in shapes and shapes[tensor][0] % (3 * n_heads) == 0:
            third = shapes[tensor][0] // 3
            return [Part(tensor, 0, i * third, third // n_heads) for i in range(3)]
    return []


def _separate_parts(name: str, shapes: Mapping[str, tuple[int, ...]], n_heads: int) -> list[Part]:
    parts = []
    for children in (_QUERIES, _KEYS, _VALUES):
        tensor = next((t for c in children if (t := _weight(name, c)) in shapes), None)
        # Grouped-query attention shares keys between heads: then there is no slice for each.
        if tensor is None or shapes[tensor][0] % n_heads:
            return []
        parts.append(Part(tensor, 0, 0, shapes[tensor][0] // n_heads))
    sizes = {shapes[part.tensor][0] for part in parts[:2]}
    return parts if len(sizes) == 1 else []


def _output_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The weight that reads the heads: a sibling of query and key, or BERT's `output.dense`."""
    parent = name.rpartition(".")[0]
    places = [_weight(name, child) for child in _OUTPUTS] + [_weight(parent, "output.dense")]
    return next((place for place in places if place in shapes), None)

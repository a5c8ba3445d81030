"""Groups of weights that structured pruning removes as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn


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

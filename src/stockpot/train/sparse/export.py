"""Sparse weights in the forms of torch: CSR matrices, 2:4 tensors, and prune keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from stockpot.errors import RecipeError

if TYPE_CHECKING:
    import torch


# Of torch's CUTLASS and cuSPARSELt kernels, the stricter ones: rows, columns in multiples of.
_ROWS, _COLUMNS = 32, 64
_HALF_TYPES = ("torch.float16", "torch.bfloat16")


def to_csr(
    params: Mapping[str, torch.Tensor], *, min_sparsity: float = 0.5
) -> dict[str, torch.Tensor]:
    """The sparse weights of `params` as CSR matrices, for `torch.sparse` kernels; others as given.

    A convolution becomes the matrix (filters, channels·height·width). torch warns that its CSR
    tensors are in beta.

    Args:
        params: name → dense tensor.
        min_sparsity: smallest share of zeros of a tensor that is converted, 0..1. At float32 a CSR
            matrix takes less memory than a dense one above two thirds, because each value that is
            kept brings an index of eight bytes.

    >>> import torch, warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     found = to_csr({"w": torch.tensor([[0.0, 0, 3], [0, 0, 0]]), "b": torch.ones(2)})
    >>> found["w"].layout, found["w"].col_indices().tolist(), found["b"].layout
    (torch.sparse_csr, [2], torch.strided)
    """
    return {
        name: value.reshape(value.shape[0], -1).to_sparse_csr()
        if name in _sparse(params, min_sparsity)
        else value
        for name, value in params.items()
    }


def prune_keys(
    params: Mapping[str, torch.Tensor], names: Iterable[str] | None = None
) -> dict[str, torch.Tensor]:
    """`params` as the state dict of a model that `torch.nn.utils.prune` is pruning.

    Each pruned tensor becomes `name_orig` and `name_mask`, so that torch's own tools keep its zeros
    in further training. A model takes it with `load_state_dict` once its modules have been through
    `prune.identity(module, "weight")`.

    Args:
        params: name → dense tensor.
        names: the pruned tensors; by default those of two dimensions or more with zeros among
            others.

    Raises:
        RecipeError: a name that is not in `params`.

    >>> import torch
    >>> sorted(prune_keys({"fc.weight": torch.eye(2), "fc.bias": torch.zeros(2)}))
    ['fc.bias', 'fc.weight_mask', 'fc.weight_orig']
    """
    chosen = set(_sparse(params, 0.0) if names is None else names)
    unknown = sorted(chosen - set(params))
    if unknown:
        raise RecipeError(
            f"there is no {', '.join(unknown)}; expected names among {len(params)} tensors"
        )
    state: dict[str, torch.Tensor] = {}
    for name, value in params.items():
        if name in chosen:
            state[f"{name}_orig"] = value
            state[f"{name}_mask"] = (value != 0).to(value.dtype)
        else:
            state[name] = value
    return state


def semi_structured_problems(weight: torch.Tensor) -> tuple[str, ...]:
    """Why torch cannot multiply with `weight` as a 2:4 matrix; empty if it can, given the hardware.

    Its kernels want a matrix of half precision with two zeros at least in every four neighbours
    along a row, 32 rows and 64 columns or multiples of them. A convolution is refused: torch has no
    such kernel for it.

    >>> import torch
    >>> semi_structured_problems(torch.tensor([[1.0, 0, 2, 0]] * 32).repeat(1, 16).half())
    ()
    >>> semi_structured_problems(torch.ones(32, 60))
    ('it is torch.float32, expected torch.float16 or torch.bfloat16', 'it has 60 columns, ...
    """
    if weight.ndim != 2:
        return (f"it has {weight.ndim} dimensions, expected a matrix",)
    rows, columns = weight.shape
    problems = []
    if str(weight.dtype) not in _HALF_TYPES:
        problems.append(f"it is {weight.dtype}, expected {' or '.join(_HALF_TYPES)}")
    if rows % _ROWS:
        problems.append(f"it has {rows} rows, expected a multiple of {_ROWS}")
    if columns % _COLUMNS:
        problems.append(f"it has {columns} columns, expected a multiple of {_COLUMNS}")
    if columns % 4 == 0:
        full = int(((weight != 0).reshape(-1, 4).sum(1) > 2).sum())
        if full:
            problems.append(f"{full} groups of four have more than two weights, expected none")
    return tuple(problems)


def to_semi_structured(params: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The 2:4 weights of `params` as `torch.sparse` semi-structured tensors; others as given.

    Those that do not fit the kernels stay dense (`semi_structured_problems` says why).

    Args:
        params: name → tensor on a CUDA device that multiplies 2:4 matrices (Ampere or newer).

    Raises:
        RecipeError: no tensor fits, or a tensor that fits is not on such a device.
    """
    import torch

    fitting = [name for name, value in params.items() if not semi_structured_problems(value)]
    if not fitting:
        raise RecipeError(
            "no tensor is a 2:4 matrix of half precision; expected a model pruned with "
            "--selector 2:4 and moved to float16 or bfloat16"
        )
    elsewhere = [name for name in fitting if not params[name].is_cuda]
    if elsewhere:
        raise RecipeError(
            f"{elsewhere[0]} is on {params[elsewhere[0]].device}; torch multiplies 2:4 matrices on "
            "CUDA devices only: move the tensors there first"
        )
    return {
        name: torch.sparse.to_sparse_semi_structured(value) if name in fitting else value
        for name, value in params.items()
    }


def _sparse(params: Mapping[str, torch.Tensor], min_sparsity: float) -> list[str]:
    """Names of floating tensors of two dimensions or more with zeros, and not nothing but zeros."""
    found = []
    for name, value in params.items():
        if value.ndim < 2 or not value.is_floating_point() or value.numel() == 0:
            continue
        share = 1 - int(value.count_nonzero()) / value.numel()
        if 0 < share < 1 and share >= min_sparsity:
            found.append(name)
    return found

"""What adapters are and do, judged by ΔW and never by their factors; no torch, no full model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stockpot._types import Progress, no_progress
from stockpot.analysis.geometry import Geometry
from stockpot.analysis.initialisation import comparable, tensor_correlations
from stockpot.errors import NonFiniteError, Problem
from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.adapters.update import F64, Rows
from stockpot.formats.base import Checkpoint
from stockpot.mixing.coefficients import layer_of

_SAMPLE, _TENSORS = 4096, 16
_BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """What one adapter holds, and how far it moves what it changes.

    Attributes:
        base: the checkpoint that it is seen with.
        kind: `"LoRA"`, `"rsLoRA"` or `"DoRA"`.
        ranks: rank → how many modules have it.
        scales: scale s of s·B·A → how many modules have it.
        targets: last parts of the names of the modules → how many there are.
        whole: tensors of the model whose place it takes: heads, biases.
        size: ‖ΔW‖ / ‖W₀‖ over all weights that it updates; None where W₀ is zero.
        modules: the same of each weight.
    """

    path: str
    base: str
    kind: str
    ranks: dict[str, int]
    scales: dict[str, int]
    targets: dict[str, int]
    whole: tuple[str, ...]
    size: float | None
    modules: dict[str, float | None]


def adapter_geometry(
    adapters: Sequence[Adapter], base: Checkpoint, *, progress: Progress = no_progress
) -> tuple[Geometry, tuple[AdapterSummary, ...]]:
    """The moves of adapters from their base, from their factors, and a summary of each.

    ⟨ΔWᵢ, ΔWⱼ⟩ = Σ (LᵢᵀLⱼ) ∘ (RᵢRⱼᵀ): exact where a base in bfloat16 would round ΔW away. The base
    is read once, for its norm.
    """
    k = len(adapters)
    names = comparable(adapters, base)
    layers: dict[str, F64] = {}
    squares: dict[str, float] = {}
    of_tensor: dict[str, tuple[F64, float]] = {}
    problems: list[Problem] = []
    for number, name in enumerate(names, 1):
        layer, square = layer_of(name), _square(base, name)
        squares[layer] = squares.get(layer, 0.0) + square
        gram = np.zeros((k, k))
        if any(name in one.changed for one in adapters):
            try:
                gram = _gram(adapters, base, name)
            except NonFiniteError as error:
                found = f"NaN or infinity ({error.tensor})"
                problems.append(Problem(str(error.path), name, found, "finite values"))
                continue
            of_tensor[name] = gram, square
        layers[layer] = layers.get(layer, np.zeros((k, k))) + gram
        progress(number, len(names), "tensors")
    geometry = Geometry(
        base.path,
        tuple(one.path for one in adapters),
        len(names),
        sum(layers.values(), np.zeros((k, k))),
        layers,
        squares,
        ((),) * k if problems else tuple(tuple(_correlations(base, one)) for one in adapters),
        tuple(problems),
    )
    return geometry, tuple(_summary(one, i, of_tensor) for i, one in enumerate(adapters))


def _correlations(base: Checkpoint, adapter: Adapter) -> Iterable[float]:
    found = tensor_correlations(base, adapter, max_elements=_SAMPLE, max_tensors=_TENSORS)
    return found.values()


def _summary(adapter: Adapter, i: int, of_tensor: dict[str, tuple[F64, float]]) -> AdapterSummary:
    factors = [one.factors for one in adapter.updates.values()]
    sizes = {n: found for n in adapter.updates if (found := of_tensor.get(n)) is not None}
    moved = sum(float(gram[i, i]) for gram, _ in sizes.values())
    whole = sum(square for _, square in sizes.values())
    config = adapter.layout.config
    return AdapterSummary(
        path=adapter.path,
        base=adapter.base.path,
        kind="DoRA" if adapter.is_dora else "rsLoRA" if config.get("use_rslora") else "LoRA",
        ranks=_counted(one.rank for one in factors),
        scales=_counted(f"{one.scale:.6g}" for one in factors),
        targets=_counted(n.removesuffix(".weight").rpartition(".")[2] for n in adapter.updates),
        whole=(*adapter.whole, *adapter.rows),
        size=_ratio(moved, whole),
        modules={n: _ratio(float(gram[i, i]), s) for n, (gram, s) in sizes.items()},
    )


def _counted(values: Iterable[object]) -> dict[str, int]:
    return {str(value): n for value, n in Counter(values).most_common()}


def _ratio(move: float, square: float) -> float | None:
    return math.sqrt(max(0.0, move) / square) if square > 0 else None


def _square(checkpoint: Checkpoint, name: str) -> float:
    """‖W‖² of a tensor, a block at a time."""
    rows = checkpoint[name].shape[0] if checkpoint[name].shape else 1
    read, total = Rows(checkpoint, name), 0.0
    for start in range(0, rows, _BLOCK_ROWS):
        block = read(start, min(start + _BLOCK_ROWS, rows)).reshape(-1)
        total += float(block @ block)
    return total


def _gram(adapters: Sequence[Adapter], base: Checkpoint, name: str) -> F64:
    """⟨Wᵢ − W₀, Wⱼ − W₀⟩ of one tensor, (k, k)."""
    k = len(adapters)
    products = [_product(one, name) for one in adapters]
    if all(one is not None for one in products):
        pairs = [one for one in products if one is not None]
        found = np.zeros((k, k))
        for i, (left, right) in enumerate(pairs):
            for j, (other_left, other_right) in enumerate(pairs[: i + 1]):
                inner = (left.T @ other_left) * (right @ other_right.T)
                found[i, j] = found[j, i] = float(inner.sum())
        return found
    start = Rows(base, name)
    rows = base[name].shape[0] if base[name].shape else 1
    moves = [
        (one.matrix(name) - start(0, rows)).reshape(-1)
        if name in one.changed
        else np.zeros(base[name].numel)
        for one in adapters
    ]
    gram: npt.NDArray[np.float64] = np.array([[float(a @ b) for b in moves] for a in moves])
    return gram


def _product(adapter: Adapter, name: str) -> tuple[F64, F64] | None:
    """s·L and R of an update; empty factors where there is none, None for another change."""
    update = adapter.updates.get(name)
    if name in adapter.whole or name in adapter.rows:
        return None
    if update is None:
        spec = adapter[name]
        columns = spec.numel // max(1, spec.shape[0]) if spec.shape else 1
        return np.empty((spec.shape[0] if spec.shape else 1, 0)), np.empty((0, columns))
    return None if update.factors.magnitude is not None else update.product()

"""How one tensor of a mixture is made, and the making of any part of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from stockpot.errors import MismatchError, NonFiniteError, Problem, RecipeError
from stockpot.formats.base import Checkpoint
from stockpot.mixing.buffers import BufferPolicy, combine_buffers
from stockpot.mixing.coefficients import SUM_TOLERANCE
from stockpot.tensors.rounding import finite, widen
from stockpot.tensors.spec import TensorSpec
from stockpot.tensors.sums import Unrepresentable, mix, mix_elementwise

_Raw = npt.NDArray[np.uint8]

PIECE = 1 << 17
"""Elements that are worked on at a time: what is hashed is still in the cache when it is summed."""


class MaskLike(Protocol):
    """What a mixture needs of a sparsity mask."""

    @property
    def fingerprint(self) -> str:
        """Changes with what is kept."""
        ...

    @property
    def sparsity(self) -> float:
        """Share of the masked tensors' weights that is zero."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Names of the masked tensors."""
        ...

    def __contains__(self, name: object) -> bool:
        """Whether tensor `name` is masked; others stay dense."""
        ...

    def kept(self, name: str) -> npt.NDArray[np.bool_]:
        """True where tensor `name` is kept; of its shape."""
        ...


@dataclass(frozen=True, slots=True)
class TensorRule:
    """How one tensor of a mixture is made.

    Attributes:
        spec: what comes out.
        source: what goes in; differs from `spec` in dtype at most.
        kind: `"mix"` with `coefficients`; `"element"` with `elements`; `"buffer"`, never averaged;
            `"copy"` of the only source.
        sources: the checkpoints that take part, in the order in which they are summed.
        name: of the tensor in the sources.
        positions: where the sources stand among the ingredients, for messages.
    """

    spec: TensorSpec
    source: TensorSpec
    kind: Literal["mix", "element", "buffer", "copy"]
    sources: tuple[Checkpoint, ...]
    positions: tuple[int, ...]
    coefficients: tuple[float, ...] = ()
    elements: tuple[Checkpoint, ...] = ()
    policy: BufferPolicy = field(default_factory=BufferPolicy)
    mask: MaskLike | None = None

    @property
    def n_bytes_read(self) -> int:
        """Bytes of all sources."""
        coefficients = sum(element[self.source.name].nbytes for element in self.elements)
        return len(self.sources) * self.source.nbytes + coefficients

    def item_bytes_in(self, index: int) -> int:
        """Bytes of an item of the source, or after the sources the element, at `index`."""
        if index < len(self.sources):
            return item_bytes(self.source)
        return item_bytes(self.elements[index - len(self.sources)][self.source.name])


def item_bytes(spec: TensorSpec) -> int:
    """Bytes of an item: an element, or a byte of elements that are narrower than one."""
    return max(1, spec.dtype.bits // 8)


def n_items(spec: TensorSpec) -> int:
    """How many items a tensor has."""
    return spec.nbytes // item_bytes(spec)


def make(
    rule: TensorRule,
    raws: Sequence[_Raw],
    out: _Raw,
    *,
    kept: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Put the bytes of some items of the tensor into `out`.

    Args:
        rule: how to make them.
        raws: the bytes of the same items of each source, then of each of `rule.elements`.
        out: takes their bytes.
        kept: False for items that the mask sets to zero; None when there is no mask.

    Raises:
        NonFiniteError: NaN or infinity in a source, or a value that the output cannot hold.
        MismatchError: buffers that differ and that the policy refuses to choose from.
        RecipeError: coefficients of elements that do not sum to 1.
    """
    sources = raws[: len(rule.sources)]
    if not rule.source.dtype.mixable:
        out[:] = _kept_as_is(rule, sources)
        return
    blocks = [raw.view(rule.source.dtype.storage) for raw in sources]
    result = out.view(rule.spec.dtype.storage)
    dtype, out_dtype = rule.source.dtype.value, rule.spec.dtype.value
    try:
        if rule.kind == "element":
            result[:] = _mixed_by_element(rule, blocks, raws[len(blocks) :])
        else:
            weights = rule.coefficients if rule.kind == "mix" else (1.0,)
            mix(blocks, weights, dtype=dtype, out_dtype=out_dtype, out=result)
    except Unrepresentable:
        _refuse_non_finite(rule, blocks)
    if kept is not None:
        # +0.0 and not value · 0, which would keep the sign.
        result[~kept] = 0


def _kept_as_is(rule: TensorRule, raws: Sequence[_Raw]) -> _Raw:
    combined = combine_buffers(rule.source, raws, rule.policy)
    if not isinstance(combined, int):
        return combined
    path, first = rule.sources[combined].path, rule.sources[0].path
    name, spec = rule.source.name, rule.source
    problem = Problem(path, name, f"other values than {first}", rule.policy.remedy(spec))
    raise MismatchError(
        f"{path} holds other values of {name} ({spec.dtype.value}) than {first}, and values of "
        f"this type are not averaged; expected {problem.expected}",
        [problem],
    )


def _mixed_by_element(
    rule: TensorRule, blocks: Sequence[npt.NDArray[np.generic]], raws: Sequence[_Raw]
) -> npt.NDArray[np.generic]:
    dtype = rule.elements[0][rule.source.name].dtype
    coefficients = [raw.view(dtype.storage) for raw in raws]
    total = sum(widen(block, dtype.value) for block in coefficients)
    worst = np.abs(np.asarray(total) - 1.0)
    if not (worst <= SUM_TOLERANCE).all():
        raise RecipeError(
            f"coefficients of elements of {rule.source.name} sum to values up to "
            f"{float(np.nanmax(worst)):.3g} away from 1 (expected within {SUM_TOLERANCE:g}): "
            "divide them by their sum"
        )
    return mix_elementwise(
        blocks,
        coefficients,
        dtype=rule.source.dtype.value,
        coefficient_dtype=dtype.value,
        out_dtype=rule.spec.dtype.value,
    )


def _refuse_non_finite(rule: TensorRule, blocks: Sequence[npt.NDArray[np.generic]]) -> NoReturn:
    name, dtype = rule.source.name, rule.source.dtype.value
    given = sorted(zip(rule.positions, rule.sources, blocks, strict=True), key=lambda item: item[0])
    for _, source, block in given:
        if not finite(block, dtype):
            n_bad = int((~np.isfinite(widen(block, dtype))).sum())
            raise NonFiniteError(
                f"{source.path}: tensor {name} holds NaN or infinity ({n_bad} of {block.size} "
                "values looked at); expected numbers: leave this ingredient out",
                path=source.path,
                tensor=name,
            ) from None
    sizes = [float(np.abs(widen(block, dtype)).max()) for _, _, block in given]
    largest = max(sizes)
    path = given[sizes.index(largest)][1].path
    raise NonFiniteError(
        f"tensor {name}: the mean does not fit {rule.spec.dtype.value} (values up to "
        f"{largest:.3g} in {path}); choose a wider output dtype, such as bf16 or f32",
        path=path,
        tensor=name,
    ) from None

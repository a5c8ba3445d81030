"""How a tensor of a mixture is made from those of its sources, block by block.

A rule sees the same part of every source at a time, so that memory does not grow with tensors. What
it has to know of whole tensors first (a norm, the largest tenth of all changes) it finds in
`Rule.prepare`. A rule that needs all of a tensor at once, such as one that takes singular values,
says so by `is_whole`. Another rule is a frozen dataclass in a file of its own and an entry in
`RULES`; rules from outside the package are added by `register_rule`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from stockpot._options import options_of
from stockpot._types import JSON
from stockpot.errors import MismatchError, NonFiniteError, Problem, RecipeError
from stockpot.formats.base import Checkpoint
from stockpot.formats.quantised import BEFORE_CODES, is_code
from stockpot.mixing.coefficients import SUM_TOLERANCE
from stockpot.mixing.mask import Mask, NonzeroMask
from stockpot.tensors.rounding import Array, finite, narrow, widen
from stockpot.tensors.spec import DType, TensorSpec
from stockpot.tensors.sums import Unrepresentable, mix, mix_elementwise
from stockpot.tensors.trim import Stored

Raw = npt.NDArray[np.uint8]
_F64 = npt.NDArray[np.float64]

PIECE = 1 << 17
"""Elements that are worked on at a time: what is hashed is still in the cache when it is summed."""

WRAPPER_COUNTERS = frozenset({"n_averaged", "num_updates", "step", "initted", "queue_ptr"})
"""Last parts of the names of counters that wrappers which average, and queues, keep as tensors."""

_INTEGERS = frozenset(
    {DType.I64, DType.I32, DType.I16, DType.I8, DType.U64, DType.U32, DType.U16, DType.U8}
)


class Rule(ABC):
    """How one tensor is made of several. Final subclasses are frozen dataclasses.

    Fields declared by `option` are what a record keeps of a rule; they have to be plain values.

    Attributes:
        name: as records and `RULES` name it.
        is_linear: whether the result is Σ cᵢ·θᵢ, which its coefficients describe in full.
        is_whole: whether it is given whole tensors, and memory has to hold them.
        needs_full_rank: whether it gives weight to directions in which nothing was moved: of
            low-rank updates those hold rounding errors alone.
        prepare_bytes: memory that `prepare` takes at most.
    """

    name: ClassVar[str]
    is_linear: ClassVar[bool] = False
    is_whole: ClassVar[bool] = False
    needs_full_rank: ClassVar[bool] = False
    prepare_bytes: ClassVar[int] = 0

    @property
    def uses_base(self) -> bool:
        """Whether blocks of the base follow those of the ingredients."""
        return False

    def prepare(self, tensors: Sequence[TensorPlan]) -> Rule:
        """This rule with what it has to know of `tensors`, all that it will make, beforehand.

        Called once, when values are first computed. `tensor.inputs[i].raw(tensor.source.name)`
        reads.
        """
        del tensors
        return self

    def of(self, name: str) -> Rule:
        """The rule of tensor `name`: this one, unless tensors have rules of their own."""
        del name
        return self

    @abstractmethod
    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        """Put the bytes of some items of `tensor` into `out`.

        Args:
            tensor: which tensor of the mixture it is.
            blocks: the bytes of the same items of each of `tensor.inputs`.
            out: takes their bytes, of type `tensor.spec.dtype`.
            start: which item of the tensor is the first of them.

        Raises:
            Unrepresentable: a source holds NaN or infinity, or the result does not fit; `store`
                raises it.
        """

    def to_json(self) -> dict[str, JSON]:
        """A JSON object from which `rule_from_json` makes an equal rule."""
        options = option_names(type(self))
        return {"name": self.name, **{name: getattr(self, name) for name in options}}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of a mixture: what goes in, by which rule, and what comes out.

    Attributes:
        spec: what comes out.
        source: what goes in; differs from `spec` in dtype at most.
        rule: how it is made.
        sources: the checkpoints that take part, in the order in which they are summed.
        positions: where the sources stand among the ingredients, for messages.
        coefficients: one for each source, where the rule has any.
        beside: what is read beside the sources: a coefficient for each element, or the base.
        mask: what is set to zero afterwards.
        inputs: everything that is read: `sources`, then `beside`.
        dtypes: of the tensor in each input.
        item_sizes: bytes of an item of each input.
    """

    spec: TensorSpec
    source: TensorSpec
    rule: Rule
    sources: tuple[Checkpoint, ...]
    positions: tuple[int, ...]
    coefficients: tuple[float, ...] = ()
    beside: tuple[Checkpoint, ...] = ()
    mask: Mask | NonzeroMask | None = None
    inputs: tuple[Checkpoint, ...] = field(init=False, repr=False)
    dtypes: tuple[DType, ...] = field(init=False, repr=False)
    item_sizes: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Asked for every unit and piece, and there are thousands of tensors.
        inputs = (*self.sources, *self.beside)
        name = self.source.name
        dtypes = tuple(checkpoint[name].dtype for checkpoint in inputs)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "dtypes", dtypes)
        object.__setattr__(self, "item_sizes", tuple(max(1, d.bits // 8) for d in dtypes))

    @property
    def is_written(self) -> bool:
        """Whether the only source writes the tensor itself, as it is."""
        if not isinstance(self.rule, Copy) or self.mask is not None or self.spec != self.source:
            return False
        return self.sources[0].writes(self.source.name)

    @property
    def n_bytes_read(self) -> int:
        """Bytes of all inputs."""
        return sum(checkpoint[self.source.name].nbytes for checkpoint in self.inputs)

    @property
    def n_items(self) -> int:
        """How many items the tensor has."""
        return self.source.nbytes // item_bytes(self.source)

    def stored(self, blocks: Sequence[Raw]) -> list[Stored]:
        """Blocks of the inputs in their stored types."""
        return [
            Stored(block.view(dtype.storage), dtype.value)
            for block, dtype in zip(blocks, self.dtypes, strict=True)
        ]

    def stored_output(self, out: Raw) -> Stored:
        """Bytes of the output in its stored type."""
        return Stored(out.view(self.spec.dtype.storage), self.spec.dtype.value)

    def values(self, blocks: Sequence[Raw]) -> list[_F64]:
        """Blocks of the inputs as float64, exactly."""
        return [widen(*one) for one in self.stored(blocks)]

    def typed(self, blocks: Sequence[Raw]) -> tuple[list[Array], DType]:
        """Blocks of the sources in one type: their own, or the narrowest that holds all exactly."""
        dtypes = self.dtypes[: len(self.sources)]
        first = dtypes[0]
        if all(dtype is first for dtype in dtypes):
            return [block.view(first.storage) for block in blocks], first
        common = DType.F64 if DType.F64 in dtypes else DType.F32
        return [
            widen(block.view(dtype.storage), dtype.value).astype(common.storage, copy=False)
            for block, dtype in zip(blocks, dtypes, strict=True)
        ], common

    def store(self, values: _F64, out: Raw) -> None:
        """Round `values` once, into the bytes `out`.

        Raises:
            Unrepresentable: they are not finite in the type of the output.
        """
        result = narrow(values, self.spec.dtype.value)
        if not finite(result, self.spec.dtype.value):
            raise Unrepresentable(None)
        out.view(self.spec.dtype.storage)[:] = result

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Items `start` to `stop`, in the pieces that the rule is given."""
        step = max(1, stop - start) if self.rule.is_whole else PIECE
        for first in range(start, stop, step):
            yield first, min(first + step, stop)

    def make(
        self,
        blocks: Sequence[Raw],
        out: Raw,
        kept: npt.NDArray[np.bool_] | None,
        start: int = 0,
    ) -> None:
        """Put the bytes of some items from `start` on into `out`, +0.0 where `kept` is False.

        Raises:
            NonFiniteError: NaN or infinity in a source, or a value that the output cannot hold.
            MismatchError: buffers that differ and that the policy refuses to choose from.
            RecipeError: coefficients of elements that do not sum to 1.
        """
        try:
            self.rule.combine(self, blocks, out, start)
        except Unrepresentable:
            if not self._is_constant:
                _refuse_non_finite(self, blocks)
            out[:] = blocks[0]
        if kept is not None and self.spec.dtype.mixable:
            # +0.0 and not value · 0, which would keep the sign.
            out.view(self.spec.dtype.storage)[~kept] = 0

    @property
    def _is_constant(self) -> bool:
        """Whether all hold the same, with infinities that are meant: a mask of −∞."""
        name = self.source.name
        first, *others = self.inputs if self.rule.uses_base else self.sources
        if self.spec != first[name] or not all(other[name] == self.spec for other in others):
            return False
        raw = first.raw(name)
        values = widen(raw.view(self.spec.dtype.storage), self.spec.dtype.value)
        masks = not np.isnan(values).any() and not np.isposinf(values).any()
        return bool(masks and all(np.array_equal(other.raw(name), raw) for other in others))


def item_bytes(spec: TensorSpec) -> int:
    """Bytes of an item: an element, or a byte of elements that are narrower than one."""
    return max(1, spec.dtype.bits // 8)


@dataclass(frozen=True)
class Linear(Rule):
    """Σ cᵢ·θᵢ, rounded once; the sum of equal coefficients is divided once."""

    name = "linear"
    is_linear = True

    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        """See `Rule.combine`."""
        _mix(tensor, blocks[: len(tensor.sources)], tensor.coefficients, out)


@dataclass(frozen=True)
class Elementwise(Rule):
    """Σ cᵢ ⊙ θᵢ with a coefficient for each element, read beside the sources."""

    name = "elementwise"
    is_linear = True

    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        """See `Rule.combine`.

        Raises:
            RecipeError: the coefficients of an element do not sum to 1.
        """
        n = len(tensor.sources)
        dtype, name = tensor.beside[0][tensor.source.name].dtype, tensor.source.name
        coefficients: list[Array] = [raw.view(dtype.storage) for raw in blocks[n:]]
        total = sum(widen(block, dtype.value) for block in coefficients)
        worst = np.abs(np.asarray(total) - 1.0)
        if not (worst <= SUM_TOLERANCE).all():
            raise RecipeError(
                f"coefficients of elements of {name} sum to values up to "
                f"{float(np.nanmax(worst)):.3g} away from 1 (expected within {SUM_TOLERANCE:g}): "
                "divide them by their sum"
            )
        typed, own = tensor.typed(blocks[:n])
        out.view(tensor.spec.dtype.storage)[:] = mix_elementwise(
            typed,
            coefficients,
            dtype=own.value,
            coefficient_dtype=dtype.value,
            out_dtype=tensor.spec.dtype.value,
        )


@dataclass(frozen=True)
class Copy(Rule):
    """The only source: tensors of the donor, and overrides."""

    name = "copy"

    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        """See `Rule.combine`; values are rounded where the output has another type."""
        if tensor.source.dtype.mixable:
            _mix(tensor, blocks, (1.0,), out)
        else:
            out[:] = blocks[0]


def _mix(
    tensor: TensorPlan, blocks: Sequence[Raw], coefficients: Sequence[float], out: Raw
) -> None:
    typed, dtype = tensor.typed(blocks)
    mix(
        typed,
        coefficients,
        dtype=dtype.value,
        out_dtype=tensor.spec.dtype.value,
        out=out.view(tensor.spec.dtype.storage),
    )


@dataclass(frozen=True)
class BufferPolicy:
    """What to do with tensors that are not averaged.

    Equal ones are copied. Counters that differ become the largest. Anything else that differs is
    refused, because neither value would be right, unless `differing` says what is wanted.

    Attributes:
        counters: last parts of the names of integer counters, beside those of known wrappers.
        differing: `"refuse"`; `"first"` takes the value of the first ingredient that takes part, as
            given; `"maximum"` the largest integer; `"base"` that of the base.
    """

    counters: tuple[str, ...] = ("num_batches_tracked",)
    differing: Literal["refuse", "first", "maximum", "base"] = "refuse"

    def __post_init__(self) -> None:
        if self.differing not in ("refuse", "first", "maximum", "base"):
            raise ValueError(
                f"differing is {self.differing!r}; expected 'refuse', 'first', 'maximum' or 'base'"
            )

    def to_json(self) -> dict[str, JSON]:
        """A JSON object, the keyword arguments of the constructor."""
        return {"counters": list(self.counters), "differing": self.differing}

    def takes_maximum(self, spec: TensorSpec) -> bool:
        """Whether differing values of this tensor become the largest."""
        if spec.dtype not in _INTEGERS:
            return False
        last = spec.name.rsplit(".", 1)[-1]
        known = last in WRAPPER_COUNTERS and spec.numel <= 1
        return self.differing == "maximum" or known or last in self.counters

    def remedy(self, spec: TensorSpec) -> str:
        """What a person can do about differing values of this tensor."""
        if is_code(spec):
            return f"of quantised weights {BEFORE_CODES}"
        if spec.dtype in _INTEGERS or spec.dtype is DType.BOOL:
            return (
                "equal values in all, or a choice: --buffers first, base or maximum "
                "(Reconcile(buffers=…))"
            )
        return (
            "equal values in all: quantised tensors are not averaged, dequantise them first "
            "(fp8 with scales: --dequantise)"
        )


@dataclass(frozen=True)
class Buffers(Rule):
    """Tensors that are never averaged: integers, booleans, quantised values."""

    policy: BufferPolicy = field(default_factory=BufferPolicy)

    name = "buffers"

    @property
    def uses_base(self) -> bool:
        """Whether the policy is to take the base's values."""
        return self.policy.differing == "base"

    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        """See `Rule.combine`; blocks in the order given.

        Raises:
            MismatchError: they differ, and the policy refuses to choose.
        """
        n = len(tensor.sources)
        first, spec = blocks[0], tensor.source
        blocks, beside = blocks[:n], blocks[n:]
        other = next((i for i, one in enumerate(blocks) if not np.array_equal(one, first)), None)
        if other is not None and is_code(spec):  # of one model, beside the means of its scales
            _refuse_different(tensor, other, self.policy.remedy(spec))
        if other is None or (
            self.policy.differing == "first" and not self.policy.takes_maximum(spec)
        ):
            out[:] = first
        elif beside and not self.policy.takes_maximum(spec):
            out[:] = beside[0]
        elif self.policy.takes_maximum(spec):
            typed = [block.view(spec.dtype.storage) for block in blocks]
            out[:] = np.maximum.reduce(typed).view(np.uint8)
        else:
            _refuse_different(tensor, other, self.policy.remedy(spec))


def _refuse_different(tensor: TensorPlan, other: int, remedy: str) -> NoReturn:
    path, first = tensor.sources[other].path, tensor.sources[0].path
    name, dtype = tensor.source.name, tensor.source.dtype.value
    raise MismatchError(
        f"{path} holds other values of {name} ({dtype}) than {first}, and values of "
        f"this type are not averaged; expected {remedy}",
        [Problem(path, name, f"other values than {first}", remedy)],
    )


def _refuse_non_finite(tensor: TensorPlan, blocks: Sequence[Raw]) -> NoReturn:
    name, n = tensor.source.name, len(tensor.sources)
    with_base = tensor.rule.uses_base
    values = tensor.values(blocks)[: None if with_base else n]
    order = [*sorted(range(n), key=lambda i: tensor.positions[i]), *range(n, len(values))]
    for i in order:
        n_bad = int((~np.isfinite(values[i])).sum())
        if n_bad:
            path = tensor.inputs[i].path
            raise NonFiniteError(
                f"{path}: tensor {name} holds NaN or infinity ({n_bad} of {values[i].size} "
                "values looked at); expected numbers: leave this ingredient out",
                path=path,
                tensor=name,
            ) from None
    sizes = [float(np.abs(values[i]).max()) for i in order]
    path = tensor.inputs[order[sizes.index(max(sizes))]].path
    raise NonFiniteError(
        f"tensor {name}: the mean does not fit {tensor.spec.dtype.value} (values up to "
        f"{max(sizes):.3g} in {path}); choose a wider output dtype, such as bf16 or f32",
        path=path,
        tensor=name,
    ) from None


def option_names(rule: type[Rule]) -> list[str]:
    """The fields of a rule that its record keeps."""
    return [item.name for item, _ in options_of(rule)]

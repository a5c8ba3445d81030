"""Do checkpoints share an initialisation? One test, for everything that inspects or averages.

Only bytes and NumPy: nothing here imports torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.base import tied_everywhere
from stockpot.tensors.rounding import widen
from stockpot.tensors.spec import TensorSpec

if TYPE_CHECKING:
    from stockpot.formats.base import Checkpoint
    from stockpot.mixing.ingredients import Ingredients


_F64 = npt.NDArray[np.float64]

SHARED_ABOVE = 0.5
DIFFERENT_BELOW = 0.1
"""Medians measured on real models: 0.92 to 0.99 between a base and its fine-tuned versions or
within a run, at most 0.08 across seeds, 0.11 to 0.13 from the random start of a run to its end."""

_LEAST_ELEMENTS = 16  # fewer correlate by chance
_SAMPLE = 1 << 16  # leading elements of a tensor; so many leave a chance correlation below 0.02
_QUICK_ELEMENTS, _QUICK_TENSORS = 4096, 16
_BLOCK_BYTES = 32 << 20
_EQUAL_BYTES = 1024


@dataclass(frozen=True, slots=True)
class SameInitialisation:
    """Whether two checkpoints seem to come from one initialisation: evidence, never proof.

    Attributes:
        correlation: median over tensors of two or more dimensions of the centred correlation of
            their values, -1..1; None where no tensor says anything.
        n_tensors: how many tensors were compared.
        verdict: `"shared"`, `"different"` or `"unclear"`.
        text: the verdict in a sentence.
    """

    correlation: float | None
    n_tensors: int
    verdict: str
    text: str


@dataclass(frozen=True, slots=True)
class InitialisationCheck:
    """Two checkpoints, the evidence of a shared initialisation, and what does not take part in it.

    Attributes:
        path: the checkpoint in question.
        other: the one that it is compared with.
        evidence: over all tensors.
        unrelated: names of tensors that correlate no more than by chance, lowest first. Where the
            rest comes from one initialisation, they are most often a head of its own.
        lowest: their lowest correlation; None without any.
    """

    path: str
    other: str
    evidence: SameInitialisation
    unrelated: tuple[str, ...] = ()
    lowest: float | None = None

    @property
    def is_different(self) -> bool:
        """Whether the two do not seem to share an initialisation at all."""
        return self.evidence.verdict == "different"

    def warning(self) -> str:
        """What to say of a pair that `is_different`."""
        return (
            f"warning: {self.path} does not seem to share the initialisation of {self.other} "
            f"(median correlation of their tensors {self.evidence.correlation:.2f}; evidence, "
            "never proof): an average of the two is most likely worthless"
        )


def assess(correlations: Sequence[float]) -> SameInitialisation:
    """What the centred correlations of the tensors of two or more dimensions say, by their median.

    Norms and biases are left out: they begin at 1 and 0 in every model. The cosine of whole models
    does not tell, for the same reason.

    >>> assess([0.97, 0.93, 0.99]).text
    'seems to share the initialisation of the base (evidence, never proof): correlation 0.97'
    >>> assess([0.03, -0.01, 0.05]).verdict
    'different'
    """
    if not correlations:
        text = "no tensor of two or more dimensions shows whether it shares the initialisation"
        return SameInitialisation(None, 0, "unclear", text)
    middle = float(np.median(correlations))
    if middle >= SHARED_ABOVE:
        verdict, text = "shared", "seems to share the initialisation of the base"
    elif middle < DIFFERENT_BELOW:
        verdict, text = "different", "does not seem to share the initialisation of the base"
    else:
        verdict, text = "unclear", "has another initialisation than the base, or moved far from it"
    text += f" (evidence, never proof): correlation {middle:.2f}"
    return SameInitialisation(middle, len(correlations), verdict, text)


def same_initialisation(
    one: Checkpoint,
    other: Checkpoint,
    *,
    max_elements: int | None = None,
    max_tensors: int | None = None,
) -> SameInitialisation:
    """Whether `other` seems to come from the same initialisation as `one`.

    Args:
        one: the base, or any other checkpoint.
        other: compared with it.
        max_elements: look at no more than these first elements of each tensor, for a quick check of
            large models; 65,536 leave a correlation by chance below 0.02.
        max_tensors: and at no more than about so many tensors, evenly chosen.
    """
    found = tensor_correlations(one, other, max_elements=max_elements, max_tensors=max_tensors)
    return assess(list(found.values()))


def quick_evidence(one: Checkpoint, other: Checkpoint) -> SameInitialisation:
    """`same_initialisation` from the first values of some tensors: a few pages of each file."""
    return same_initialisation(one, other, max_elements=_QUICK_ELEMENTS, max_tensors=_QUICK_TENSORS)


def warn_of_other_starts(ingredients: Ingredients) -> list[str]:
    """A warning for each ingredient whose first values do not correlate with the donor's.

    The donor is the base, or without one the first ingredient. Adapters start from their base.
    """
    donor = ingredients.donor
    found = [
        InitialisationCheck(given.path, donor.path, quick_evidence(donor, given))
        for given in ingredients
        if given is not donor and not _is_on(given, donor)
    ]
    return [check.warning() for check in found if check.is_different]


def _is_on(one: Checkpoint, base: Checkpoint) -> bool:
    """Whether `one` is an adapter of `base`: then it starts from it, whatever its values."""
    return isinstance(one, Adapter) and base in (one.base, one.given_base)


def warn_of_exchanged_base(checkpoints: Sequence[Checkpoint], base: Checkpoint) -> list[str]:
    """A warning where one of `checkpoints` lies where their base should, by their first values.

    Seen from what all were fine-tuned from, the others lie in different directions (cosine at most
    ½), and the model that was given as the base is about as far away as they are. Seen from a run
    they do not, nor from a checkpoint in the middle of a run. At least three are needed. An adapter
    is none of them: it starts from its base.
    """
    checkpoints = [one for one in checkpoints if not _is_on(one, base)]
    if len(checkpoints) < 3:
        return []
    names = [name for name in comparable(checkpoints, base) if tells_start(base[name])]
    gram = np.zeros((len(checkpoints), len(checkpoints)))
    looked = names[:: max(1, len(names) // _QUICK_TENSORS)]
    for sums, not_finite in sums_by_tensor(looked, [base, *checkpoints], _QUICK_ELEMENTS):
        if not not_finite:
            gram += sums.gram
    # A row and a column of zeros: the base does not move from itself.
    padded = np.pad(gram, ((1, 0), (1, 0)))
    for i, one in enumerate(checkpoints, 1):
        from_it = padded - padded[i] - padded[:, [i]] + padded[i, i]
        others = [j for j in range(len(padded)) if j != i]
        lengths = np.sqrt(np.maximum(np.diag(from_it), 0))[others]
        if not lengths.all():
            continue
        cosines = from_it[np.ix_(others, others)] / np.outer(lengths, lengths)
        highest = np.max(cosines - 2 * np.eye(len(others)))
        if highest <= 0.5 and lengths[0] ** 2 >= 0.5 * np.median(lengths[1:] ** 2):
            return [
                f"warning: {one.path} lies between {base.path} and all the others, as what they "
                "were fine-tuned from does, and the base does not: are the two exchanged? "
                "Give as the base what all the others started from"
            ]
    return []


def have_equal_samples(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether the first values of all tensors are equal: most likely the two are one model."""
    wanted = [(name, 0, _EQUAL_BYTES) for name in one]
    return dict(one) == dict(other) and all(
        np.array_equal(*heads)
        for heads in zip(one.pieces(wanted), other.pieces(wanted), strict=True)
    )


def check_initialisation(
    checkpoint: Checkpoint, other: Checkpoint, names: Iterable[str] | None = None
) -> InitialisationCheck:
    """Compare every tensor by its leading values, and find those that are unrelated.

    A tensor of n elements is unrelated when its correlation is below 0.1, or below three standard
    errors of chance (3/√n) if that is more.

    Args:
        checkpoint: such as a fine-tuned model.
        other: such as its base.
        names: compare only these; None means all that the two hold alike.
    """
    found = tensor_correlations(other, checkpoint, names=names, max_elements=_SAMPLE)
    evidence = assess(list(found.values()))
    unrelated = {name: c for name, c in found.items() if c < _chance(other[name].numel)}
    lowest_first = tuple(sorted(unrelated, key=lambda name: unrelated[name]))
    lowest = min(unrelated.values(), default=None)
    return InitialisationCheck(checkpoint.path, other.path, evidence, lowest_first, lowest)


def _chance(numel: int) -> float:
    return min(SHARED_ABOVE, max(DIFFERENT_BELOW, 3 / math.sqrt(min(numel, _SAMPLE))))


def tensor_correlations(
    one: Checkpoint,
    other: Checkpoint,
    *,
    names: Iterable[str] | None = None,
    max_elements: int | None = None,
    max_tensors: int | None = None,
) -> dict[str, float]:
    """Centred correlation of each tensor of two or more dimensions that both hold alike.

    Left out are norms and biases, tensors that are constant or not finite, those of fewer than
    16 elements, and those that are spread twenty times as wide in one as in the other.
    """
    wanted = comparable([other], one)
    if names is not None:
        among = set(names)
        wanted = [name for name in wanted if name in among]
    wanted = [name for name in wanted if tells_start(one[name])]
    step = 1 if max_tensors is None else max(1, len(wanted) // max_tensors)
    found: dict[str, float] = {}
    looked = wanted[::step]
    each = sums_by_tensor(looked, [one, other], max_elements)
    for name, (sums, not_finite) in zip(looked, each, strict=True):
        (correlation,) = [None] if not_finite else sums.correlations()
        if correlation is not None:
            found[name] = correlation
    return found


def tells_start(spec: TensorSpec) -> bool:
    """Whether the values of such a tensor can tell one initialisation from another."""
    return len(spec.shape) >= 2 and spec.numel >= _LEAST_ELEMENTS


def comparable(
    checkpoints: Sequence[Checkpoint],
    base: Checkpoint,
    parameters: Collection[str] | None = None,
) -> list[str]:
    """Names of the parameters that all hold in one shape and as floating-point numbers.

    What is one tensor in all of the models stands once. Running statistics and other buffers are no
    parameters: they follow the data, and their size has nothing to do with how far training moved
    the model.

    Args:
        checkpoints: compared with `base`.
        base: decides the order.
        parameters: what the model calls its parameters; where it is not known (None), tensors are
            buffers by their names.
    """
    repeated = {name for tied in tied_everywhere([base, *checkpoints]) for name in tied[1:]}

    def is_parameter(name: str) -> bool:
        return not is_buffer(name, base) if parameters is None else name in parameters

    return [
        name
        for name, spec in base.items()
        if spec.dtype.mixable and spec.numel and name not in repeated and is_parameter(name)
        if all(
            (other := checkpoint.get(name)) is not None
            and other.dtype.mixable
            and other.shape == spec.shape
            for checkpoint in checkpoints
        )
    ]


_BUFFERS = {
    *("running_mean", "running_var", "num_batches_tracked"),  # of batch and instance norms
    *("masked_bias", "attn_mask", "inv_freq", "relative_position_index"),  # of attention
}


def is_buffer(name: str, names: Container[str] = ()) -> bool:
    """Whether a tensor is a buffer, as far as its name shows; `names` are all of the model.

    >>> is_buffer("layer1.0.bn1.running_var"), is_buffer("layer1.0.bn1.weight")
    (True, False)
    >>> is_buffer("conv.weight_u", ["conv.weight_orig", "conv.weight_u"]), is_buffer("rnn.weight_u")
    (True, False)
    """
    last = name.rpartition(".")[2]
    # Power iteration of torch.nn.utils.spectral_norm.
    of_spectral_norm = last[-2:] in ("_u", "_v") and f"{name[:-2]}_orig" in names
    return last in _BUFFERS or of_spectral_norm


@dataclass(slots=True)
class TensorSums:
    """Sums over one tensor of k checkpoints, of values less the first one's first block mean.

    Attributes:
        n: elements.
        gram: inner products of the differences to the first checkpoint, (k − 1, k − 1).
        base_square: sum of the squared values of the first checkpoint, not shifted.
        first: sums of the values (k,).
        square: sums of their squares (k,).
        cross: sums of their products with those of the first checkpoint (k,).
        shift: what was taken from all values for `first`, `square` and `cross`.
    """

    n: int
    gram: _F64
    base_square: float
    first: _F64
    square: _F64
    cross: _F64
    shift: float = 0.0

    def correlations(self) -> Iterator[float | None]:
        """Centred correlation of each checkpoint's values with the first one's.

        None where one is constant, or spread more than twenty times as wide as the other: what
        training made of values near 0 does not resemble them, and has them for its start.
        """
        variance = self.square / self.n - (self.first / self.n) ** 2
        covariance = self.cross / self.n - self.first / self.n * (self.first[0] / self.n)
        # Below this a tensor is constant, and what is left is rounding.
        least = 1e-12 * (self.square / self.n)
        for i in range(1, len(self.first)):
            small, large = sorted((variance[0], variance[i]))
            if variance[0] <= least[0] or variance[i] <= least[i] or large > 400 * small:
                yield None
            else:
                yield float(covariance[i] / math.sqrt(variance[0] * variance[i]))


_Reader = Callable[[int, int], npt.NDArray[np.uint8]]


def sums_by_tensor(
    names: Sequence[str], checkpoints: Sequence[Checkpoint], max_elements: int | None = None
) -> Iterator[tuple[TensorSums, list[str]]]:
    """The sums over each of the tensors, and the paths that are not finite.

    Args:
        names: of tensors that all hold in one shape; they are read a block at a time.
        checkpoints: their values are compared with those of the first.
        max_elements: no more than these first elements of each tensor.
    """

    def readers(checkpoint: Checkpoint) -> Iterator[_Reader]:
        if max_elements is None:
            yield from map(checkpoint.reader, names)
            return
        sizes = [checkpoint[name].dtype.storage.itemsize for name in names]
        heads = [(name, 0, max_elements * size) for name, size in zip(names, sizes, strict=True)]
        for head in checkpoint.pieces(heads):
            yield functools.partial(_part, head)

    for name, *read in zip(names, *map(readers, checkpoints), strict=True):
        yield _tensor_sums(name, checkpoints, read, max_elements)


def _part(data: npt.NDArray[np.uint8], start: int, stop: int) -> npt.NDArray[np.uint8]:
    return data[start:stop]


def _tensor_sums(
    name: str,
    checkpoints: Sequence[Checkpoint],
    readers: Sequence[_Reader],
    max_elements: int | None,
) -> tuple[TensorSums, list[str]]:
    k, numel = len(checkpoints), checkpoints[0][name].numel
    n = numel if max_elements is None else min(numel, max_elements)
    dtypes = [checkpoint[name].dtype for checkpoint in checkpoints]
    step = max(1024, _BLOCK_BYTES // (8 * k))
    sums = TensorSums(n, np.zeros((k - 1, k - 1)), 0.0, np.zeros(k), np.zeros(k), np.zeros(k))
    shift: float | None = None
    values = np.empty((k, min(step, n)))
    for start in range(0, n, step):
        block = values[:, : min(step, n - start)]
        for row, read, dtype in zip(block, readers, dtypes, strict=True):
            size = dtype.storage.itemsize
            raw = read(start * size, min(start + step, n) * size)
            row[:] = widen(raw.view(dtype.storage), dtype.value)
        finite = [bool(np.isfinite(row).all()) for row in block]
        if not all(finite):
            return sums, [c.path for c, fine in zip(checkpoints, finite, strict=True) if not fine]
        sums.base_square += float(block[0] @ block[0])
        sums.shift = shift = float(block[0].mean()) if shift is None else shift
        block -= shift
        sums.first += block.sum(axis=1)
        sums.square += np.einsum("ij,ij->i", block, block)
        sums.cross += block @ block[0]
        moves = block[1:]
        moves -= block[0]
        sums.gram += moves @ moves.T
    return sums, []

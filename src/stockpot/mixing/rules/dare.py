"""DARE: drop entries of task vectors at random, and rescale those that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from stockpot._options import option
from stockpot.mixing.rules.base import TensorPlan
from stockpot.mixing.rules.order import kept_at_random
from stockpot.mixing.rules.task_vectors import F64, Shares, TrimmedTaskVectors
from stockpot.tensors.trim import Trim


@dataclass(frozen=True, kw_only=True)
class RandomTrim(TrimmedTaskVectors):
    """Entries are kept at random: whether one is, follows from its place and not from the order.

    It is drawn from a counter keyed by the seed, the content of the model and the name of the
    tensor (`kept_at_random`), so two copies of a model keep the same entries.

    Attributes:
        seed: of the random numbers.
    """

    rescale: Literal["none", "expected", "l1"] = option(
        "expected", help="Make up for what is lost."
    )
    seed: int = option(0, help="Of the entries that are kept.")

    def findings(self, tensors: Sequence[TensorPlan]) -> dict[Any, Any]:
        """Position → fingerprint."""
        sources = {p: one for t in tensors for p, one in zip(t.positions, t.sources, strict=True)}
        return {position: one.fingerprint for position, one in sources.items()}

    def probability(self, tensor: TensorPlan, i: int, start: int, stop: int) -> float | F64:
        """With what probability entries are kept."""
        del start, stop
        return self.keep_of(tensor.positions[i])

    def trim(self, tensor: TensorPlan, i: int, start: int, stop: int) -> Trim:
        """See `TrimmedTaskVectors.trim`."""
        share = self.probability(tensor, i, start, stop)
        content = self.prepared[tensor.positions[i]]
        key = f"{self.seed}\n{content}\n{tensor.source.name}"
        kept = kept_at_random(key, start, stop - start, share)
        return Trim(kept=kept, share=share if self.rescale == "expected" else 1.0)


@final
@dataclass(frozen=True, kw_only=True)
class Dare(RandomTrim):
    """θ₀ + λ Σ wᵢ·δᵢ, δᵢ the task vector with a random share `keep` of it, divided by `keep`.

    With `signs="elected"` what is left is merged as by TIES. mergekit rescales each tensor to the
    L1 norm it had (`rescale="l1"`), and draws from one global generator, so that its choice of
    entries depends on the order of tensors; ours cannot be the same entries.

    Reference: Yu et al. 2024, arXiv 2311.03099, §3.
    """

    name = "dare"

    keep: Shares = option(0.1, help="Share of the entries of a task vector that is kept.")

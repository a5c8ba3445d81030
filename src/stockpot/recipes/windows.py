"""How checkpoints along a run are weighted: one family of windows, and averages made afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from stockpot._types import JSON

Kind = Literal["mean", "ema", "1-sqrt", "cosine", "power", "given", "post-hoc"]
Order = Literal["sequential", "reversed", "random"]


@dataclass(frozen=True, slots=True)
class Window:
    """Checkpoints `start`, `start + stride`, …, `count` of them, and how they are weighted.

    A decay of the learning rate that multiplies the update at the time t (0 at the window's
    beginning, 1 at its end) by w(t) leads to the weights cᵢ = F(tᵢ₊₁) − F(tᵢ) with F = 1 − w, by
    summation by parts; the time of a checkpoint is its own step. `"mean"`: F = t, a rate that falls
    linearly. `"1-sqrt"`: F = √t. `"cosine"`: F = (1 − cos πt)/2. `"power"`: F = t^(γ+1), an
    exponential average of the length that grows with training. `"given"`: w is `rates` at even
    times, and linear in between. `"ema"`: weights proportional to
    decayⁿ⁻¹⁻ⁱ, whatever the steps. `"post-hoc"`: of stored power averages, see
    `post_hoc_coefficients`.

    Attributes:
        kind: the family's member.
        start: position of the first checkpoint.
        stride: positions from one to the next.
        count: how many.
        decay: of `"ema"`; γ of `"power"`; σ_rel of `"post-hoc"`.
        order: `"sequential"`; `"reversed"` and `"random"` give the same weights to others.
        seed: of the random order.
        rates: of `"given"`: from 1 to 0, what is left of the learning rate.

    Reference: Tian et al. 2025, arXiv 2507.17634.

    >>> Window("mean", start=1, stride=2, count=2).coefficients(5)
    (0.0, 0.5, 0.0, 0.5, 0.0)
    >>> [round(c, 4) for c in Window("1-sqrt", 0, 1, 20).coefficients(20)][::19]
    [0.2236, 0.0253]
    """

    kind: Kind
    start: int
    stride: int
    count: int
    decay: float | None = None
    order: Order = "sequential"
    seed: int = 0
    rates: tuple[float, ...] = ()

    def members(self) -> range:
        """Positions of the checkpoints."""
        return range(self.start, self.start + self.stride * self.count, self.stride)

    def coefficients(
        self, n_checkpoints: int, steps: Sequence[float] | None = None
    ) -> tuple[float, ...]:
        """One for each of `n_checkpoints`; they sum to 1.

        Args:
            n_checkpoints: of the run.
            steps: steps or tokens at which each was saved; None for even spacing. What came
                before the first of all took as long as what came after it, or what there was.
        """
        if self.kind == "ema":
            powers = [float(self.decay or 0) ** (self.count - 1 - i) for i in range(self.count)]
            weights = [power / math.fsum(powers) for power in powers]
        else:
            # n equal shares are 1/n to the last bit, which differences are not.
            even = self.kind == "mean" and (steps is None or self._is_even(steps))
            grown = [self._grown(t) for t in self._times(steps)]
            weights = [1 / self.count] * self.count if even else list(np.diff(grown))
        if self.order == "reversed":
            weights = weights[::-1]
        elif self.order == "random":
            rng = np.random.default_rng([self.seed, self.count])
            weights = [weights[i] for i in rng.permutation(self.count)]
        found = [0.0] * n_checkpoints
        for position, weight in zip(self.members(), weights, strict=True):
            found[position] = float(weight)
        return tuple(found)

    def _grown(self, t: float) -> float:
        """F(t)."""
        if self.kind == "1-sqrt":
            return math.sqrt(t)
        if self.kind == "given":
            return 1 - float(np.interp(t, np.linspace(0, 1, len(self.rates)), self.rates))
        if self.kind == "cosine":
            return (1 - math.cos(math.pi * t)) / 2
        return t ** (float(self.decay or 0) + 1) if self.kind == "power" else t

    def _times(self, steps: Sequence[float] | None) -> list[float]:
        """0, and the time of each checkpoint, the last 1."""
        if steps is None:
            return [i / self.count for i in range(self.count + 1)]
        first = self._beginning(steps)
        length = steps[self.members()[-1]] - first
        return [0.0, *((steps[i] - first) / length for i in self.members())]

    def _beginning(self, steps: Sequence[float]) -> float:
        """The step at which the decay begins: that of the checkpoint before the window."""
        before, after = self.start - self.stride, self.start + self.stride
        if before >= 0:
            return steps[before]
        own = steps[self.start]
        gap = steps[after] - own if after < len(steps) else own or 1.0
        return own - gap if own == 0 else max(0.0, own - gap)

    def _is_even(self, steps: Sequence[float]) -> bool:
        """Whether all checkpoints of the window are equally far apart."""
        times = [self._beginning(steps), *(steps[i] for i in self.members())]
        return len({b - a for a, b in pairwise(times)}) == 1

    @property
    def label(self) -> str:
        """How it is weighted: `"mean"`, or `"ema"` with its decay, and another order."""
        named = self.kind if self.decay is None else f"{self.kind} {self.decay:g}"
        return named if self.order == "sequential" else f"{named}, {self.order}"

    def to_json(self) -> dict[str, JSON]:
        """All fields; the order and its seed only where it is not that of the run."""
        found: dict[str, JSON] = {**asdict(self), "rates": list(self.rates)}
        if self.order == "sequential":
            del found["order"], found["seed"]
        if self.kind != "given":
            del found["rates"]
        return found


def gamma_of(sigma_rel: float) -> float:
    """γ of the power average whose profile t^γ has the relative width σ_rel.

    σ_rel = √((γ + 1) / ((γ + 2)²(γ + 3))).

    >>> [round(gamma_of(sigma), 4) for sigma in (0.05, 0.1, 0.15, 0.2)]
    [16.9722, 6.9372, 3.5579, 1.8262]

    Raises:
        ValueError: σ_rel is not between 0 and √(1/12), the width of the plain mean.

    Reference: Karras et al. 2024, arXiv 2312.02696, eq. 3 and 123.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma-rel is {sigma_rel:g}; expected more than 0 and less than 0.2886")
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


def post_hoc_coefficients(
    stored: Sequence[tuple[float, float]], sigma_rel: float, step: float
) -> list[float]:
    """Weights of stored power averages that make the one of another length, by least squares.

    The profile of an average with γ at the step t is (γ+1)·τ^γ/t^(γ+1) for τ ≤ t. The weights make
    the nearest profile to the wanted one, in the sense of ∫(p − q)²; they are divided by their sum.
    A stored average gives itself, up to rounding.

    >>> [round(c, 6) + 0.0 for c in post_hoc_coefficients([(0.05, 8), (0.1, 8)], 0.1, 8)]
    [0.0, 1.0]

    Args:
        stored: (σ_rel, step) of each.
        sigma_rel: wanted.
        step: at which it is wanted.

    Reference: Karras et al. 2024, arXiv 2312.02696, algorithm 3.
    """
    gammas = np.array([gamma_of(sigma) for sigma, _ in stored] + [gamma_of(sigma_rel)])
    times = np.array([float(t) for _, t in stored] + [float(step)])
    products = np.array(
        [[_product(g, s, h, t) for h, t in zip(gammas, times, strict=True)]
         for g, s in zip(gammas, times, strict=True)]
    )  # fmt: skip
    found, *_ = np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=None)
    return [float(c) for c in found / found.sum()]


def _product(g: float, s: float, h: float, t: float) -> float:
    """∫ of the product of two profiles; as ratios, which do not overflow."""
    least = min(s, t)
    scale = (least / s) ** g * (least / t) ** h * least / (s * t)
    return float((g + 1) * (h + 1) / (g + h + 1) * scale)

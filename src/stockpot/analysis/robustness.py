"""Effective robustness: how far a model lies above what its accuracy alone would give.

Models that were trained on one distribution only lie on a line when both accuracies are drawn on
logit axes; a model above that line is robust beyond being accurate.

Reference: Taori et al. 2020, arXiv 2007.00644, §2; Wortsman et al. 2021, arXiv 2109.01903, §2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_BASELINES = 4
"""Fewer baselines give no fit: two points make a perfect line, three hardly test it."""


@dataclass(frozen=True, slots=True)
class BaselineFit:
    """β(x) = σ(slope · logit x + intercept), and how well the baselines follow it.

    Attributes:
        slope: a.
        intercept: b.
        residuals: of each baseline, logit y − (a·logit x + b), in the order given.
        r_squared: share of the variance of logit y that the line explains; 1 where there is none.
        reference: the baselines' accuracies on the reference distribution.
        shift: and under shift.
    """

    slope: float
    intercept: float
    residuals: tuple[float, ...]
    r_squared: float
    reference: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many baselines were fitted."""
        return len(self.residuals)

    def expected(self, reference: float) -> float:
        """β: the accuracy under shift that a baseline of this reference accuracy has.

        Raises:
            ValueError: `reference` is not inside 0..1.
        """
        from scipy import special

        return float(special.expit(self.slope * logit(reference) + self.intercept))

    def effective_robustness(self, reference: float, shift: float) -> float:
        """ρ = Acc_shift − β(Acc_ref), as a fraction; 0 for a model on the line.

        Beyond the accuracies of the baselines β is an extrapolation.
        """
        return shift - self.expected(reference)

    def covers(self, reference: float) -> bool:
        """Whether `reference` lies between the baselines' accuracies, so that β interpolates."""
        return min(self.reference) <= reference <= max(self.reference)


def logit(value: float) -> float:
    """ln(x / (1 − x)).

    >>> logit(0.5)
    0.0

    Raises:
        ValueError: `value` is not inside 0..1; the ends have no logit.
    """
    from scipy import special

    if not 0 < value < 1:
        raise ValueError(f"{value} has no logit; expected an accuracy inside 0..1, ends excluded")
    return float(special.logit(value))


def fit_baseline(reference: Sequence[float], shift: Sequence[float]) -> BaselineFit:
    """Least squares of logit(shift) on logit(reference) over baseline models.

    The baselines must be trained on the reference distribution only (other widths, other lengths
    of training): a model that has seen more is what is measured against them.

    >>> fit = fit_baseline([0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 0.7, 0.8])
    >>> round(fit.slope, 9), round(fit.effective_robustness(0.6, 0.65), 9)
    (1.0, 0.05)

    Args:
        reference: accuracy of each baseline on the reference distribution, a fraction.
        shift: its accuracy under shift.

    Raises:
        ValueError: fewer than four baselines, unequal numbers, accuracies without a logit, or
            baselines that all have the same reference accuracy.
    """
    if len(reference) != len(shift):
        raise ValueError(f"{len(reference)} reference accuracies and {len(shift)} under shift; "
                         "expected one pair for each baseline")  # fmt: skip
    if len(reference) < MIN_BASELINES:
        raise ValueError(
            f"{len(reference)} baseline{'s' * (len(reference) != 1)} give no fit; expected at "
            f"least {MIN_BASELINES}, better 8, trained on the reference distribution only (other "
            "widths, other lengths)"
        )
    x, y = (np.array([logit(v) for v in values]) for values in (reference, shift))
    if np.ptp(x) == 0:
        raise ValueError(
            f"all baselines have the reference accuracy {reference[0]}; expected different ones"
        )
    slope, intercept = np.polyfit(x, y, 1).tolist()
    residuals = y - (slope * x + intercept)
    spread = float(((y - y.mean()) ** 2).sum())
    return BaselineFit(
        slope=slope,
        intercept=intercept,
        residuals=tuple(residuals.tolist()),
        r_squared=1.0 if spread == 0 else 1 - float((residuals**2).sum()) / spread,
        reference=tuple(map(float, reference)),
        shift=tuple(map(float, shift)),
    )

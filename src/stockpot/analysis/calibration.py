"""Whether a classifier's confidence can be believed: ECE, NLL, Brier score, temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from stockpot.evaluate.stats import Floats

Binning = Literal["mass", "width"]

BETA_RANGE = (1e-2, 1e2)
"""Inverse temperatures that `fit_beta` considers; without a bound, a model that is always right
would be infinitely sure."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Examples of similar confidence; `low` and `high` bound it, the rest are means over them."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How calibrated one model is on one data set, its logits multiplied by `beta`.

    Attributes:
        ece: expected calibration error over 15 bins of equal mass.
        ece_width: the same over 15 bins of equal width.
        nll: mean negative log likelihood in nats.
        brier: mean squared distance to the one-hot target, 0..2.
        bins: of equal mass: the reliability diagram.
    """

    beta: float
    ece: float
    ece_width: float
    nll: float
    brier: float
    bins: tuple[ReliabilityBin, ...]


def log_softmax(logits: npt.ArrayLike, *, beta: float = 1.0) -> Floats:
    """log softmax(β·f) of logits (n, C), in float64."""
    from scipy import special

    found: Floats = special.log_softmax(beta * np.asarray(logits, np.float64), axis=-1)
    return found


def top_confidence(
    logits: npt.ArrayLike, targets: npt.ArrayLike, *, beta: float = 1.0
) -> tuple[Floats, Floats]:
    """Probability of the predicted class, and 1.0 where it is the target: both float64 (n,).

    >>> confidence, right = top_confidence([[0.0, 0.0], [0.0, 50.0]], [0, 0])
    >>> confidence.tolist(), right.tolist()
    ([0.5, 1.0], [1.0, 0.0])
    """
    rows = log_softmax(logits, beta=beta)
    predicted = rows.argmax(-1)
    confidence: Floats = np.exp(rows[np.arange(len(rows)), predicted])
    return confidence, (predicted == np.asarray(targets)).astype(np.float64)


def reliability(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    n_bins: int = 15,
    bins: Binning = "mass",
) -> tuple[ReliabilityBin, ...]:
    """Mean confidence and accuracy of examples of similar confidence; empty bins are left out.

    Bins of equal mass hold the same number of examples within one. Examples of equal confidence
    share their mean accuracy, so that no result depends on the order of examples. Bins of equal
    width are [0, 1/n), [1/n, 2/n), …, [1 − 1/n, 1].

    Args:
        confidence: probability of the predicted class, (n,), in 0..1.
        correct: 1 where the prediction is right, else 0, (n,).

    Raises:
        ValueError: no examples, unequal lengths, or confidences outside 0..1.
    """
    p, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if p.ndim != 1 or p.shape != right.shape or p.size == 0:
        raise ValueError(f"confidence {p.shape} and correct {right.shape}; expected equal (n ≥ 1,)")
    if not ((p >= 0) & (p <= 1 + 1e-9)).all():
        raise ValueError(f"confidences reach from {p.min():g} to {p.max():g}; expected 0 to 1")
    order = np.argsort(p, kind="stable")
    p, right = p[order], _shared_by_equals(p[order], right[order])
    if bins == "mass":
        parts = np.array_split(np.arange(len(p)), n_bins)
        ranges = [(float(p[part[0]]), float(p[part[-1]])) for part in parts if len(part)]
        parts = [part for part in parts if len(part)]
    else:
        index = np.minimum((p * n_bins).astype(np.int64), n_bins - 1)
        filled = np.unique(index)
        parts = [np.flatnonzero(index == i) for i in filled]
        ranges = [(float(i) / n_bins, float(i + 1) / n_bins) for i in filled]
    return tuple(
        ReliabilityBin(low, high, len(part), float(p[part].mean()), float(right[part].mean()))
        for (low, high), part in zip(ranges, parts, strict=True)
    )


def _shared_by_equals(p: Floats, right: Floats) -> Floats:
    """`right` with its mean over each run of equal values in the sorted `p`."""
    _, group, counts = np.unique(p, return_inverse=True, return_counts=True)
    sums = np.bincount(group, weights=right)
    shared: Floats = (sums / counts)[group]
    return shared


def expected_calibration_error(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    n_bins: int = 15,
    bins: Binning = "mass",
) -> float:
    """ECE = Σ_b n_b/n · |acc(b) − conf(b)|, over bins of equal mass or, if asked for, width.

    It is not a proper score, and biased upwards on few examples: read it beside NLL and Brier.

    >>> expected_calibration_error([0.75] * 4, [1, 1, 1, 0])
    0.0
    >>> expected_calibration_error([1.0] * 4, [1, 1, 0, 0])
    0.5

    Reference: Guo et al. 2017, arXiv 1706.04599, eq. 3; equal mass: Nguyen and O'Connor 2015,
    arXiv 1508.05154.
    """
    parts = reliability(confidence, correct, n_bins=n_bins, bins=bins)
    n = sum(part.n for part in parts)
    return sum(part.n / n * abs(part.accuracy - part.confidence) for part in parts)


def negative_log_likelihood(
    logits: npt.ArrayLike, targets: npt.ArrayLike, *, beta: float = 1.0
) -> float:
    """Mean of −log softmax(β·f(x))_y in nats.

    >>> round(negative_log_likelihood([[0.0, 0.0]], [1]), 6)
    0.693147
    """
    rows = log_softmax(logits, beta=beta)
    return float(-rows[np.arange(len(rows)), np.asarray(targets)].mean())


def brier_score(logits: npt.ArrayLike, targets: npt.ArrayLike, *, beta: float = 1.0) -> float:
    """Mean of Σ_c (p_c − 1[y = c])²: 0 for certainty that is right, 2 for certainty that is wrong.

    >>> brier_score([[0.0, 0.0]], [1])
    0.5

    Reference: Brier, Monthly Weather Review 78 (1950), in its original form over all classes.
    """
    p = np.exp(log_softmax(logits, beta=beta))
    p[np.arange(len(p)), np.asarray(targets)] -= 1.0
    return float((p**2).sum(-1).mean())


def fit_beta(logits: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """The inverse temperature β that minimises the NLL of β·f; the temperature is 1/β.

    The NLL is convex in β, so the root of its derivative E[Σ_c p_c f_c − f_y] is the minimum; it is
    looked for within `BETA_RANGE`. Fit it on held-out data and report on other data. It changes no
    prediction, and so no accuracy.

    >>> round(fit_beta([[2.0, 0.0]] * 4, [0, 0, 0, 1]), 3)  # sigmoid(2 β) = 3/4
    0.549

    Reference: Guo et al. 2017, arXiv 1706.04599, §4.2.
    """
    from scipy.optimize import brentq

    f = np.asarray(logits, np.float64)
    given = f[np.arange(len(f)), np.asarray(targets)]

    def slope(log_beta: float) -> float:
        p = np.exp(log_softmax(f, beta=float(np.exp(log_beta))))
        # A class that is masked with −∞ has no share in the mean: its probability is 0.
        weighted = np.multiply(p, f, out=np.zeros_like(p), where=p > 0)
        return float((weighted.sum(-1) - given).mean())

    low, high = np.log(BETA_RANGE)
    if slope(low) >= 0:
        return BETA_RANGE[0]
    if slope(high) <= 0:
        return BETA_RANGE[1]
    return float(np.exp(brentq(slope, low, high, xtol=1e-10)))


def calibration(
    logits: npt.ArrayLike, targets: npt.ArrayLike, *, beta: float = 1.0, n_bins: int = 15
) -> Calibration:
    """All measures of one model on one data set.

    Args:
        logits: (n, C).
        targets: class indices (n,).
        beta: multiplies the logits; fit it with `fit_beta` on other data.
        n_bins: of both kinds of ECE.
    """
    confidence, right = top_confidence(logits, targets, beta=beta)
    return Calibration(
        beta=beta,
        ece=expected_calibration_error(confidence, right, n_bins=n_bins),
        ece_width=expected_calibration_error(confidence, right, n_bins=n_bins, bins="width"),
        nll=negative_log_likelihood(logits, targets, beta=beta),
        brier=brier_score(logits, targets, beta=beta),
        bins=reliability(confidence, right, n_bins=n_bins),
    )

"""Averaged weights against averaged outputs: what they differ by, and what theory expects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stockpot.analysis.calibration import fit_beta, log_softmax, negative_log_likelihood
from stockpot.evaluate.stats import Floats


@dataclass(frozen=True, slots=True)
class SoupMinusEnsemble:
    """Loss of the soup less loss of the ensemble of two models, in nats at inverse temperature β.

    Attributes:
        alpha: share of the second model in both.
        beta: calibrates the soup; multiplies all logits.
        soup: loss of the soup.
        ensemble: loss of the ensemble (of the weighted mean of the logits).
        measured: soup − ensemble; negative means that the soup is better.
        curvature: the first term, −a(1−a)/2 · d²L_soup/da²: convex losses favour the soup.
        spread: the second, a(1−a)/2 · β² · E_x Var_{Y∼softmax(βf_a)}[Δf_Y]: always ≥ 0.
        approximation: their sum.
    """

    alpha: float
    beta: float
    soup: float
    ensemble: float
    measured: float
    curvature: float
    spread: float
    approximation: float


def variance_under(logits: npt.ArrayLike, difference: npt.ArrayLike, *, beta: float = 1.0) -> float:
    """Mean over x of Var_{Y∼softmax(β·logits)}[difference_Y], both (n, C).

    >>> variance_under([[0.0, 0.0]], [[1.0, 3.0]])
    1.0
    """
    p = np.exp(log_softmax(logits, beta=beta))
    # Where the probability is 0, as of a class masked with −∞, the difference may be no number.
    d = np.where(p > 0, np.asarray(difference, np.float64), 0.0)
    centred = d - (p * d).sum(-1, keepdims=True)
    return float((p * centred**2).sum(-1).mean())


def soup_minus_ensemble(
    alpha: float,
    *,
    ends: tuple[npt.ArrayLike, npt.ArrayLike],
    path: Sequence[npt.ArrayLike],
    step: float,
    targets: npt.ArrayLike,
) -> SoupMinusEnsemble:
    """Measured difference and approximation at one point between two models.

    L_soup(a) − L_ens(a) ≈ a(1−a)/2 · ( −d²/da² L_soup(a) + β²·E_x Var_{Y∼softmax(βf_a)}[Δf_Y(x)] ),
    Δf = f(x; θ₁) − f(x; θ₀'). The second derivative is the central difference of width `step`. It
    holds where the outputs are nearly linear in the weights between the two: for moderate learning
    rates.

    Args:
        alpha: a in (0, 1).
        ends: logits (n, C) of the first and the second model.
        path: logits of the averaged weights at alpha − step, alpha and alpha + step.
        step: h of the central difference.
        targets: classes (n,).

    Raises:
        ValueError: alpha ± step leaves 0..1, or there are not three points.

    Reference: Wortsman et al. 2022, arXiv 2203.05482, §4.
    """
    if len(path) != 3 or not step > 0 or alpha - step < -1e-9 or alpha + step > 1 + 1e-9:
        raise ValueError(
            f"{len(path)} points around alpha {alpha:g} with step {step:g}; expected 3 within 0..1"
        )
    first, second = (np.asarray(end, np.float64) for end in ends)
    beta = fit_beta(path[1], targets)
    low, soup, high = (negative_log_likelihood(f, targets, beta=beta) for f in path)
    together: Floats = (1 - alpha) * first + alpha * second
    ensemble = negative_log_likelihood(together, targets, beta=beta)
    half = alpha * (1 - alpha) / 2
    curvature = -half * (low - 2 * soup + high) / step**2
    spread = half * beta**2 * variance_under(path[1], second - first, beta=beta)
    return SoupMinusEnsemble(
        alpha, beta, soup, ensemble, soup - ensemble, curvature, spread, curvature + spread
    )

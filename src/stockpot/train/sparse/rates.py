"""How sparse the model is to be after each phase, and during a ramp."""

from __future__ import annotations

from stockpot.errors import RecipeError


def phase_sparsities(sparsity: float, n_phases: int) -> tuple[float, ...]:
    """Sparsity after each phase, when every phase prunes the same share of what remains.

    s_p = 1 − (1 − s)^(p/n), for p = 1 … n; the last one is `sparsity` itself.

    >>> [round(s, 3) for s in phase_sparsities(0.98, 3)]
    [0.729, 0.926, 0.98]

    Raises:
        RecipeError: a sparsity outside [0, 1), or no phase.

    Reference: Zimmer et al. 2023, arXiv 2306.16788.
    """
    if not 0 <= sparsity < 1:
        raise RecipeError(
            f"sparsity is {sparsity}, expected a fraction from 0 (dense) to below 1, such as 0.9"
        )
    if n_phases < 1:
        raise RecipeError(f"{n_phases} phases, expected at least 1 (1 is one-shot)")
    earlier = (1 - (1 - sparsity) ** (p / n_phases) for p in range(1, n_phases))
    return (*earlier, sparsity)


def n_zeros(sparsity: float, n_weights: int) -> int:
    """Zeros that make `n_weights` weights as sparse as `sparsity`: round(s·N), halves to even.

    >>> n_zeros(0.9, 15)
    14
    """
    return round(sparsity * n_weights)


def gradual_sparsity(sparsity: float, done: float) -> float:
    """Sparsity at the fraction `done` (clipped to [0, 1]) of a cubic ramp: s·(1 − (1 − done)³).

    >>> gradual_sparsity(0.8, 0.5), gradual_sparsity(0.8, 2)
    (0.7000000000000001, 0.8)

    Reference: Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """
    return float(sparsity * (1 - (1 - min(max(done, 0.0), 1.0)) ** 3))

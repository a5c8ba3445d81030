"""The Karcher mean: the point of a sphere that is nearest to several others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def karcher_coefficients(
    gram: npt.ArrayLike, *, max_iterations: int = 10, tolerance: float = 1e-5
) -> list[float]:
    """Coefficients of k vectors whose sum is their Karcher mean, with the mean of their norms.

    Directions are averaged on the unit sphere (by steps along the mean of the tangents), norms as
    numbers. All inner products that it takes follow from those of the vectors, so that tensors are
    read once. Of two vectors of equal norm it is SLERP at 1/2. Vectors of norm 0 pull the norm
    down, and have no direction.

    >>> [round(c, 6) for c in karcher_coefficients([[1, 0], [0, 1]])]
    [0.707107, 0.707107]
    >>> karcher_coefficients([[4.0, 4], [4, 4]])  # two copies
    [0.5, 0.5]

    Args:
        gram: inner products ⟨θᵢ, θⱼ⟩ about the origin, (k, k).
        max_iterations: steps, at most.
        tolerance: length of a step, in radians, below which the mean is found.

    Reference: Karcher 1977, "Riemannian center of mass and mollifier smoothing".
    """
    products = np.asarray(gram, np.float64)
    k = len(products)
    norms = np.sqrt(np.diag(products))
    known = norms > tolerance
    if k == 1 or not known.any():
        return [1.0 if k == 1 else 0.0] * k
    safe = np.where(known, norms, 1.0)
    cosines = products / np.outer(safe, safe)
    share = known / known.sum()
    mean = _unit(share, cosines, tolerance)
    if mean is None:
        mean = np.eye(k)[int(np.argmax(known))]
    for _ in range(max_iterations):
        tangent = np.zeros(k)
        for i in np.flatnonzero(known):
            cosine = float(np.clip(cosines[i] @ mean, -1.0, 1.0))
            angle = float(np.arccos(cosine))
            if angle >= tolerance:
                tangent += share[i] * (angle / np.sin(angle)) * (np.eye(k)[i] - cosine * mean)
        step = _length(tangent, cosines)
        if step < tolerance:
            break
        mean = np.cos(step) * mean + np.sin(step) / step * tangent
        found = _unit(mean, cosines, tolerance)
        mean = mean if found is None else found
    scale = float(norms.mean())
    return [float(c) for c in scale * mean / safe]


def _length(vector: npt.NDArray[np.float64], cosines: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(max(0.0, float(vector @ cosines @ vector))))


def _unit(
    vector: npt.NDArray[np.float64], cosines: npt.NDArray[np.float64], tolerance: float
) -> npt.NDArray[np.float64] | None:
    length = _length(vector, cosines)
    return None if length < tolerance else vector / length

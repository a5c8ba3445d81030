"""The Karcher mean from inner products alone, against one of the vectors themselves."""

from __future__ import annotations

import numpy as np
import pytest

from stockpot.recipes.karcher import karcher_coefficients
from stockpot.recipes.slerp import spherical_coefficients


def mean_of(vectors: np.ndarray, n_steps: int = 200) -> np.ndarray:
    """By steps along the mean of the logarithms, on the vectors; the norm is the mean norm."""
    norms = np.linalg.norm(vectors, axis=1)
    units = vectors / norms[:, None]
    mean = units.mean(0) / np.linalg.norm(units.mean(0))
    for _ in range(n_steps):
        angles = np.arccos(np.clip(units @ mean, -1, 1))
        logs = [a / np.sin(a) * (u - np.cos(a) * mean) for a, u in zip(angles, units, strict=True)]
        step = np.mean(logs, axis=0)
        size = np.linalg.norm(step)
        if size < 1e-14:
            break
        mean = np.cos(size) * mean + np.sin(size) * step / size
    return norms.mean() * mean


@pytest.mark.parametrize("k", [2, 3, 6])
def test_it_is_the_mean_on_the_sphere(k: int) -> None:
    vectors = np.random.default_rng(k).normal(size=(k, 40)) + 1
    found = karcher_coefficients(vectors @ vectors.T, tolerance=1e-12, max_iterations=100)
    np.testing.assert_allclose(found @ vectors, mean_of(vectors), atol=1e-9)


def test_of_two_vectors_of_one_norm_it_is_slerp() -> None:
    gram = np.array([[4.0, 1.2], [1.2, 4.0]])
    expected = spherical_coefficients(0.3, 0.5)
    np.testing.assert_allclose(karcher_coefficients(gram), expected, rtol=1e-12)


def test_vectors_without_a_direction() -> None:
    assert karcher_coefficients([[9.0]]) == [1.0]
    assert karcher_coefficients([[0.0, 0], [0, 0]]) == [0.0, 0.0]
    assert karcher_coefficients([[9.0, 0], [0, 0]]) == [0.5, 0.0]
    opposite = karcher_coefficients([[1.0, -1], [-1, 1]])
    assert opposite[0] - opposite[1] == pytest.approx(1.0)

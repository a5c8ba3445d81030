"""Planes, angles and inner products, held against the vectors themselves."""

from __future__ import annotations

import numpy as np
import pytest

from stockpot.analysis.geometry import (
    angle,
    inner_products,
    measure_geometry,
    plane_through,
    tensor_grams,
)
from stockpot.formats.memory import from_state_dict

MOVES = np.random.default_rng(0).normal(size=(5, 40))  # five moves in a space of 40 weights
GRAM = MOVES @ MOVES.T
ONE_HOT = np.eye(5)


def test_the_basis_is_orthonormal_and_holds_the_two_points() -> None:
    plane = plane_through(GRAM, ONE_HOT[0], ONE_HOT[1])
    assert plane.project(ONE_HOT[0]).y == 0  # to the last bit, though it is computed
    u, v = plane.first @ MOVES, plane.second @ MOVES
    assert np.array([[u @ u, u @ v], [v @ u, v @ v]]) == pytest.approx(np.eye(2), abs=1e-12)
    a, b = plane.project(ONE_HOT[0]), plane.project(ONE_HOT[1])
    assert (a.x, a.y) == pytest.approx((np.linalg.norm(MOVES[0]), 0), abs=1e-9)
    assert b.y > 0
    assert a.distance == pytest.approx(0, abs=1e-6)
    assert b.distance == pytest.approx(0, abs=1e-6)


def test_projection_is_least_squares_in_the_full_space() -> None:
    plane = plane_through(GRAM, ONE_HOT[0], np.full(5, 0.2))
    spanned = np.stack([plane.first @ MOVES, plane.second @ MOVES], 1)
    for point in (ONE_HOT[3], np.array([0.1, -0.4, 0.7, 0.2, 0.0])):
        target = point @ MOVES
        expected, residual, *_ = np.linalg.lstsq(spanned, target, rcond=None)
        found = plane.project(point)
        assert (found.x, found.y) == pytest.approx(tuple(expected))
        assert found.distance == pytest.approx(np.sqrt(residual[0]))


def test_a_place_in_the_plane_and_its_projection_are_inverse() -> None:
    plane = plane_through(GRAM, ONE_HOT[2], ONE_HOT[4])
    found = plane.project(plane.at(1.25, -3.5))
    assert (found.x, found.y, found.distance) == pytest.approx((1.25, -3.5, 0), abs=1e-6)


@pytest.mark.parametrize("other", [[2.0, 0, 0, 0, 0], [0.0] * 5])
def test_three_points_on_a_line_are_refused(other: list[float]) -> None:
    with pytest.raises(ValueError, match="plane"):
        plane_through(GRAM, ONE_HOT[0], other)


def test_angles_are_those_of_the_vectors() -> None:
    a, b = MOVES[0], MOVES[1] - 0.5 * MOVES[2]
    expected = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    assert angle(GRAM, ONE_HOT[0], [0, 1, -0.5, 0, 0]) == pytest.approx(expected)
    assert angle(GRAM, ONE_HOT[0], np.zeros(5)) is None
    assert angle(GRAM, ONE_HOT[0], ONE_HOT[0]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_inner_products_of_tensors_are_those_of_their_values_and_sum_to_the_whole(seed) -> None:
    rng = np.random.default_rng(seed)
    shapes = {"a.weight": (7, 3), "a.bias": (7,), "b.weight": (4, 5), "b.running_var": (4,)}
    base, *runs = (
        {name: rng.normal(size=shape) + 2 for name, shape in shapes.items()} for _ in range(4)
    )
    opened = [from_state_dict(run) for run in runs]
    grams = tensor_grams(opened, from_state_dict(base))
    assert set(grams) == {"a.weight", "a.bias", "b.weight"}
    for name, gram in grams.items():
        moves = np.stack([(run[name] - base[name]).ravel() for run in runs])
        assert gram == pytest.approx(moves @ moves.T)
    whole = measure_geometry(opened, from_state_dict(base))
    assert sum(grams.values()) == pytest.approx(whole.gram)
    for name in shapes:
        values = np.stack([run[name].ravel() for run in runs])
        assert inner_products(name, opened) == pytest.approx(values @ values.T)
        about = inner_products(name, opened, origin=from_state_dict(base))
        assert about == pytest.approx(grams.get(name, about))


def test_tensors_that_are_not_finite_have_no_inner_product() -> None:
    good, bad = {"w": np.ones((2, 2))}, {"w": np.array([[1.0, np.nan], [0.0, 1.0]])}
    opened = [from_state_dict(one) for one in (good, bad)]
    assert tensor_grams([opened[1]], opened[0]) == {}

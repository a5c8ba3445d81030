from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import stockpot
from stockpot.errors import RecipeError
from stockpot.recipes import Slerp
from stockpot.recipes.slerp import spherical_coefficients

ONE = {"w": np.array([[3.0, 0.1], [0.1, 0.1]]), "v": np.array([1.0, 2.0])}
OTHER = {"w": np.array([[0.1, 3.0], [0.1, 0.1]]), "v": np.array([1.0, 2.0])}


def between(t: float, one=ONE, other=OTHER) -> dict[str, np.ndarray]:
    mixture = Slerp(t=t).cook([one, other]).mixture
    return {name: mixture.read(name).numpy() for name in mixture}


def test_coefficients_worked_by_hand() -> None:
    """At right angles halfway: sin 45 / sin 90 = .7071; at 60 degrees a third: sin 40 / sin 60."""
    assert spherical_coefficients(0.0, 0.5) == pytest.approx((0.5**0.5, 0.5**0.5))
    expected = (
        np.sin(np.radians(40)) / np.sin(np.radians(60)),
        np.sin(np.radians(20)) / np.sin(np.radians(60)),
    )
    assert spherical_coefficients(0.5, 1 / 3) == pytest.approx(expected)


def test_the_ends_are_the_checkpoints_bit_for_bit(lab) -> None:
    for t, path in ((0.0, lab.paths[0]), (1.0, lab.paths[1])):
        soup = Slerp(t=t).cook(lab.paths[:2])
        assert all(torch.equal(soup.mixture.read(n), v) for n, v in load_file(path).items())
        assert soup.selected == (path,)


@pytest.mark.parametrize("t", [0.1, 0.25, 0.5, 0.9])
def test_tensors_of_equal_norm_keep_their_norm_and_swapping_mirrors_t(t: float) -> None:
    found = between(t)
    assert np.linalg.norm(found["w"]) == pytest.approx(np.linalg.norm(ONE["w"]))
    assert found["v"] == pytest.approx(ONE["v"])
    mirrored = between(1 - t, OTHER, ONE)
    assert mirrored["w"] == pytest.approx(found["w"])


@pytest.mark.parametrize("seed", range(4))
def test_angles_are_those_of_the_tensors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = ({"w": rng.normal(size=(9, 7)) + 5, "b": rng.normal(size=8)} for _ in range(2))
    degrees = Slerp().cook([one, other]).details.degrees
    for name in one:
        a, b = one[name].ravel(), other[name].ravel()
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert degrees[name] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-6)


def test_opposite_tensors_and_other_numbers_of_checkpoints_are_refused(lab) -> None:
    with pytest.raises(RecipeError, match="opposite directions"):
        between(0.5, ONE, {"w": -ONE["w"], "v": ONE["v"]})
    with pytest.raises(RecipeError, match=r"found 3 and t = 0\.3"):
        Slerp(t=0.3).cook(lab.paths[:3])
    with pytest.raises(RecipeError, match="found 1"):
        Slerp().cook(lab.paths[:1])
    with pytest.raises(RecipeError, match="0 to 1"):
        Slerp(t=1.5)


def test_with_a_base_it_is_the_slerp_of_the_task_vectors() -> None:
    base = {"w": np.full((2, 2), 5.0), "v": np.array([7.0, 7.0])}
    one, other = ({n: value + base[n] for n, value in run.items()} for run in (ONE, OTHER))
    mixture = Slerp(t=0.3).cook([one, other], base=base).mixture
    for name, value in between(0.3).items():
        np.testing.assert_allclose(mixture.read(name).numpy(), base[name] + value, rtol=1e-12)


def test_of_more_than_two_it_is_the_karcher_mean_which_keeps_the_mean_norm(lab) -> None:
    """Of unit vectors along the axes, the mean points along the diagonal."""
    runs = [{"w": np.eye(3)[i]} for i in range(3)]
    found = Slerp().cook(runs).mixture.read("w").numpy()
    np.testing.assert_allclose(found, np.full(3, 3**-0.5), rtol=1e-12)
    soup = Slerp().cook(lab.paths[:3])
    assert len(soup.selected) == 3
    for name, spec in stockpot.open(lab.base).items():
        norms = [load_file(path)[name].double().norm() for path in lab.paths[:3]]
        if len(spec.shape) == 2:
            assert soup.mixture.read(name).double().norm() == pytest.approx(
                np.mean(norms), rel=1e-5
            )


def test_two_copies_give_the_copy(lab) -> None:
    soup = Slerp().cook([lab.paths[0]] * 2)
    assert all(torch.equal(soup.mixture.read(n), v) for n, v in load_file(lab.paths[0]).items())


def test_a_head_that_is_tied_in_the_first_alone_goes_by_its_own_angle() -> None:
    weight = torch.tensor([[1.0, 2.0], [-2.0, 1.0]], dtype=torch.float64)
    one = {"embedding": weight, "head": weight}
    other = {"embedding": weight.clone(), "head": weight.flip(0)}
    found = Slerp().cook([one, other])
    share = 0.5**0.5  # at right angles: (1, 2, −2, 1) · (−2, 1, 1, 2) = 0
    assert found.mixture.read("head").numpy() == pytest.approx(
        share * (weight + other["head"]).numpy()
    )

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stockpot.errors import RecipeError
from stockpot.recipes import ModelStock, Uniform
from stockpot.recipes.model_stock import ModelStockDetails, share_of_mean


def gram_of(n: int, cosine: float, norms=None) -> np.ndarray:
    gram = np.full((n, n), cosine)
    np.fill_diagonal(gram, 1.0)
    scale = np.ones(n) if norms is None else np.array(norms)
    return gram * np.outer(scale, scale)


@pytest.mark.parametrize(
    ("n", "cosine", "share"),
    [
        (2, 0.5, 0.6667),
        (3, 0.2, 0.4286),
        (2, 0.0, 0.0),
        (5, 0.0, 0.0),
        (2, 1.0, 1.0),
        (4, 1.0, 1.0),
    ],
)
def test_worked_values(n: int, cosine: float, share: float) -> None:
    for norms in ("equal", "measured"):
        assert share_of_mean(gram_of(n, cosine), norms=norms) == pytest.approx(share, abs=5e-5)


def test_the_two_formulas_agree_for_equal_norms_only() -> None:
    gram = gram_of(3, 0.3, [1.0, 2.0, 4.0])
    assert share_of_mean(gram) == pytest.approx(3 * 0.3 / 1.6)
    apart = sum(gram[i, j] for i in range(3) for j in range(3) if i != j) / 6
    assert share_of_mean(gram, norms="measured") == pytest.approx(apart / (gram.sum() / 9))


def test_shares_stay_within_0_and_1_and_what_did_not_move_is_kept() -> None:
    assert share_of_mean(gram_of(2, -0.5)) == 0.0
    assert share_of_mean(gram_of(3, -0.5)) == 0.0
    assert share_of_mean(np.zeros((2, 2))) == share_of_mean(np.zeros((2, 2)), norms="measured") == 1
    assert share_of_mean(np.diag([1.0, 0.0])) == 1.0


START = np.full((2, 2), 10.0)
BASE = {"a": START, "b": START.copy(), "c": np.ones(3)}
AT_60_DEGREES = np.array([[[1.0, 0], [0, 0]], [[0.5, 3**0.5 / 2], [0, 0]]])
RUNS = [{"a": START + np.diag([2, 0]), "b": START + b, "c": np.ones(3)} for b in AT_60_DEGREES]


def test_each_tensor_goes_as_far_as_its_moves_agree() -> None:
    """`a` moved alike and goes to the mean; `b` at 60 degrees goes two thirds of the way."""
    soup = ModelStock().cook(RUNS, base=BASE)
    assert soup.details.shares == {"a": pytest.approx(1.0), "b": pytest.approx(2 / 3), "c": 1.0}
    assert soup.mixture.read("a").numpy() == pytest.approx(RUNS[0]["a"])
    mean = AT_60_DEGREES.mean(0)
    assert soup.mixture.read("b").numpy() == pytest.approx(START + mean * 2 / 3)
    assert soup.mixture.read("c").tolist() == [1.0, 1.0, 1.0]
    found = ModelStockDetails.from_json(json.loads(json.dumps(soup.to_json())))
    assert found == soup.details


@pytest.mark.parametrize("seed", range(4))
def test_it_lies_between_base_and_mean_and_is_independent_of_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = {"w": rng.normal(size=(6, 5)), "v": rng.normal(size=(3, 3))}
    runs = [
        {n: v + 0.1 * (rng.normal(size=v.shape) + 1) for n, v in base.items()} for _ in range(3)
    ]
    one, other = (ModelStock().cook(order, base=base) for order in (runs, runs[::-1]))
    mean = Uniform().cook(runs).mixture
    for name, share in one.details.shares.items():
        expected = share * mean.read(name).numpy() + (1 - share) * base[name]
        assert one.mixture.read(name).numpy() == pytest.approx(expected, rel=1e-12)
        assert other.details.shares[name] == pytest.approx(share, rel=1e-12)


def test_real_fine_tunes_are_scored_where_there_is_a_task(lab) -> None:
    soup = ModelStock().cook(lab.paths[:4], lab.task, base=lab.base)
    assert 0 < min(soup.details.shares.values()) <= max(soup.details.shares.values()) < 1
    assert soup.chosen_on is None
    assert soup.scores["test"].value > 0.5


def test_one_checkpoint_has_no_angle(lab) -> None:
    with pytest.raises(RecipeError, match="at least two"):
        ModelStock().cook(lab.paths[:1], base=lab.base)


def test_a_head_that_is_tied_in_the_base_alone_goes_by_its_own_angles() -> None:
    weight = torch.ones(4, 3, dtype=torch.float64)
    base = {"embedding": weight, "head": weight}
    moves = torch.zeros(2, 4, 3, dtype=torch.float64)
    moves[0, 0], moves[1, 1] = 1.0, 1.0
    runs = [{"embedding": weight + move, "head": weight + 0.5} for move in moves]
    soup = ModelStock().cook(runs, base=base)
    assert soup.details.shares == {"embedding": 0.0, "head": pytest.approx(1.0)}
    assert soup.mixture.read("head").numpy() == pytest.approx(runs[0]["head"].numpy())
    both = ModelStock().cook(
        [dict.fromkeys(base, run["embedding"]) for run in runs], base=base
    )  # tied in all: one tensor, one angle
    assert both.details.shares == {"embedding": 0.0}

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.metrics import cohen_kappa_score

from stockpot.analysis.diversity import (
    Override,
    cka_complement,
    diversity,
    kappa_complement,
    mean_kl,
    mean_margin,
    override,
    prediction_diversity,
)


def two_models(seed=0, n=200, c=5, scale=3.0):
    rng = np.random.default_rng(seed)
    f = scale * rng.normal(size=(n, c))
    return f, f + scale * rng.normal(size=(n, c)), rng.integers(0, c, n)


def centred_kernel_alignment(x, y):
    """CKA by its definition through kernels: HSIC(K, L) / sqrt(HSIC(K, K)·HSIC(L, L))."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


@pytest.mark.parametrize("seed", range(5))
def test_kappa_agrees_with_scikit_learn(seed):
    f, g, _ = two_models(seed)
    expected = 1 - cohen_kappa_score(f.argmax(1), g.argmax(1))
    assert kappa_complement(f.argmax(1), g.argmax(1)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_kl_agrees_with_scipy(scale):
    f, g, _ = two_models(1, scale=scale)
    expected = stats.entropy(special.softmax(f, 1), special.softmax(g, 1), axis=1).mean()
    assert mean_kl(f, g) == pytest.approx(expected, rel=1e-6)


def test_kl_is_that_of_its_first_argument():
    f, g, _ = two_models(2)
    assert mean_kl(f, g) != pytest.approx(mean_kl(g, f))
    assert mean_kl(f, f) == 0


def test_kl_of_a_class_that_is_ruled_out_adds_nothing():
    assert mean_kl([[0.0, -np.inf]], [[0.0, 0.0]]) == pytest.approx(np.log(2))


def test_classes_that_are_masked_out_take_no_part():
    f, g, targets = two_models(10)
    masked = [np.column_stack([x, np.full(len(x), -np.inf)]) for x in (f, g)]
    assert diversity(*masked, targets) == diversity(f, g, targets)


def test_cka_agrees_with_its_definition_through_kernels():
    f, g, _ = two_models(3)
    for other in (g, g[:, :2]):
        expected = 1 - centred_kernel_alignment(f, other)
        assert cka_complement(f, other) == pytest.approx(expected, abs=1e-9)


def test_cka_knows_no_rotation_scale_or_offset():
    f, g, _ = two_models(4)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    assert cka_complement(7 * f @ turn + 3, g) == pytest.approx(cka_complement(f, g), abs=1e-12)


def test_cka_of_what_never_varies_is_refused_and_none_in_the_summary():
    f, _, targets = two_models(5)
    constant = np.tile(f[0], (len(f), 1))
    with pytest.raises(ValueError, match="same for all"):
        cka_complement(f, constant)
    assert diversity(f, constant, targets).cka is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_prediction_diversity_counts_examples_with_one_right_model(pairs):
    f, g = zip(*pairs, strict=True)
    expected = sum(a ^ b for a, b in pairs) / len(pairs)
    assert prediction_diversity(f, g) == expected


def test_two_models_that_only_ever_give_one_label_do_not_differ():
    assert kappa_complement([3, 3], [3, 3]) == 0


def test_labels_may_be_anything_that_sorts():
    assert kappa_complement(["a", "b", "a"], ["a", "b", "b"]) == pytest.approx(
        1 - cohen_kappa_score(["a", "b", "a"], ["a", "b", "b"])
    )


def test_override_counts_disagreements_among_all_examples():
    rng = np.random.default_rng(6)
    a, b, c = rng.integers(0, 3, (3, 500))
    found = override(a, b, c)
    assert found.first == pytest.approx(np.mean([x != y and z == x for x, y, z in zip(a, b, c)]))  # noqa: B905
    assert found.disagree == pytest.approx(found.first + found.second + found.neither)


def test_a_model_that_is_one_of_the_two_follows_it_everywhere():
    assert override([0, 1, 2], [0, 2, 1], [0, 2, 1]) == Override(2 / 3, 0, 2 / 3, 0, 3)


def test_margin_is_the_gap_between_the_two_largest():
    f, _, _ = two_models(7)
    ordered = np.sort(f, axis=1)
    assert mean_margin(f) == pytest.approx((ordered[:, -1] - ordered[:, -2]).mean(), abs=1e-12)


def test_the_summary_holds_each_measure():
    f, g, targets = two_models(8)
    found = diversity(f, g, targets)
    right = [x.argmax(1) == targets for x in (f, g)]
    assert found.prediction == prediction_diversity(*right)
    assert (found.kl, found.cka) == pytest.approx((mean_kl(f, g), cka_complement(f, g)))
    assert (found.margin_f, found.margin_g, found.n) == (mean_margin(f), mean_margin(g), 200)


def test_equal_models_have_no_diversity():
    f, _, targets = two_models(9)
    found = diversity(f, f.astype(np.float32).astype(np.float64), targets)
    assert (found.prediction, found.kappa) == (0, 0)
    assert found.kl == pytest.approx(0, abs=1e-12)
    assert found.cka == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: prediction_diversity([1], [1, 0]),
        lambda: kappa_complement([], []),
        lambda: mean_kl([[1.0]], [[1.0, 2.0]]),
        lambda: override([1], [1], [1, 2]),
        lambda: cka_complement([[1.0]], [[1.0], [2.0]]),
        lambda: mean_margin([[1.0], [2.0]]),
        lambda: diversity([[1.0, 0.0]], [[1.0, 0.0]], [0, 1]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError, match="found"):
        call()

from __future__ import annotations

import numpy as np
import pytest
import torch

from stockpot.evaluate.compare import (
    SHIFT_AVERAGE,
    Difference,
    Predictions,
    difference,
    p_value,
    paired_difference,
    shift_difference,
)
from stockpot.evaluate.metrics import Accuracy, CrossEntropy, WholeMetric
from stockpot.evaluate.stats import mcnemar, shift_average
from stockpot.evaluate.task import Role, Split


def predictions(values: object) -> Predictions:
    per_example = None if values is None else np.asarray(values, np.float64)
    return Predictions(np.zeros((0, 2), np.float32), torch.zeros(0), per_example)


def test_compare_takes_mcnemar_for_right_and_wrong_and_permutation_otherwise():
    a, b = [1, 1, 1, 1, 0, 1], [0, 1, 0, 0, 0, 0]
    assert paired_difference(a, b).p_value == mcnemar(a, b)
    scaled = paired_difference(np.array(a) * 0.5, np.array(b) * 0.5)
    assert scaled.p_value == pytest.approx(mcnemar(a, b), abs=0.02)
    assert scaled.low <= scaled.value <= scaled.high


def test_a_difference_says_where_it_was_measured_and_against_whom():
    a, b = predictions([1, 1, 0, 1]), predictions([0, 1, 0, 1])
    found = difference(a, b, "test", against="run-07", seed=3)
    assert (found.value, found.split, found.against) == (0.25, "test", "run-07")
    same = paired_difference([1, 1, 0, 1], [0, 1, 0, 1], seed=3)
    assert found.numbers == same.numbers
    assert found.p_value == same.p_value == p_value(a, b, seed=3)


def test_without_examples_behind_the_scores_there_is_no_paired_difference():
    assert difference(predictions(None), predictions([1.0]), "test") is None
    assert p_value(predictions([1.0]), None) is None
    shift = {"blur": Split([], Role.SHIFT)}
    assert (
        shift_difference({"blur": predictions(None)}, {"blur": predictions([1.0])}, shift) is None
    )


def share_right(outputs, targets):
    return (outputs.argmax(-1) == targets).double().mean()


WHOLE = WholeMetric(share_right, "share-right")


def two_models(n, *, seed, metric=WHOLE):
    """Predictions of two models whose guesses agree on most of `n` examples of three classes."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    found = []
    for share in (0.8, 0.7):
        guesses = np.where(rng.random(n) < share, targets, rng.integers(0, 3, n))
        outputs = np.eye(3, dtype=np.float32)[guesses]
        found.append(Predictions(outputs, torch.from_numpy(targets), None, metric))
    return found


def test_a_metric_over_all_examples_has_the_interval_that_the_same_mean_has():
    a, b = two_models(600, seed=0)
    right = [one.outputs.argmax(1) == one.targets.numpy() for one in (a, b)]
    as_mean = paired_difference(right[0], right[1])
    found = difference(a, b, "test", against="other", seed=1)
    assert found.value == pytest.approx(as_mean.value)
    assert found.low == pytest.approx(as_mean.low, abs=0.012)
    assert found.high == pytest.approx(as_mean.high, abs=0.012)
    assert (found.split, found.against) == ("test", "other")
    turned = difference(b, a, "test", seed=1)
    assert turned.numbers == pytest.approx((-found.value, -found.high, -found.low))
    assert turned.p_value == found.p_value


@pytest.mark.parametrize("seed", range(12))
def test_p_is_below_a_twentieth_just_where_the_interval_leaves_out_0(seed):
    a, b = two_models(60 + 60 * (seed % 4), seed=seed)
    found = difference(a, b, "test", seed=seed)
    assert found.low <= found.value <= found.high
    # A percentile lies between two of 500 resamples: at the very edge either may be said.
    if not 0.04 < found.p_value < 0.06:
        assert found.within_noise is (found.p_value > 0.05)


def test_a_model_differs_from_itself_by_nothing_in_f1():
    f1 = WholeMetric(lambda o, t: float((o.argmax(-1) * t).sum()), "sum")
    a, _ = two_models(50, seed=3, metric=f1)
    found = difference(a, a, "test")
    assert (found.numbers, found.p_value) == ((0.0, 0.0, 0.0), 1.0)


def test_resamples_on_which_the_metric_is_not_defined_are_left_out():
    def undefined_without_class_2(outputs, targets):
        return share_right(outputs, targets) if bool((targets == 2).any()) else float("nan")

    a, b = two_models(6, seed=1, metric=WholeMetric(undefined_without_class_2, "picky"))
    found = difference(a, b, "test")
    assert np.isfinite(found.numbers).all()
    never = WholeMetric(lambda o, t: float("nan") if len(set(t.tolist())) < 4 else 0.0, "never")
    assert difference(*two_models(6, seed=1, metric=never), "test").low is None


def test_shifts_of_the_same_images_are_resampled_jointly_for_any_metric():
    a, b = two_models(300, seed=5)
    twice = [{"blur": one, "noise": one} for one in (a, b)]
    alone = {s: Split([], Role.SHIFT) for s in ("blur", "noise")}
    joint = {s: Split([], Role.SHIFT, images="test") for s in ("blur", "noise")}
    single = difference(a, b, "blur")
    together = shift_difference(*twice, joint, seed=0)
    apart = shift_difference(*twice, alone, seed=0)
    assert together.value == pytest.approx(single.value)
    width = {name: f.high - f.low for name, f in (("one", single), ("two", together))}
    assert width["two"] == pytest.approx(width["one"], rel=0.15)
    # Independent sets: the deviation of the mean of two is smaller by the root of two.
    assert apart.high - apart.low == pytest.approx(width["one"] / 2**0.5, rel=0.15)
    assert (together.split, together.p_value) == (SHIFT_AVERAGE, None)


def test_shifts_are_averaged_and_resampled_jointly_where_they_share_images():
    rng = np.random.default_rng(0)
    one, other = (
        {s: predictions(rng.random(40)) for s in ("blur", "noise", "v2", "test")} for _ in range(2)
    )
    splits = {
        "blur": Split([], Role.SHIFT, images="test"),
        "noise": Split([], Role.SHIFT, images="test"),
        "v2": Split([], Role.SHIFT),
        "test": Split([], Role.TEST),
    }
    found = shift_difference(one, other, splits, seed=5)
    gaps = {s: one[s].per_example - other[s].per_example for s in ("blur", "noise", "v2")}
    expected = shift_average(gaps, images={"blur": "test", "noise": "test"}, seed=5)
    assert found.numbers == expected
    assert (found.split, found.p_value) == (SHIFT_AVERAGE, None)
    assert expected[1:] != shift_average(gaps, seed=5)[1:]
    assert shift_difference(one, other, {"test": splits["test"]}) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.1, 0.2, True),
        (0.0, 0.2, True),
        (0.1, 0.2, False),
        (-0.2, -0.1, False),
        (None, None, None),
    ],
)
def test_within_noise_means_that_the_interval_holds_zero(low, high, expected):
    found = Difference(value=0.0, low=low, high=high)
    assert found.within_noise is expected
    assert found.to_json()["within_noise"] is expected


def test_a_metric_knows_which_of_two_values_is_better():
    assert Accuracy().better(0.9, 0.8)
    assert not Accuracy().better(0.8, 0.8)
    assert CrossEntropy().better(0.1, 0.2)
    assert max([0.5, 0.1, 0.3], key=CrossEntropy().quality) == 0.1

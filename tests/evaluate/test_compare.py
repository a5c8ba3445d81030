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
from stockpot.evaluate.metrics import Accuracy, CrossEntropy
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


def test_metrics_that_are_no_means_have_no_paired_difference():
    assert difference(predictions(None), predictions([1.0]), "test") is None
    assert p_value(predictions([1.0]), None) is None
    assert (
        shift_difference(
            {"blur": predictions(None)},
            {"blur": predictions([1.0])},
            {"blur": Split([], Role.SHIFT)},
        )
        is None
    )


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

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot import Ingredients
from stockpot.errors import NonFiniteError, RecipeError
from stockpot.mixing import Coefficients, Mixture, RunningSum

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}


def plain(ingredients, members, dtype=None):
    shares = [1 / len(members) if i in members else 0.0 for i in range(len(ingredients))]
    return Mixture(ingredients, Coefficients.per_model(shares), dtype=dtype)


def same(a, b):
    return all(a.raw(name).tobytes() == b.raw(name).tobytes() for name in b)


def models(seed, k, dtype, spread):
    """Values whose sums in float64 depend on their order, zeros and exact ties among them."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(k):
        values = rng.normal(size=400) * 2.0 ** rng.integers(-spread, spread + 1, 400)
        values[:40] = 0.0
        values[40:80] = rng.integers(0, 4, 40)
        values[80:100] = -0.0
        found.append({"w": torch.from_numpy(values).to(DTYPES[dtype]).reshape(20, 20)})
    return Ingredients(found)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), k=st.integers(2, 9), dtype=st.sampled_from(sorted(DTYPES)),
    out=st.sampled_from([None, "f32", "bf16"]), spread=st.sampled_from([0, 3, 6]),
)  # fmt: skip
def test_every_candidate_is_the_mixture_bit_for_bit(seed, k, dtype, out, spread):
    given_ = models(seed, k, dtype, spread)
    order = np.random.default_rng(seed).permutation(k).tolist()
    running = RunningSum(given_, order[:1], dtype=out)
    for i in order[1:]:
        assert same(running.with_(i), plain(given_, {*running.members, i}, out))
        running.add(i)
    for i in order[: k - 2]:
        assert same(running.without(i), plain(given_, set(running.members) - {i}, out))
        running.remove(i)


def test_sums_that_the_order_decides_are_those_of_the_mixture():
    """2⁻²⁴ is half a unit of 1 in float32, and 2⁻⁵³·1.5 tips it only if it is not added last."""
    found = [
        {"w": torch.tensor([v, 1.0], dtype=torch.float32)}
        for v in (1.0, 2.0**-24, 2.0**-53, 2.0**-53, -(2.0**-53), 2.0**-54)
    ]
    given_ = Ingredients(found)
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 5, 0, 3, 1, 4]):
        running = RunningSum(given_, order[:1])
        for i in order[1:]:
            assert same(running.with_(i), plain(given_, {*running.members, i}))
            running.add(i)


def test_keys_are_those_of_the_mixture():
    given_ = models(0, 4, "f32", 1)
    running = RunningSum(given_, [2, 0])
    assert running.with_(3).key == plain(given_, {0, 2, 3}).key


def test_each_ingredient_is_read_a_fixed_number_of_times(monkeypatch):
    given_ = models(1, 8, "f32", 0)
    reads = dict.fromkeys(range(8), 0)
    for i, checkpoint in enumerate(given_):
        original = checkpoint.raw

        def counted(name, i=i, original=original):
            reads[i] += 1
            return original(name)

        monkeypatch.setattr(checkpoint, "raw", counted)
    _ = given_.canonical
    reads = dict.fromkeys(range(8), 0)
    running = RunningSum(given_, [0])
    for i in range(1, 8):
        candidate = running.with_(i)
        candidate.rule("w")
        candidate._bracket(candidate.rule("w"), 0, 0, 400)
        running.add(i)
    assert max(reads.values()) == 2


def test_buffers_and_tied_tensors_are_left_to_the_mixture():
    found = [
        {"w": torch.full((3,), float(i)), "num_batches_tracked": torch.tensor(i)} for i in range(3)
    ]
    for each in found:
        each["v"] = each["w"]
        each["n"] = torch.tensor(7)
    given_ = Ingredients(found)
    running = RunningSum(given_, [0, 1])
    assert same(running.with_(2), plain(given_, {0, 1, 2}))


def test_nan_is_refused_by_name():
    good, bad = {"w": torch.ones(4)}, {"w": torch.tensor([1.0, float("nan"), 1.0, 1.0])}
    running = RunningSum(Ingredients([good, good, bad]), [0, 1])
    with pytest.raises(NonFiniteError, match="tensor w"):
        running.with_(2).raw("w")


def test_a_mixture_outlives_changes_of_its_sum():
    given_ = models(2, 4, "f32", 2)
    running = RunningSum(given_, [0, 1])
    candidate = running.with_(2)
    running.add(3)
    assert same(candidate, plain(given_, {0, 1, 2}))


def test_what_is_not_in_cannot_be_taken_out():
    with pytest.raises(RecipeError, match="not in the sum"):
        RunningSum(models(3, 3, "f32", 0), [0]).remove(2)

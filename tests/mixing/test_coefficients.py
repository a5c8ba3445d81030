from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockpot import from_state_dict
from stockpot.errors import RecipeError
from stockpot.mixing import Coefficients

GROUPS = {"a": [0.5, 0.5], "b": [0.25, 0.75]}
GROUP_OF = {"x.weight": "a", "x.bias": "a", "y.weight": "b"}


def test_uniform_coefficients_are_one_over_k() -> None:
    assert Coefficients.uniform(3).for_tensor("w") == (1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize("n", [0, -1])
def test_no_ingredients_cannot_be_mixed(n: int) -> None:
    with pytest.raises(RecipeError, match="expected at least 1"):
        Coefficients.uniform(n)


def test_a_tensor_has_the_vector_of_its_group() -> None:
    coefficients = Coefficients.per_group(GROUPS, group_of=GROUP_OF)
    assert coefficients.for_tensor("x.bias") == (0.5, 0.5)
    assert coefficients.for_tensor("y.weight") == (0.25, 0.75)
    with pytest.raises(RecipeError, match="no coefficients for tensor 'z'"):
        coefficients.for_tensor("z")


def test_a_tensor_has_its_own_vector() -> None:
    coefficients = Coefficients.per_tensor({"w": [2.0, -1.0]})
    assert coefficients.for_tensor("w") == (2.0, -1.0)
    with pytest.raises(RecipeError, match="'v'"):
        coefficients.for_tensor("v")


def test_coefficients_are_never_normalised_silently() -> None:
    with pytest.raises(RecipeError, match="sum to 6, expected 1"):
        Coefficients.per_model([1, 2, 3])
    assert Coefficients.per_model([1, 2, 3], normalise=True).for_tensor("w") == (1 / 6, 1 / 3, 0.5)


def test_a_negative_sum_is_no_sum_of_zero_and_can_be_divided_by() -> None:
    with pytest.raises(RecipeError, match="sum to -4, expected 1"):
        Coefficients.per_model([-1, -3])
    assert Coefficients.per_model([-1, -3], normalise=True).for_tensor("w") == (0.25, 0.75)


@pytest.mark.parametrize("off", [9e-7, -9e-7])
def test_a_sum_within_the_tolerance_is_taken_as_it_is(off: float) -> None:
    assert Coefficients.per_model([0.5, 0.5 + off]).for_tensor("w") == (0.5, 0.5 + off)


@pytest.mark.parametrize("off", [1.1e-6, -1.1e-6])
def test_a_sum_beyond_the_tolerance_is_refused(off: float) -> None:
    with pytest.raises(RecipeError, match="expected 1"):
        Coefficients.per_model([0.5, 0.5 + off])


@pytest.mark.parametrize("values", [[1.0, -1.0], [0.0, 0.0], [0.5, 0.5, -1.0]])
@pytest.mark.parametrize("normalise", [True, False])
def test_weights_1_and_minus_1_are_refused_and_not_divided_by_zero(
    values: list[float], normalise: bool
) -> None:
    with pytest.raises(RecipeError, match=r"weight zero|cannot be normalised"):
        Coefficients.per_model(values, normalise=normalise)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("normalise", [True, False])
def test_coefficients_that_are_no_numbers_are_refused(bad: float, normalise: bool) -> None:
    with pytest.raises(RecipeError, match=r"not finite|cannot be normalised"):
        Coefficients.per_model([1.0, bad], normalise=normalise)


def test_every_wrong_vector_is_named() -> None:
    with pytest.raises(RecipeError) as caught:
        Coefficients.per_tensor({"good": [1.0], "bad": [2.0], "worse": [0.0]})
    assert "'bad'" in str(caught.value)
    assert "'worse'" in str(caught.value)
    assert "'good'" not in str(caught.value)


def test_vectors_of_different_lengths_and_groups_without_a_vector_are_refused() -> None:
    with pytest.raises(RecipeError, match="different lengths"):
        Coefficients.per_tensor({"a": [1.0], "b": [0.5, 0.5]})
    with pytest.raises(RecipeError, match="groups without coefficients: c"):
        Coefficients.per_group(GROUPS, group_of={"x": "c"})


def test_elements_have_no_vector() -> None:
    import numpy as np

    elements = [from_state_dict({"w": np.full(3, 0.5, np.float32)}) for _ in range(2)]
    coefficients = Coefficients.elementwise(elements)
    assert coefficients.n_ingredients == 2
    with pytest.raises(RecipeError, match="each element"):
        coefficients.for_tensor("w")
    with pytest.raises(RecipeError, match="no JSON"):
        coefficients.to_json()


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6).filter(lambda v: abs(sum(v)) > 0.1))
def test_json_gives_back_every_bit(values: list[float]) -> None:
    for coefficients in (
        Coefficients.per_model(values, normalise=True),
        Coefficients.per_tensor({"w": [1.0], "v": [1.0]}),
        Coefficients.per_group(GROUPS, group_of=GROUP_OF),
    ):
        text = json.dumps(coefficients.to_json())
        assert Coefficients.from_json(json.loads(text)) == coefficients


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"by": "model"},
        {"by": "model", "values": ["x"]},
        {"by": "element", "values": []},
        {"by": "tensor", "values": [1.0]},
        {"by": "group", "values": [1.0]},
        {"by": "group", "values": {"a": [1.0]}, "group_of": ["w"]},
    ],
)
def test_json_that_holds_no_coefficients_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        Coefficients.from_json(data)  # type: ignore[arg-type]


def test_freely_learned_coefficients_may_have_any_sum_and_keep_it_in_their_record() -> None:
    free = Coefficients.per_group({"a": [0.5, 0.7]}, group_of={"w": "a"}, any_sum=True)
    assert free.for_tensor("w") == (0.5, 0.7)
    assert Coefficients.from_json(free.to_json()) == free
    with pytest.raises(RecipeError, match="not finite"):
        Coefficients.per_model([float("nan"), 1.0], any_sum=True)

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from stockpot.errors import RecipeError
from stockpot.recipes import BestSingle, Uniform


def test_is_the_mean_of_all(lab):
    soup = Uniform().cook(lab.paths)
    weights = [load_file(p) for p in lab.paths]
    for name in weights[0]:
        mean = (sum(w[name].double() for w in weights) / len(weights)).float()
        torch.testing.assert_close(soup.mixture.read(name), mean, rtol=1e-7, atol=0)
    assert soup.coefficients == dict.fromkeys(lab.paths, 1 / 8)
    assert soup.scores == {}


def test_given_weights_must_sum_to_one_unless_normalised(lab):
    with pytest.raises(RecipeError, match="sum to 3"):
        Uniform(weights=(1, 2)).cook(lab.paths[:2])
    soup = Uniform(weights=(1, 3), normalise=True).cook(lab.paths[:2])
    assert list(soup.coefficients.values()) == [0.25, 0.75]


def test_weights_for_another_number_of_ingredients_are_refused(lab):
    with pytest.raises(RecipeError, match="3 weights for 2 ingredients"):
        Uniform(weights=(0.2, 0.3, 0.5)).cook(lab.paths[:2])


def test_an_ingredient_of_weight_zero_takes_no_part_and_stays_in_the_record(lab):
    soup = Uniform(weights=(0.5, 0.0, 0.5)).cook(lab.paths[:3])
    assert list(soup.selected) == [lab.paths[0], lab.paths[2]]
    assert [i["coefficient"] for i in soup.record()["ingredients"]] == [0.5, 0.0, 0.5]


def test_top_takes_the_best_on_held_out(lab):
    soup = Uniform(top=3).cook(lab.paths, lab.task)
    singles = {p: BestSingle().cook([p], lab.task).scores["held-out"].value for p in lab.paths}
    assert list(soup.selected) == sorted(lab.paths, key=lambda p: -singles[p])[:3]


def test_scores_are_reported_on_every_split_with_a_task(lab):
    scores = Uniform().cook(lab.paths, lab.task).scores
    assert set(scores) == {"held-out", "test", "noise", "shifted", "shift_average"}


def test_best_single_is_one_ingredient_bit_for_bit(lab):
    soup = BestSingle().cook(lab.paths, lab.task)
    (path,) = soup.selected
    for name, value in load_file(path).items():
        assert torch.equal(soup.mixture.read(name), value)

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import stockpot
from stockpot.errors import MismatchError, RecipeError
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import BestSingle, Greedy, Learned, Pruned, Uniform
from stockpot.recipes.record import verify


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


def test_patterns_have_coefficients_of_their_own(lab, tmp_path):
    recipe = Uniform(coefficients=("3.*=0,1", "*.bias=0.5,0.5"), weights=(0.25, 0.75))
    soup = recipe.cook(lab.paths[:2])
    first, second = (load_file(path) for path in lab.paths[:2])
    for name, share in (("3.weight", 1.0), ("3.bias", 1.0), ("0.bias", 0.5), ("0.weight", 0.75)):
        expected = ((1 - share) * first[name].double() + share * second[name].double()).float()
        torch.testing.assert_close(soup.mixture.read(name), expected, rtol=1e-7, atol=0)
    soup.save(tmp_path / "soup.safetensors")
    assert verify(tmp_path / "soup.safetensors") == []


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        (("0.*=half,half",), "PATTERN=NUMBER"),
        (("0.*",), "PATTERN=NUMBER"),
        (("0.*=1",), r"1 coefficients for '0\.\*' and 2 ingredients"),
        (("7.*=0,1",), "no tensor matches"),
        (("0.*=1,1",), "sum to 2"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(lab, coefficients, message):
    with pytest.raises(RecipeError, match=message):
        Uniform(coefficients=coefficients).cook(lab.paths[:2])


def test_averaged_batchnorm_statistics_are_pointed_out_where_no_data_remake_them(bn_lab):
    (note,) = [n for n in Uniform().cook(bn_lab.paths[:2]).notes if "BatchNorm" in n]
    assert "update_bn" in note
    assert "--task" in note
    for soup in (Uniform().cook(bn_lab.paths[:1]), Uniform(weights=(1, 0)).cook(bn_lab.paths[:2])):
        assert not any("update_bn" in n for n in soup.notes)
    assert not any("update_bn" in n for n in Uniform().cook(bn_lab.paths[:2], bn_lab.task).notes)


@pytest.mark.parametrize("recipe", [Greedy(), Pruned(), Learned(n_epochs=2)])
def test_recipes_mix_precisions_where_the_result_has_one(lab, tmp_path, recipe):
    paths = []
    for i, path in enumerate(lab.paths[:3]):
        kind = (torch.float32, torch.bfloat16, torch.float16)[i]
        paths.append(str(tmp_path / f"{i}.safetensors"))
        save_file({n: v.to(kind) for n, v in load_file(path).items()}, paths[-1])
    with pytest.raises(MismatchError, match="--dtype"):
        recipe.cook(paths, lab.task)
    soup = recipe.cook(paths, lab.task, dtype="f32")
    soup.save(tmp_path / "soup.safetensors")
    assert verify(tmp_path / "soup.safetensors") == []
    assert {v.dtype for v in load_file(tmp_path / "soup.safetensors").values()} == {torch.float32}


def test_weights_by_score_are_the_softmax_of_the_scores(lab) -> None:
    evaluator = TaskEvaluator(lab.task)
    values = [evaluator.score(stockpot.open(path), "held-out").value for path in lab.paths[:4]]
    soup = Uniform(score_temperature=0.1).cook(lab.paths[:4], evaluator=evaluator)
    expected = np.exp(np.array(values) / 0.1)
    found = [soup.coefficients[path] for path in lab.paths[:4]]
    assert found == pytest.approx((expected / expected.sum()).tolist())
    assert soup.chosen_on == "held-out"
    hot = Uniform(score_temperature=1e9).cook(lab.paths[:4], evaluator=evaluator)
    assert [hot.coefficients[path] for path in lab.paths[:4]] == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("options", [{"score_temperature": 0.0},
                                     {"score_temperature": 1.0, "top": 2}])  # fmt: skip
def test_weights_by_score_go_with_no_others(options) -> None:
    with pytest.raises(RecipeError):
        Uniform(**options)


def test_weights_by_score_leave_no_room_for_patterns() -> None:
    with pytest.raises(RecipeError, match="coefficients by pattern go with weights alone"):
        Uniform(score_temperature=1.0, coefficients=("2.*=0,1",))

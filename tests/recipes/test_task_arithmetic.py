from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import stockpot
from stockpot._options import options_of
from stockpot.cli.app import main
from stockpot.errors import RecipeError
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.mixing.rules.dare import Dare
from stockpot.mixing.rules.ties import Ties
from stockpot.recipes import Soup, TaskArithmetic, Uniform, WiseFT
from stockpot.recipes.task_arithmetic import TaskArithmeticDetails
from stockpot.testing import RecipeCase, recipe_conformance

BASE = {"w": np.array([[1.0, 2.0]])}
RUNS = [{"w": np.array([[2.0, 2.0]])}, {"w": np.array([[1.0, 5.0]])}]


def sums(scale: float, runs=RUNS) -> list[float]:
    mixture = TaskArithmetic(scale=scale).cook(runs, base=BASE).mixture
    return mixture.read("w").flatten().tolist()


def test_the_scaled_sum_of_the_moves_worked_by_hand() -> None:
    """Moves (1, 0) and (0, 3) from (1, 2)."""
    assert sums(1.0) == [2.0, 5.0]
    assert sums(0.5) == [1.5, 3.5]
    assert sums(-1.0) == [0.0, -1.0]
    assert sums(0.0) == [1.0, 2.0]


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_one_nth_of_the_sum_is_the_uniform_mean(lab, n: int) -> None:
    soup = TaskArithmetic(scale=1 / n).cook(lab.paths[:n], base=lab.base).mixture
    mean = Uniform().cook(lab.paths[:n]).mixture
    for name in mean:
        assert torch.allclose(soup.read(name), mean.read(name), atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_of_one_model_it_is_wise_ft_bit_for_bit(lab, scale: float) -> None:
    soup = TaskArithmetic(scale=scale).cook(lab.paths[:1], base=lab.base).mixture
    line = WiseFT(alpha=scale).cook(lab.paths[:1], base=lab.base).mixture
    assert all(torch.equal(soup.read(name), line.read(name)) for name in line)


def test_the_scale_is_the_best_of_the_grid_and_of_the_mean(lab) -> None:
    soup = TaskArithmetic(scales=(0.1, 0.5, 1.0)).cook(lab.paths[:4], lab.task, base=lab.base)
    details = soup.details
    assert [scale for scale, _ in details.curve] == [0.1, 0.25, 0.5, 1.0]
    best = max(score for _, score in details.curve)
    assert dict(details.curve)[details.scale] == best == soup.scores["held-out"].value
    ties = [scale for scale, score in details.curve if score == best]
    assert details.scale == min(ties, key=lambda scale: abs(scale - 0.25))
    assert soup.chosen_on == "held-out"
    assert TaskArithmeticDetails.from_json(json.loads(json.dumps(soup.to_json()))) == details


def test_the_base_stands_in_the_record_with_its_coefficient(lab) -> None:
    soup = TaskArithmetic(scale=0.4).cook(lab.paths[:2], base=lab.base)
    assert soup.coefficients == {
        lab.paths[0]: 0.4,
        lab.paths[1]: 0.4,
        lab.base: pytest.approx(0.2),
    }
    assert soup.selected == (lab.paths[0], lab.paths[1])


def test_a_scale_whose_batchnorm_has_no_meaning_is_left_out_of_the_search(bn_lab) -> None:
    """Five moves in full take variances below 0 with averaged statistics, or may."""
    evaluator = TaskEvaluator(bn_lab.task)
    soup = TaskArithmetic(scales=(0.2, 1.0)).cook(
        bn_lab.paths[:5], base=bn_lab.base, evaluator=evaluator
    )
    assert soup.details.scale in (0.2, 1.0)


def test_there_has_to_be_a_base(lab) -> None:
    with pytest.raises(RecipeError, match="--base"):
        TaskArithmetic(scale=1.0).cook(lab.paths[:2])
    with pytest.raises(RecipeError, match="at least one"):
        TaskArithmetic(scales=())


def test_what_is_saved_is_verified(lab, tmp_path) -> None:
    out = tmp_path / "sum.safetensors"
    TaskArithmetic(scale=0.3).cook(lab.paths[:3], base=lab.base).save(out)
    assert stockpot.recipes.verify(out) == []
    base = load_file(lab.base)["0.weight"].double()
    moves = sum(load_file(p)["0.weight"].double() - base for p in lab.paths[:3])
    assert torch.allclose(load_file(out)["0.weight"].double(), base + 0.3 * moves, atol=1e-6)


def test_a_rule_merges_the_task_vectors_and_its_scale_is_searched(lab) -> None:
    """What with_scale gives without preparing again is what a rule of that scale gives."""
    rule = Ties(keep=0.5)
    soup = TaskArithmetic(rule=rule, scales=(0.5, 1.5)).cook(lab.paths[:3], lab.task, base=lab.base)
    details = soup.details
    assert [scale for scale, _ in details.curve] == [0.5, 1.0, 1.5]
    assert dict(details.curve)[details.scale] == max(score for _, score in details.curve)
    assert details.rule == "ties"
    assert TaskArithmeticDetails.from_json(json.loads(json.dumps(soup.to_json()))) == details
    again = TaskArithmetic(rule=replace(rule, scale=details.scale), scale=details.scale)
    mixture = again.cook(lab.paths[:3], base=lab.base).mixture
    assert mixture.key == soup.mixture.key
    assert "merged by ties" in details.sentences(soup)[0]


@pytest.mark.parametrize("rule", [Ties(), Dare(keep=0.5)])
def test_with_rules_it_passes_the_suite_of_recipes(lab, tmp_path, rule) -> None:
    recipe = TaskArithmetic(rule=rule, scales=(0.5, 1.0))
    recipe_conformance(
        RecipeCase(recipe=recipe, paths=lab.paths[:3], task=lab.task, folder=tmp_path,
                   base=lab.base)
    )  # fmt: skip


def test_the_command_takes_a_rule_in_a_few_words(lab, tmp_path, capsys) -> None:
    out = str(tmp_path / "ties.safetensors")
    given = ["arithmetic", *lab.paths[:3], "--base", lab.base, "--scale", "1", "-o", out]
    assert main([*given, "--rule", "ties,keep=0.3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rule"] == "ties"
    assert Soup.load(out).options["rule"]["keep"] == 0.3
    assert main(["verify", out]) == 0
    assert main([*given, "--rule", "ties,kep=0.3"]) == 2
    assert "no options kep" in capsys.readouterr().err
    assert main(["ties"]) == 2
    assert "arithmetic RUNS --base BASE --rule ties" in capsys.readouterr().err


def test_a_rule_that_is_not_known_is_answered_with_those_that_merge_task_vectors() -> None:
    parse = next(about.parse for item, about in options_of(TaskArithmetic) if item.name == "rule")
    with pytest.raises(ValueError, match=r"no rule is named 'tees' \(did you mean 'ties'\?\)") as e:
        parse("tees,keep=0.2")
    assert "buffers" not in str(e.value)
    assert "della" in str(e.value)
    with pytest.raises(RecipeError, match="merges no task vectors; expected one of ties"):
        TaskArithmetic(rule=parse("linear"))

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from stockpot.errors import EvaluationError, RecipeError, SplitRoleError
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.memory import from_state_dict
from stockpot.recipes import BestSingle, Greedy


def plain_greedy(lab, *, order=None, accept="ge"):
    """The paper's Recipe 1 with nothing but torch: means in float64, whole passes in data order."""
    weights = {p: load_file(p) for p in lab.paths}
    data = lab.task.splits["held-out"].dataset.tensors
    model = lab.task.build().eval()

    def score(members):
        mean = {
            n: (sum(weights[p][n].double() for p in members) / len(members)).float()
            for n in weights[members[0]]
            if weights[members[0]][n].is_floating_point()
        }
        from_state_dict(mean).load_into(model, strict=False)
        with torch.inference_mode():
            outputs = torch.cat([model(x) for x in data[0].split(128)])
        return float((outputs.argmax(-1) == data[1]).double().mean())

    singles = {p: score([p]) for p in lab.paths}
    ranking = order or sorted(lab.paths, key=lambda p: -singles[p])
    kept, best = [ranking[0]], singles[ranking[0]]
    for path in ranking[1:]:
        found = score([*kept, path])
        if found >= best if accept == "ge" else found > best:
            kept.append(path)
            best = found
    return kept, best


@pytest.mark.parametrize("accept", ["ge", "gt"])
@pytest.mark.parametrize("early", [True, False])
def test_keeps_what_a_plain_loop_keeps(lab, accept, early):
    soup = Greedy(accept=accept, early_rejection=early).cook(lab.paths, lab.task)
    kept, best = plain_greedy(lab, accept=accept)
    assert list(soup.selected) == kept
    assert soup.scores["held-out"].value == pytest.approx(best)


@pytest.mark.parametrize("seed", range(6))
def test_random_orders_keep_what_a_plain_loop_keeps(lab, seed):
    soup = Greedy(order="random", seed=seed).cook(lab.paths, lab.task, report=False)
    tried = [step.candidate for step in soup.steps]
    assert list(soup.selected) == plain_greedy(lab, order=tried)[0]


def test_orders_are_those_asked_for(lab):
    given = Greedy(order="given").cook(lab.paths, lab.task, report=False)
    shuffled = Greedy(order="random", seed=1).cook(lab.paths, lab.task, report=False)
    assert [s.candidate for s in given.steps] == lab.paths
    assert [s.candidate for s in shuffled.steps] != lab.paths
    assert sorted(s.candidate for s in shuffled.steps) == lab.paths


def test_early_rejection_scores_fewer_examples_and_says_so(lab):
    soup = Greedy().cook(lab.paths, lab.task, report=False)
    rejected = [s for s in soup.steps if not s.accepted]
    assert rejected
    assert soup.examples_plain == 600 * 7
    assert soup.examples_evaluated == sum(s.examples for s in soup.steps) < soup.examples_plain
    full = Greedy(early_rejection=False).cook(lab.paths, lab.task, report=False)
    assert full.examples_evaluated == full.examples_plain
    for early, late in zip(soup.steps, full.steps, strict=True):
        if early.score is None:
            assert early.p_value is None
            assert late.score <= early.score_at_most
        else:
            assert early.score == late.score


def test_never_worse_than_the_best_single_on_held_out(lab):
    soup = Greedy().cook(lab.paths, lab.task)
    single = BestSingle().cook(lab.paths, lab.task)
    assert soup.scores["held-out"].value >= single.scores["held-out"].value


def test_accepted_steps_carry_p_values_and_say_what_is_noise(lab):
    soup = Greedy().cook(lab.paths, lab.task, report=False)
    accepted = [s for s in soup.steps[1:] if s.accepted]
    assert accepted
    assert all(0 <= s.p_value <= 1 and s.within_noise == (s.p_value > 0.05) for s in accepted)


def test_a_minimal_gain_keeps_fewer(lab):
    soup = Greedy(min_gain=0.5).cook(lab.paths, lab.task, report=False)
    assert len(soup.selected) == 1


def test_duplicates_are_dropped_and_named(lab, tmp_path):
    copy = str(tmp_path / "copy.safetensors")
    save_file(load_file(lab.paths[0]), copy)
    with_copy = Greedy().cook([*lab.paths, copy], lab.task, report=False)
    without = Greedy().cook(lab.paths, lab.task, report=False)
    assert with_copy.selected == without.selected
    assert any(copy in note and "same weights" in note for note in with_copy.notes)
    assert with_copy.examples_plain == without.examples_plain


def test_a_lower_is_better_metric_is_ranked_the_right_way_up(lab):
    task = type(lab.task)(
        build=lab.task.build, splits=lab.task.splits, batch_size=128, metric="cross-entropy"
    )
    soup = Greedy().cook(lab.paths, task)
    plain = Greedy(early_rejection=False).cook(lab.paths, task)
    single = BestSingle().cook(lab.paths, task)
    assert soup.selected == plain.selected
    assert soup.scores["held-out"].value <= single.scores["held-out"].value
    assert soup.examples_evaluated < plain.examples_evaluated


def test_a_metric_that_is_no_mean_is_scored_in_full(lab):
    task = type(lab.task)(
        build=lab.task.build, splits=lab.task.splits, batch_size=128, metric="f1-macro"
    )
    soup = Greedy().cook(lab.paths[:3], task, report=False)
    assert soup.examples_evaluated == soup.examples_plain


def test_an_ingredient_whose_score_is_nan_is_named(lab, tmp_path):
    bad = str(tmp_path / "bad.safetensors")
    weights = load_file(lab.paths[0])
    weights["3.bias"] = torch.full((10,), 1e37) * torch.arange(10)
    save_file(weights, bad)
    task = type(lab.task)(
        build=lab.task.build, splits=lab.task.splits, metric="cross-entropy",
        predict=lambda model, batch: model(batch[0]) * 10,
    )  # fmt: skip
    with pytest.raises(EvaluationError, match=r"bad\.safetensors on held-out is"):
        Greedy().cook([*lab.paths[:2], bad], task)


def test_choosing_on_test_data_is_refused(lab):
    with pytest.raises(SplitRoleError, match="role is test"):
        Greedy().cook(lab.paths, lab.task, choose_on="test")


def test_greedy_without_a_task_says_what_to_do(lab):
    with pytest.raises(RecipeError, match="--task"):
        Greedy().cook(lab.paths)


def test_a_second_run_scores_nothing(lab, tmp_path):
    first, second = (TaskEvaluator(lab.task, cache=tmp_path) for _ in range(2))
    a = Greedy().cook(lab.paths, lab.task, evaluator=first)
    b = Greedy().cook(lab.paths, lab.task, evaluator=second)
    assert first.counters.examples > 0
    assert second.counters.examples == 0
    assert a.to_json() == b.to_json()


@pytest.mark.parametrize("accept", ["ge", "gt"])
def test_two_workers_find_what_one_finds(lab, bn_lab, accept):
    for each in (lab, bn_lab):
        one = Greedy(accept=accept).cook(each.paths, each.task)
        with TaskEvaluator(each.task, device="cpu", n_workers=2) as evaluator:
            two = Greedy(accept=accept).cook(each.paths, evaluator=evaluator)
        assert two.to_json() == one.to_json()
        assert two.mixture.key == one.mixture.key


def test_where_only_one_is_kept_the_reasons_are_said(lab):
    torch.manual_seed(3)
    stranger = {n: torch.randn_like(v) for n, v in load_file(lab.paths[0]).items()}
    soup = Greedy().cook([lab.paths[0], stranger], lab.task, report=False)
    assert len(soup.selected) == 1
    assert soup.details.to_json()["reasons"][0]["kind"] == "no-shared-initialisation"
    assert any("do not share an initialisation" in note for note in soup.notes)


def test_passes_for_batchnorm_are_counted_apart(lab, bn_lab):
    with_bn = Greedy().cook(bn_lab.paths, bn_lab.task, report=False)
    each = 600 // 128 * 128
    assert with_bn.examples_calibration == each * (len(bn_lab.paths) - 1)
    assert with_bn.to_json()["examples_calibration"] == with_bn.examples_calibration
    assert Greedy().cook(lab.paths, lab.task, report=False).examples_calibration == 0

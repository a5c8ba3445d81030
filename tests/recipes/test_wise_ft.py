from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import TensorDataset

import stockpot
from stockpot.analysis.barrier import HIGH_BARRIER
from stockpot.analysis.diversity import override
from stockpot.errors import MismatchError, RecipeError
from stockpot.evaluate.splits import with_splits
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.mixing.rules.singular import MonoSoup
from stockpot.recipes import TaskArithmetic, WiseFT, verify
from stockpot.recipes.interpolation_details import WiseFTDetails
from stockpot.recipes.result import ScoredModel
from stockpot.testing.recipes import RecipeCase, recipe_conformance

COARSE = (0.25, 0.75)


@pytest.fixture(scope="module")
def drawn(lab):
    """A curve with everything that is told of it."""
    return WiseFT(alphas=COARSE, alternatives=True).cook(lab.paths[:1], lab.task, base=lab.base)


def scores_at(soup, key, alpha):
    points = soup.details.to_json() if key == "curve" else soup.details.to_json()["alternatives"]
    return next(p["scores"] for p in points[key] if p["alpha"] == alpha)


@pytest.mark.parametrize(
    "recipe",
    [
        WiseFT(alphas=COARSE),
        WiseFT(alphas=(), by="layer"),
        WiseFT(alphas=(), fisher=True, n_fisher=8, alternatives=True),
    ],
    ids=["plain", "by-layer", "fisher"],
)
def test_it_does_what_every_recipe_must(recipe, lab, tmp_path):
    recipe_conformance(RecipeCase(recipe, lab.paths[:2], lab.task, tmp_path, base=lab.base))


@pytest.mark.parametrize("fisher", [False, True])
def test_the_ends_are_the_base_and_the_tuned_model_bit_for_bit(lab, fisher):
    for alpha, path in ((0.0, lab.base), (1.0, lab.paths[0])):
        recipe = WiseFT(alpha=alpha, fisher=fisher, n_fisher=4)
        soup = recipe.cook(lab.paths[:1], lab.task if fisher else None, base=lab.base)
        for name, value in load_file(path).items():
            assert torch.equal(soup.mixture.read(name), value)


@pytest.mark.parametrize("which", ["lab", "bn_lab"])
def test_the_ends_of_a_curve_have_the_scores_of_the_two_models(which, request):
    lab = request.getfixturevalue(which)
    evaluator = TaskEvaluator(lab.task, batchnorm="averaged")
    alone = [
        stockpot.evaluate.scores_to_json(evaluator.scores(stockpot.open(path)))
        for path in (lab.base, lab.paths[0])
    ]
    before = evaluator.counters.examples
    soup = WiseFT(alphas=()).cook(lab.paths[:1], base=lab.base, evaluator=evaluator)
    curve = soup.details.to_json()["curve"]
    assert [curve[0]["scores"], curve[-1]["scores"]] == alone
    n_examples = sum(len(split.dataset) for split in lab.task.splits.values())
    assert evaluator.counters.examples == before + n_examples, "only the middle was evaluated"


def test_a_point_is_the_interpolation(lab):
    soup = WiseFT(alpha=0.3).cook(lab.paths[:1], base=lab.base)
    a, b = load_file(lab.base), load_file(lab.paths[0])
    for name in a:
        expected = (0.7 * a[name].double() + 0.3 * b[name].double()).float()
        torch.testing.assert_close(soup.mixture.read(name), expected, rtol=1e-6, atol=0)


def test_the_curve_holds_both_ends_and_the_middle_and_chooses_on_held_out(lab, drawn):
    curve = drawn.details.to_json()["curve"]
    assert [point["alpha"] for point in curve] == [0, 0.25, 0.5, 0.75, 1]
    best = max(point["scores"]["held-out"]["value"] for point in curve)
    assert drawn.scores["held-out"].value == best
    assert drawn.chosen_on == "held-out"
    assert set(curve[0]["scores"]) == {"held-out", "test", "noise", "shifted", "shift_average"}
    assert drawn.details.to_json()["half"] == curve[2]
    assert "held-out" in drawn.details.to_json()["rule"]


def test_the_best_alphas_are_those_of_each_column(drawn):
    curve, best = drawn.details.to_json()["curve"], drawn.details.to_json()["best"]
    assert set(best) == {*curve[0]["scores"], "mean_of_both"}
    for name in curve[0]["scores"]:
        values = {p["alpha"]: p["scores"][name]["value"] for p in curve}
        assert best[name]["value"] == max(values.values()) == values[best[name]["alpha"]]
        above = best[name]["value"] - max(values[0], values[1])
        assert best[name]["above_ends"] == pytest.approx(above)
    both = [
        (p["scores"]["test"]["value"] + p["scores"]["shift_average"]["value"]) / 2 for p in curve
    ]
    assert best["mean_of_both"]["value"] == pytest.approx(max(both))


def test_gains_are_paired_with_both_ends(lab, drawn):
    evaluator, alpha = TaskEvaluator(lab.task), drawn.details.to_json()["alpha"]
    chosen = WiseFT(alpha=alpha).cook(lab.paths[:1], base=lab.base).mixture
    for end, path in (("base", lab.base), ("tuned", lab.paths[0])):
        a, b = (evaluator.predictions(x, "test").per_example for x in (chosen, stockpot.open(path)))
        found = drawn.details.to_json()["gains"][end]["test"]
        assert found["difference"] == pytest.approx((a - b).mean())
        assert found["low"] <= found["difference"] <= found["high"]
        assert found["within_noise"] == (found["p_value"] > 0.05)
        average = drawn.details.to_json()["gains"][end]["shift_average"]
        values = [p["scores"]["shift_average"]["value"] for p in drawn.details.to_json()["curve"]]
        index = 0 if end == "base" else -1
        expected = drawn.scores["shift_average"].value - values[index]
        assert average["difference"] == pytest.approx(expected)


def test_the_ensemble_mixes_outputs_at_the_same_alpha(lab, drawn):
    evaluator = TaskEvaluator(lab.task)
    base, tuned = (
        evaluator.predictions(stockpot.open(path), "test") for path in (lab.base, lab.paths[0])
    )
    targets = base.targets.numpy()
    logits = 0.75 * base.outputs + 0.25 * tuned.outputs
    found = next(p["scores"] for p in drawn.details.to_json()["ensemble"] if p["alpha"] == 0.25)
    assert found["test"]["value"] == pytest.approx((logits.argmax(1) == targets).mean())
    p = [torch.from_numpy(x.outputs).double().softmax(1).numpy() for x in (base, tuned)]
    mixed = 0.75 * p[0] + 0.25 * p[1]
    others = scores_at(drawn, "ensemble-of-probabilities", 0.25)
    assert others["test"]["value"] == pytest.approx((mixed.argmax(1) == targets).mean())


def test_diversity_is_told_of_each_split(lab, drawn):
    found = drawn.details.to_json()["diversity"]
    assert set(found) == set(lab.task.splits)
    evaluator = TaskEvaluator(lab.task)
    middle = WiseFT(alpha=0.5).cook(lab.paths[:1], base=lab.base).mixture
    labels = [
        evaluator.predictions(x, "noise").outputs.argmax(1)
        for x in (stockpot.open(lab.base), stockpot.open(lab.paths[0]), middle)
    ]
    expected = override(*labels)
    told = found["noise"]["override"]
    assert (told["base"], told["tuned"]) == (expected.first, expected.second)
    assert found["noise"]["margin_tuned"] > found["noise"]["margin_base"]


def test_random_interpolation_takes_each_element_from_either(lab, drawn):
    assert [p["alpha"] for p in drawn.details.to_json()["alternatives"]["random-elements"]] == [
        p["alpha"] for p in drawn.details.to_json()["curve"]
    ]
    ends = {0.0: lab.base, 1.0: lab.paths[0]}
    for alpha in ends:
        assert scores_at(drawn, "random-elements", alpha) == scores_at(drawn, "curve", alpha)


def test_mono_soup_stands_beside_the_curve_from_the_base_to_the_shrunken_model(lab, drawn):
    whole = TaskArithmetic(rule=MonoSoup(), scale=1.0).cook([lab.paths[0]], base=lab.base).mixture
    found = scores_at(drawn, "mono-soup", 1.0)
    evaluator = TaskEvaluator(lab.task)
    assert found["test"]["value"] == evaluator.score(whole, "test").value
    assert scores_at(drawn, "mono-soup", 0.0) == scores_at(drawn, "curve", 0.0)


def test_ties_go_to_the_alpha_nearest_one_half(lab):
    soup = WiseFT(alphas=(0.25, 0.4, 0.75)).cook([lab.base], lab.task, base=lab.base)
    assert soup.details.to_json()["alpha"] == 0.5


def test_a_given_alpha_can_have_its_curve_and_is_not_chosen(lab):
    soup = WiseFT(alpha=0.1, alphas=COARSE).cook(lab.paths[:1], lab.task, base=lab.base)
    assert [p["alpha"] for p in soup.details.to_json()["curve"]] == [0, 0.1, 0.25, 0.5, 0.75, 1]
    assert (soup.details.to_json()["alpha"], soup.details.to_json()["rule"], soup.chosen_on) == (
        0.1,
        "given",
        None,
    )


def test_both_objectives_is_the_mean_over_held_out_splits(lab):
    other = Split(lab.task.splits["noise"].dataset, role="held-out")
    task = with_splits(lab.task, {**lab.task.splits, "noisy": other})
    soup = WiseFT(alphas=COARSE, objective="both").cook(lab.paths[:1], task, base=lab.base)

    def objective(point):
        return sum(point["scores"][s]["value"] for s in ("held-out", "noisy")) / 2

    best = max(map(objective, soup.details.to_json()["curve"]))
    assert objective(soup.details.to_json()["chosen"]) == best
    assert "held-out and noisy" in soup.details.to_json()["rule"]


def test_both_objectives_need_a_second_held_out_split(lab):
    with pytest.raises(RecipeError, match="held-out splits of the task are held-out; expected two"):
        WiseFT(objective="both").cook(lab.paths[:1], lab.task, base=lab.base)


def test_several_ingredients_stand_for_their_mean(lab):
    soup = WiseFT(alpha=0.5).cook(lab.paths[:2], base=lab.base)
    a, b, c = (load_file(p) for p in (lab.base, *lab.paths[:2]))
    name = "0.weight"
    expected = 0.5 * a[name] + 0.25 * b[name] + 0.25 * c[name]
    torch.testing.assert_close(soup.mixture.read(name), expected)


def test_patterns_fix_the_alpha_of_some_tensors(lab):
    soup = WiseFT(alpha=0.5, layer_alphas={"3.*": 0.0}).cook(lab.paths[:1], base=lab.base)
    a, b = load_file(lab.base), load_file(lab.paths[0])
    assert torch.equal(soup.mixture.read("3.weight"), a["3.weight"])
    expected = (a["0.weight"].double() + b["0.weight"].double()) / 2
    torch.testing.assert_close(soup.mixture.read("0.weight"), expected.float())
    with pytest.raises(RecipeError, match="no tensor matches"):
        WiseFT(alpha=0.5, layer_alphas={"x.*": 0.0}).cook(lab.paths[:1], base=lab.base)


def test_layers_move_only_where_held_out_rises(lab):
    soup = WiseFT(alphas=COARSE, by="layer").cook(lab.paths[:1], lab.task, base=lab.base)
    value = max(p["scores"]["held-out"]["value"] for p in soup.details.to_json()["curve"])
    for one in soup.details.to_json()["layers"]:
        assert one["accepted"] == (one["score"] > value)
        value = max(value, one["score"])
    assert soup.scores["held-out"].value == value
    assert {one["layer"] for one in soup.details.to_json()["layers"]} == {"0", "1", "3"}


def test_each_input_is_read_once_for_a_whole_curve(lab):
    class Counting(stockpot.Checkpoint):
        def __init__(self, path):
            self.inner = stockpot.open(path)
            super().__init__(path, dict(self.inner), files=self.inner.files)
            self.reads = dict.fromkeys(self.inner, 0)

        def raw(self, name):
            self.reads[name] += 1
            return self.inner.raw(name)

    base, tuned = Counting(lab.base), Counting(lab.paths[0])
    evaluator = TaskEvaluator(lab.task)
    stockpot.open(lab.base).fingerprint, stockpot.open(lab.paths[0]).fingerprint
    WiseFT().cook([tuned], base=base, evaluator=evaluator, report=False)
    assert set(base.reads.values()) == set(tuned.reads.values()) == {1}


def head_pair(folder, *, base_head, tuned_head):
    generator = torch.Generator().manual_seed(0)
    body = torch.randn(20, 30, generator=generator)
    near = body + 0.01 * torch.randn(20, 30, generator=generator)
    paths = []
    for name, weight, head in (("base", body, base_head), ("tuned", near, tuned_head)):
        tensors = {"body.0.weight": weight, "body.1.weight": 2 * weight, "body.2.weight": -weight}
        if head is not None:
            tensors |= {"head.weight": head, "head.bias": torch.zeros(len(head))}
        paths.append(str(folder / f"{name}.safetensors"))
        save_file({n: t.clone() for n, t in tensors.items()}, paths[-1])
    return paths


@pytest.mark.parametrize("classes", [None, 3])
def test_a_head_that_the_base_does_not_have_is_refused_with_an_offer(tmp_path, classes):
    own = None if classes is None else torch.randn(classes, 20)
    base, tuned = head_pair(tmp_path, base_head=own, tuned_head=torch.randn(5, 20))
    with pytest.raises(MismatchError, match="--keep-head") as refused:
        WiseFT(alpha=0.5).cook([tuned], base=base)
    assert {problem.tensor for problem in refused.value.problems} == {"head.weight", "head.bias"}
    soup = WiseFT(alpha=0.5, keep_head=True).cook([tuned], base=base)
    a, b = load_file(base), load_file(tuned)
    assert torch.equal(soup.mixture.read("head.weight"), b["head.weight"])
    torch.testing.assert_close(
        soup.mixture.read("body.0.weight"), (a["body.0.weight"] + b["body.0.weight"]) / 2
    )
    out = tmp_path / "soup.safetensors"
    soup.save(out)
    assert verify(out) == []


def test_a_head_that_was_initialised_anew_is_warned_of_and_can_be_kept(tmp_path):
    generator = torch.Generator().manual_seed(1)
    heads = [torch.randn(5, 20, generator=generator) for _ in range(2)]
    base, tuned = head_pair(tmp_path, base_head=heads[0], tuned_head=heads[1])
    (note,) = WiseFT(alpha=0.5).cook([tuned], base=base).notes
    assert "head of" in note
    assert "keep_head" in note
    kept = WiseFT(alpha=0.5, keep_head=True).cook([tuned], base=base)
    assert torch.equal(kept.mixture.read("head.weight"), heads[1])
    (note,) = kept.notes
    assert "kept as" in note
    assert note.endswith(": head")


def test_a_base_that_is_not_the_initialisation_is_warned_of(lab, tmp_path):
    torch.manual_seed(1)
    save_file(lab.task.build().state_dict(), tmp_path / "other.safetensors")
    soup = WiseFT(alpha=0.5).cook(lab.paths[:1], base=tmp_path / "other.safetensors")
    assert any("does not seem to share the initialisation" in note for note in soup.notes)


def test_a_barrier_on_the_path_is_warned_of(lab, tmp_path):
    """The same function with its hidden units in another order: a barrier with equal ends."""
    weights = load_file(lab.paths[0])
    order = torch.arange(24).roll(7)
    turned = {
        n: v[:, order] if n == "3.weight" else v if n == "3.bias" else v[order]
        for n, v in weights.items()
    }
    path = str(tmp_path / "turned.safetensors")
    save_file({n: v.contiguous() for n, v in turned.items()}, path)
    soup = WiseFT(alphas=COARSE).cook([path], lab.task, base=lab.paths[0])
    found = soup.details.to_json()["barrier"]
    assert found["height"] > HIGH_BARRIER
    assert any(f"{found['height']:.2f} nat" in note for note in soup.notes)
    assert soup.details.to_json()["alpha"] in (0, 1)


def test_a_plain_path_has_no_warning(drawn):
    assert drawn.notes == ()
    assert drawn.details.to_json()["barrier"]["height"] < HIGH_BARRIER


def test_several_tuned_models_share_one_reading_of_the_base(lab):
    each = WiseFT(alphas=()).cook_each(lab.paths[:2], lab.task, base=lab.base)
    alone = [WiseFT(alphas=()).cook([p], lab.task, base=lab.base).to_json() for p in lab.paths[:2]]
    assert [soup.to_json() for soup in each] == alone


def test_without_a_base_it_is_refused(lab):
    with pytest.raises(RecipeError, match="--base"):
        WiseFT(alpha=0.5).cook(lab.paths[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha is 1.5; expected 0 to 1"),
        ({"alphas": (0.5, -0.1)}, "alpha is -0.1"),
        ({"layer_alphas": {"x": 2.0}}, "alpha is 2.0"),
        ({"objective": "mean"}, "expected 'held-out' or 'both'"),
        ({"by": "tensor"}, "expected 'model' or 'layer'"),
        ({"by": "layer", "alpha": 0.5}, "leave one of them out"),
        ({"fisher_floor": 0.0}, "more than 0"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(RecipeError, match=message):
        WiseFT(**options)


def test_a_metric_where_less_is_better_is_minimised(lab):
    task = dataclasses.replace(lab.task, metric="cross-entropy")
    soup = WiseFT(alphas=COARSE).cook(lab.paths[:1], task, base=lab.base)
    values = [p["scores"]["held-out"]["value"] for p in soup.details.to_json()["curve"]]
    assert soup.scores["held-out"].value == min(values)
    best = soup.details.to_json()["best"]["held-out"]
    assert best["above_ends"] == pytest.approx(min(values[0], values[-1]) - min(values))


def test_everything_that_is_told_is_json(drawn):
    json.dumps(drawn.to_json(), allow_nan=False)


def test_a_task_without_class_labels_has_a_curve_all_the_same(lab):
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x[:, :10].clone())
    metric = stockpot.evaluate.MeanMetric(
        lambda outputs, targets: (outputs - targets).square().mean(1).double(), "mse",
        higher_is_better=False,
    )  # fmt: skip
    task = dataclasses.replace(lab.task, splits={"val": Split(data)}, metric=metric)
    soup = WiseFT(alphas=COARSE).cook(lab.paths[:1], task, base=lab.base)
    assert soup.details.to_json()["barrier"] is None
    assert soup.details.to_json()["diversity"] == {}
    assert np.isfinite(soup.details.to_json()["best"]["val"]["value"])


def test_details_survive_their_json(drawn, lab):
    for soup in (
        drawn,
        WiseFT(alpha=0.25).cook(lab.paths[:1], base=lab.base),
        WiseFT(alphas=COARSE, by="layer").cook(lab.paths[:1], lab.task, base=lab.base),
    ):
        data = json.loads(json.dumps(soup.to_json(), allow_nan=False))
        assert WiseFTDetails.from_json(data) == soup.details
        assert WiseFTDetails.from_json(data).to_json() == soup.details.to_json()


def test_tables_hold_the_curve_and_the_best_alpha_of_each_column(drawn):
    curve, best = drawn.details.tables({})
    assert [row.name for row in curve.rows] == [f"{p.alpha:g}" for p in drawn.details.curve]
    assert [row.name for row in curve.rows if row.chosen] == [f"{drawn.details.alpha:g}"]
    column = [column.name for column in curve.columns].index("test")
    assert [row.cells[column].value for row in curve.rows] == [
        point.scores["test"].value for point in drawn.details.curve
    ]
    assert {row.name for row in best.rows} == set(drawn.details.best)
    for row in best.rows:
        assert row.cells[1] == drawn.details.best[row.name].value


def test_the_figure_has_a_line_for_each_split_and_marks_the_chosen_point(drawn):
    (chart,) = drawn.details.figures({})
    assert {line.name for line in chart.lines} == set(drawn.details.at(0.5))
    assert [rule.value for rule in chart.rules] == [drawn.details.alpha]


def test_the_soup_stands_beside_its_ends_and_the_ensemble(drawn):
    soup = ScoredModel(name="wise-ft", scores=drawn.scores, chosen=True)
    rows = {model.name: model for model in drawn.details.models(soup)}
    assert list(rows) == ["wise-ft", "base", "tuned", "α = 0.5", "ensemble"]
    assert rows["base"].scores == drawn.details.curve[0].scores
    assert rows["ensemble"].models == 2


def test_ends_that_were_exchanged_are_pointed_out(lab):
    right = WiseFT(alphas=COARSE).cook(lab.paths[:1], lab.task, base=lab.base)
    assert not any("exchanged" in note for note in right.notes)
    wrong = WiseFT(alphas=COARSE).cook([lab.base], lab.task, base=lab.paths[0])
    assert any("are the two exchanged?" in note for note in wrong.notes)


def test_a_tuned_model_that_is_the_base_is_pointed_out(lab, tmp_path):
    copy = tmp_path / "copy.safetensors"
    save_file(load_file(lab.base), copy)
    (note,) = WiseFT(alpha=0.5).cook([copy], base=lab.base).notes
    assert f"{copy} holds the same weights as {lab.base}" in note
    almost = load_file(lab.base)
    almost["0.weight"][-1, -1] += 1e-3
    save_file(almost, copy)
    assert WiseFT(alpha=0.5).cook([copy], base=lab.base).notes == ()


@pytest.mark.parametrize("policy", ["averaged", "recalibrated", "clean"])
def test_a_batchnorm_model_with_itself_has_one_score_at_every_alpha(bn_lab, policy):
    evaluator = TaskEvaluator(bn_lab.task, batchnorm=policy)
    soup = WiseFT().cook([bn_lab.paths[0]], base=bn_lab.paths[0], evaluator=evaluator)
    for split in bn_lab.task.splits:
        assert len({p["scores"][split]["value"] for p in soup.details.to_json()["curve"]}) == 1


def test_interpolation_mixes_batchnorm_statistics_unless_asked_otherwise(bn_lab):
    plain = WiseFT(alpha=0.5).cook(bn_lab.paths[:1], bn_lab.task, base=bn_lab.base)
    assert plain.mixture.overrides is None
    evaluator = TaskEvaluator(bn_lab.task, batchnorm="recalibrated")
    asked = WiseFT(alpha=0.5).cook(bn_lab.paths[:1], base=bn_lab.base, evaluator=evaluator)
    assert "1.running_mean" in asked.mixture.overrides


def test_points_with_recalibrated_statistics_stand_beside_the_averaged_curve(bn_lab):
    soup = WiseFT(alphas=COARSE).cook(bn_lab.paths[:1], bn_lab.task, base=bn_lab.base)
    beside = {point.alpha: point.scores for point in soup.details.recalibrated}
    assert set(beside) == {0.0, 0.25, 0.5, 0.75, 1.0}
    evaluator = TaskEvaluator(bn_lab.task, batchnorm="recalibrated")
    asked = WiseFT(alphas=COARSE).cook(bn_lab.paths[:1], base=bn_lab.base, evaluator=evaluator)
    assert beside == {point.alpha: point.scores for point in asked.details.curve}
    assert asked.details.recalibrated == ()
    assert beside[0.5] != soup.details.at(0.5)
    assert [table.name for table in soup.details.tables({})] == [
        "curve", "recalibrated", "best-alphas",
    ]  # fmt: skip
    assert WiseFTDetails.from_json(json.loads(json.dumps(soup.to_json()))) == soup.details


def test_networks_without_batchnorm_have_one_curve(drawn):
    assert drawn.details.recalibrated == ()


def test_gains_and_scores_of_layers_that_moved_are_those_of_the_soup(lab):
    strayed = {name: value.clone() for name, value in load_file(lab.paths[0]).items()}
    strayed["3.weight"] += 0.6 * torch.randn(10, 24, generator=torch.Generator().manual_seed(1))
    soup = WiseFT(alphas=COARSE, by="layer").cook([strayed], lab.task, base=lab.base)
    assert any(step.accepted for step in soup.details.layers)
    chosen = soup.details.to_json()["chosen"]["scores"]
    for split, score in soup.scores.items():
        assert chosen[split]["value"] == score.value
        for end, alpha in (("base", 0.0), ("tuned", 1.0)):
            gap = score.value - soup.details.at(alpha)[split].value
            assert soup.details.gains[end][split].value == pytest.approx(gap, abs=1e-12)
    data = json.loads(json.dumps(soup.to_json(), allow_nan=False))
    assert WiseFTDetails.from_json(data) == soup.details


def test_categories_are_kept_of_the_base_and_not_of_what_layers_make_of_it(lab):
    data, targets = lab.task.splits["held-out"].dataset.tensors
    split = Split(
        TensorDataset(data, targets), role="held-out", categories=[str(int(y)) for y in targets]
    )
    task = dataclasses.replace(lab.task, splits={"held-out": split})
    spoilt = {name: value.clone() for name, value in load_file(lab.paths[0]).items()}
    spoilt["3.bias"][4] -= 50.0  # class 4 is never the answer
    recipe = WiseFT(alphas=COARSE, keep_categories=True, layer_alphas={"3.*": 1.0})
    with pytest.raises(RecipeError, match="every point of the path loses a category"):
        recipe.cook([spoilt], task, base=lab.base)
    free = dataclasses.replace(recipe, layer_alphas={})
    assert free.cook([spoilt], task, base=lab.base).details.alpha == 0.0

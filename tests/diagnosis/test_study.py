"""The whole study on five small fine-tunes: what it measures, and what it costs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stockpot.analysis.barrier import barrier
from stockpot.analysis.calibration import calibration, fit_beta
from stockpot.diagnosis.plan import plan
from stockpot.diagnosis.study import diagnose
from stockpot.errors import RecipeError
from stockpot.evaluate.metrics import CrossEntropy
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.memory import from_state_dict
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing import Coefficients, Mixture
from stockpot.mixing.ingredients import Ingredients
from stockpot.recipes import Greedy, ensemble


def mean_of(lab, members, base_share=0.0) -> Mixture:
    given = Ingredients([*lab.runs, lab.base])
    share = (1 - base_share) / len(members)
    return Mixture(
        given,
        Coefficients.per_model([share if i in members else 0.0 for i in range(5)] + [base_share]),
    )


def loss_of(lab, found, mixture, split="val") -> float:
    seen = found.evaluator.predictions(mixture, split)
    return CrossEntropy().compute(torch.from_numpy(seen.outputs.copy()), seen.targets)


def test_no_point_is_ever_evaluated_twice_and_the_plan_is_kept(lab, found) -> None:
    entries = found.evaluator.journal.entries()
    sizes = {"val": 500, "test": 797, "noise": 797}
    keys = {entry.key for entry in entries}
    assert len(keys) == len(entries) == found.diagnosis.spending.made
    by_split = {found.evaluator.fingerprint(s): n for s, n in sizes.items()}
    assert found.evaluator.counters.examples == sum(by_split[e.key.split] for e in entries)
    assert found.diagnosis.spending.made <= found.diagnosis.spending.planned


def test_a_second_call_makes_no_forward_pass_and_tells_the_same(lab, found) -> None:
    before = found.evaluator.counters.examples
    again = diagnose(
        lab.runs,
        base=lab.base,
        evaluator=found.evaluator,
        hyperparameters=dict(found.diagnosis.hyperparameters),
        between=[(lab.base, "uniform"), (lab.runs[3], lab.runs[4])],
    )
    assert found.evaluator.counters.examples == before
    one, other = (json.dumps({**d.to_json(), "budget": 0}) for d in (found.diagnosis, again))
    assert one == other


@pytest.mark.parametrize("budget", [11, 40, 100])
def test_a_small_budget_is_kept_and_what_is_left_out_is_named(lab, budget: int) -> None:
    evaluator = TaskEvaluator(lab.task, device="cpu")
    told: list[tuple[int, int | None]] = []
    diagnosis = diagnose(
        lab.runs,
        base=lab.base,
        evaluator=evaluator,
        budget=budget,
        progress=lambda done, total, what: told.append((done, total)),
    )
    assert diagnosis.spending.made <= diagnosis.spending.planned <= budget
    assert len(evaluator.journal.entries()) == diagnosis.spending.made
    assert any("budget" in note for note in diagnosis.notes)
    assert all(total is None or done <= total for done, total in told)
    json.dumps(diagnosis.to_json(), allow_nan=False)
    assert diagnosis.verdict.sentences


def test_a_budget_below_the_least_says_what_would_do(lab) -> None:
    with pytest.raises(RecipeError, match="--budget 11"):
        diagnose(lab.runs, lab.task, base=lab.base, budget=10)


def test_the_plan_of_twelve_is_as_documented() -> None:
    assert 380 <= sum(part.wish for part in plan(12, 1)) <= 480


def test_barriers_are_those_of_a_line_scored_by_hand(lab, found) -> None:
    (asked,) = [x for x in found.diagnosis.lines if (x.a, x.b) == (lab.runs[3], lab.runs[4])]
    given = Ingredients(lab.runs)
    losses = []
    for alpha in np.linspace(0, 1, 11):
        vector = [0.0, 0.0, 0.0, 1 - alpha, alpha]
        losses.append(loss_of(lab, found, Mixture(given, Coefficients.per_model(vector))))
    assert list(asked.losses) == pytest.approx(losses, abs=1e-6)
    height = barrier(np.linspace(0, 1, 11).round(9).tolist(), losses).height
    assert asked.barrier == pytest.approx(height, abs=1e-6)


def test_angle_and_advantage_are_those_of_the_midpoint(lab, found) -> None:
    pair = next(p for p in found.diagnosis.pairs if (p.i, p.j) == (1, 4))
    moves = []
    for i in (1, 4):
        run, base = mean_of(lab, [i]), mean_of(lab, [i], 1.0)
        moves.append(
            torch.cat([(run.read(n) - base.read(n)).double().reshape(-1) for n in sorted(run)])
        )
    cosine = float(moves[0] @ moves[1] / moves[0].norm() / moves[1].norm())
    assert pair.degrees == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-3)
    scores = [
        found.evaluator.score(mixture, "val").value
        for mixture in (mean_of(lab, [1, 4]), mean_of(lab, [1]), mean_of(lab, [4]))
    ]
    assert pair.advantage == pytest.approx(scores[0] - (scores[1] + scores[2]) / 2)
    assert pair.differs == ("seed",)


def test_soup_and_ensemble_of_a_pair_are_their_losses_at_the_soups_temperature(lab, found) -> None:
    pair = next(p for p in found.diagnosis.pairs if (p.i, p.j) == (0, 2))
    gap = pair.gaps[1]
    outputs = [
        found.evaluator.predictions(mean_of(lab, members), "val") for members in ([0, 2], [0], [2])
    ]
    targets = outputs[0].targets
    assert gap.beta == pytest.approx(fit_beta(outputs[0].outputs, targets.numpy()))
    f = [gap.beta * torch.from_numpy(found_.outputs.copy()).double() for found_ in outputs]
    cross_entropy = torch.nn.functional.cross_entropy
    assert gap.soup == pytest.approx(float(cross_entropy(f[0], targets)))
    assert gap.ensemble == pytest.approx(float(cross_entropy((f[1] + f[2]) / 2, targets)))
    assert gap.measured == pytest.approx(gap.soup - gap.ensemble)


def test_the_landscape_marks_every_model_where_it_lies(lab, found) -> None:
    plane = found.diagnosis.landscape
    assert plane is not None
    by_name = {mark.name: mark for mark in plane.marks}
    assert set(lab.runs) | {lab.base, "uniform"} <= set(by_name)
    base, first, second = (by_name[name] for name in plane.through)
    assert (base.x, base.y, base.distance) == pytest.approx((0, 0, 0), abs=1e-9)
    assert (first.y, first.distance, second.distance) == pytest.approx((0, 0, 0), abs=1e-6)
    middle = next(mark for mark in plane.marks if mark.kind == "midpoint")
    assert (middle.x, middle.y) == pytest.approx(
        ((first.x + second.x) / 2, (first.y + second.y) / 2)
    )
    members = [lab.runs.index(name) for name in plane.through[1:]]
    assert middle.loss == pytest.approx(loss_of(lab, found, mean_of(lab, members)), abs=1e-6)
    assert plane.lower is (middle.loss < min(first.loss, second.loss))
    far = [by_name[path] for path in lab.runs if path not in plane.through]
    assert all(mark.distance > 0 for mark in far)
    assert len(plane.spots) <= 81


def test_a_point_of_the_landscape_is_the_loss_of_the_weights_there(lab, found) -> None:
    plane = found.diagnosis.landscape
    assert plane is not None
    flat = {}
    for name, members, share in [("base", [0], 1.0), *((r, [lab.runs.index(r)], 0.0) for r in
                                                         plane.through[1:])]:  # fmt: skip
        mixture = mean_of(lab, members, share)
        flat[name] = {n: mixture.read(n).double() for n in mixture}
    names = sorted(flat["base"])
    cat = {k: torch.cat([v[n].reshape(-1) for n in names]) for k, v in flat.items()}
    a, b = (cat[r] - cat["base"] for r in plane.through[1:])
    u = a / a.norm()
    v = b - (b @ u) * u
    v = v / v.norm()
    spot = plane.spots[7]
    point = cat["base"] + spot.x * u + spot.y * v
    state, start = {}, 0
    for n in names:
        size = flat["base"][n].numel()
        state[n] = point[start : start + size].reshape(flat["base"][n].shape).float()
        start += size
    assert spot.loss == pytest.approx(loss_of(lab, found, from_state_dict(state)), rel=1e-4)


def test_calibration_is_fitted_on_held_out_and_reported_on_test(lab, found) -> None:
    diagnosis = found.diagnosis
    assert diagnosis.test == "test"
    row = next(row for row in diagnosis.calibration if row.name == "uniform")
    seen = {s: found.evaluator.predictions(mean_of(lab, range(5)), s) for s in ("val", "test")}
    beta = fit_beta(seen["val"].outputs, seen["val"].targets.numpy())
    targets = seen["test"].targets.numpy()
    assert row.before == calibration(seen["test"].outputs, targets)
    assert row.after == calibration(seen["test"].outputs, targets, beta=beta)
    assert {r.kind for r in diagnosis.calibration} == {"run", "soup", "ensemble"}


def test_scores_are_those_of_the_evaluator_and_of_the_recipes(lab, found) -> None:
    models = found.diagnosis.models
    assert models["uniform"].scores == found.evaluator.scores(mean_of(lab, range(5)))
    soup = Greedy(early_rejection=False).cook(lab.runs, evaluator=found.evaluator)
    assert found.diagnosis.kept == soup.selected
    assert models["greedy"].scores == soup.scores
    together = ensemble(found.evaluator, [open_checkpoint(path) for path in lab.runs])
    assert models["ensemble"].scores == together.scores
    best = max(lab.runs, key=lambda path: models[path].scores["val"].value)
    assert models[found.diagnosis.best].scores["val"] == models[best].scores["val"]
    gain = found.diagnosis.gains["uniform"]["test"]
    expected = models["uniform"].scores["test"].value
    expected -= models[found.diagnosis.best].scores["test"].value
    assert gain.value == pytest.approx(expected)


def test_what_an_ingredient_contributes_is_the_score_that_leaves_with_it(lab, found) -> None:
    contribution = next(
        w for w in found.diagnosis.contributions if w.path == lab.runs[2] and w.soup == "uniform"
    )
    whole, rest = (
        found.evaluator.score(mean_of(lab, members), "val").value
        for members in (range(5), [0, 1, 3, 4])
    )
    assert contribution.difference == pytest.approx(whole - rest)
    assert contribution.low <= contribution.difference <= contribution.high


def test_growth_begins_with_single_models_and_ends_with_the_uniform_soup(lab, found) -> None:
    growth = found.diagnosis.growth
    assert [point.n_ingredients for point in growth] == [1, 2, 3, 4, 5]
    uniform = found.diagnosis.models["uniform"].scores["val"].value
    assert growth[-1].mean["val"] == pytest.approx(uniform)


def test_layers_have_distances_of_every_run_and_angles_of_all_pairs(lab, found) -> None:
    layers = found.diagnosis.layers
    assert [layer.layer for layer in layers] == ["0", "2"]
    for layer in layers:
        assert set(layer.distances) == set(lab.runs)
        assert 0 < layer.low <= layer.median <= layer.high < 180


def test_a_stranger_is_named_and_has_a_barrier(lab) -> None:
    diagnosis = diagnose([*lab.runs[:2], lab.stranger], lab.task, base=lab.base, budget=60)
    told = {m["path"]: m for m in diagnosis.to_json()["same_init"]["ingredients"]}
    assert told[lab.stranger]["verdict"] == "different"
    text = " ".join(diagnosis.verdict.sentences)
    assert "stranger most likely did not start from the base" in text
    barriers = {(p.i, p.j): p.barrier for p in diagnosis.pairs}
    assert barriers[0, 2] > 10 * barriers[0, 1] + 0.1


def test_copies_span_no_plane_and_the_notes_say_so(lab) -> None:
    diagnosis = diagnose([lab.runs[0]] * 2, lab.task, base=lab.base)
    assert diagnosis.landscape is None
    assert any("one line through the base" in note for note in diagnosis.notes)
    json.dumps(diagnosis.to_json(), allow_nan=False)


def test_what_cannot_be_diagnosed_is_refused(lab) -> None:
    with pytest.raises(RecipeError, match="at least two"):
        diagnose(lab.runs[:1], lab.task, base=lab.base)
    with pytest.raises(RecipeError, match="--base"):
        diagnose(lab.runs, lab.task)
    with pytest.raises(RecipeError, match=r"nowhere: no such model"):
        diagnose(lab.runs, lab.task, base=lab.base, between=[("nowhere", "uniform")])

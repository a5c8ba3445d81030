"""Metrics that decide in order: a later one where models are equal by the earlier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import TensorDataset

import stockpot
from stockpot.evaluate.early_rejection import AcceptanceRule, decide
from stockpot.evaluate.metrics import InOrder, metric_by_name
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import (
    Auto,
    BestSingle,
    Greedy,
    Pruned,
    SoCE,
    TaskArithmetic,
    Trajectory,
    Uniform,
    WiseFT,
)
from stockpot.recipes.ensembles import greedy_ensemble
from stockpot.recipes.learned.recipe import _decide
from stockpot.report import open_report
from stockpot.report.page import to_html
from stockpot.tasks import ClassificationTask

ORDER = "accuracy then balanced-accuracy"
TARGETS = torch.tensor([0, 0, 0, 0, 1, 1])


def task(
    metric: str, targets: torch.Tensor = TARGETS, *, categories: list[str] | None = None
) -> ClassificationTask:
    """The model's output for example i is row i of its weight: what it says is written down."""
    n = len(targets)
    data = TensorDataset(torch.eye(n), targets)
    return ClassificationTask(
        build=lambda: torch.nn.Linear(n, 2, bias=False),
        splits={"val": Split(data, role="held-out", categories=categories)},
        metric=metric,
        batch_size=16,
        version="1",
    )


def margins(*values: float) -> stockpot.Checkpoint:
    """A model whose logits are (m, −m): class 0 where m is not negative."""
    rows = torch.tensor(values, dtype=torch.float32)
    return stockpot.from_state_dict({"weight": torch.stack([rows, -rows])})


# Accuracy 4/6 both; balanced (4/4 + 0/2) / 2 = 0.5 and (3/4 + 1/2) / 2 = 0.625. Their mean is at 0
# where they differ, which counts as class 0: it answers as PLAIN does.
PLAIN = margins(1, 1, 1, 1, 1, 1)
FAIR = margins(1, 1, 1, -1, -1, 1)


def test_a_name_gives_the_metrics_in_order_and_the_value_is_that_of_the_first() -> None:
    metric = metric_by_name("accuracy by worst then loss")
    assert isinstance(metric, InOrder)
    assert metric.name == "accuracy by worst then cross-entropy"
    assert [one.name for one in (metric.of, *metric.then)] == ["accuracy by worst", "cross-entropy"]
    assert metric.higher_is_better
    evaluator = TaskEvaluator(task(ORDER), device="cpu")
    score = evaluator.score(FAIR, "val")
    assert (score.value, score.metric) == (4 / 6, "accuracy")
    for model, balanced in ((PLAIN, 0.5), (FAIR, 0.625)):
        found = evaluator.standing(evaluator.predictions(model, "val"), "val")
        assert found == (4 / 6, balanced)
    losses = TaskEvaluator(task("loss then accuracy"), device="cpu")
    loss, accuracy = losses.standing(losses.predictions(PLAIN, "val"), "val")
    assert loss < 0 < accuracy == 4 / 6


@pytest.mark.parametrize(("metric", "first"), [("accuracy", PLAIN), (ORDER, FAIR)])
def test_equal_singles_are_ranked_by_the_next_metric(
    metric: str, first: stockpot.Checkpoint
) -> None:
    best = BestSingle().cook([PLAIN, FAIR], task(metric))
    assert torch.equal(best.mixture.read("weight"), first.read("weight"))
    top = Uniform(top=1).cook([PLAIN, FAIR], task(metric))
    assert torch.equal(top.mixture.read("weight"), first.read("weight"))


def test_greedy_and_pruned_leave_out_what_is_equal_and_then_worse() -> None:
    # From FAIR, the mean with PLAIN is equal by accuracy and has 0.5 balanced, less than 0.625.
    assert len(Greedy().cook([FAIR, PLAIN], task("accuracy")).selected) == 2
    kept = Greedy().cook([FAIR, PLAIN], task(ORDER))
    assert len(kept.selected) == 1
    assert torch.equal(kept.mixture.read("weight"), FAIR.read("weight"))
    assert kept.steps[1].score == 4 / 6
    assert not kept.steps[1].accepted
    # Of both, taking out PLAIN (the worse by ORDER) raises the balanced accuracy to 0.625.
    assert len(Pruned(accept="gt").cook([FAIR, PLAIN], task("accuracy")).selected) == 2
    assert len(Pruned(accept="gt").cook([FAIR, PLAIN], task(ORDER)).selected) == 1
    # Of logits it is as of weights here.
    for metric, members in (("accuracy", 2), (ORDER, 1)):
        evaluator = TaskEvaluator(task(metric), device="cpu")
        assert len(greedy_ensemble(evaluator, [FAIR, PLAIN], "val").members) == members


@pytest.mark.parametrize(
    ("accept", "candidate", "accepted"),
    [
        ("ge", FAIR, True),  # equal, then better
        ("gt", FAIR, True),
        ("ge", PLAIN, True),  # equal in all
        ("gt", PLAIN, False),
        ("ge", margins(1, 1, 1, -1, 1, 1), False),  # 3/6, though 0.375 balanced matters no more
    ],
)
def test_acceptance_by_hand(accept: str, candidate: stockpot.Checkpoint, accepted: bool) -> None:
    for early in (True, False):
        evaluator = TaskEvaluator(task(ORDER), device="cpu")
        current = evaluator.predictions(PLAIN, "val")
        rule = AcceptanceRule(accept, early=early)  # type: ignore[arg-type]  # a Literal
        found = decide(evaluator, candidate, "val", current=current, rule=rule)
        assert found.accepted is accepted


def test_a_gain_that_is_asked_for_is_one_of_the_first_metric() -> None:
    """A gain of exactly 1/8 is what `ge` asks for, though the loss is worse."""
    evaluator = TaskEvaluator(task(ORDER), device="cpu")
    current = evaluator.predictions(PLAIN, "val")
    rule = AcceptanceRule("gt", min_gain=1 / 6)
    five = margins(1, 1, 1, 1, -1, 1)
    assert not decide(evaluator, FAIR, "val", current=current, rule=rule).accepted
    exactly = AcceptanceRule("ge", min_gain=1 / 8)
    eight = TaskEvaluator(task("accuracy then loss", torch.tensor([0] * 7 + [1])), device="cpu")
    before = eight.predictions(margins(*[1.0] * 8), "val")
    found = margins(*[0.01] * 7, -0.01)
    assert decide(eight, found, "val", current=before, rule=exactly).accepted
    rule = AcceptanceRule("gt", min_gain=0.16)
    assert decide(evaluator, five, "val", current=current, rule=rule).accepted


def test_task_arithmetic_takes_the_best_of_equal_scales() -> None:
    # From a scale of 1/3 on all are right, ever more surely.
    base, tuned = margins(*[-1.0] * 6), margins(*[2.0] * 6)
    targets = torch.zeros(6, dtype=torch.long)
    recipe = TaskArithmetic(scales=(0.4, 0.7, 1.0, 1.5))
    assert recipe.cook([tuned], task("accuracy", targets), base=base).details.scale == 1.0
    found = recipe.cook([tuned], task("accuracy then loss", targets), base=base)
    assert found.details.scale == 1.5
    assert found.decided_by == ("accuracy", "cross-entropy")


def test_a_trajectory_takes_the_best_of_equal_windows() -> None:
    models = [margins(*[value] * 6) for value in (1.0, 1.5, 2.0, 9.0)]
    targets = torch.zeros(6, dtype=torch.long)
    longest = Trajectory().cook(models, task("accuracy", targets)).details.window
    surest = Trajectory().cook(models, task("accuracy then loss", targets)).details.window
    assert longest.count == 4
    assert surest.count == 1


def test_experts_of_categories_take_the_best_of_equal_weights() -> None:
    targets = torch.zeros(4, dtype=torch.long)
    categories = ["a", "a", "b", "b"]
    # Shares of 0.1 to 0.9 of the first are right everywhere; the loss is least at 0.6.
    one, other = margins(2, 2, -0.1, -0.1), margins(-0.1, -0.1, 3, 3)
    plain = SoCE().cook([one, other], task("accuracy", targets, categories=categories))
    ordered = SoCE().cook([one, other], task("accuracy then loss", targets, categories=categories))
    assert list(plain.coefficients.values()) == [0.5, 0.5]
    loss = SoCE().cook([one, other], task("loss", targets, categories=categories))
    assert ordered.coefficients == loss.coefficients != plain.coefficients


def test_a_learned_soup_is_left_for_an_equal_one_that_the_next_metric_prefers() -> None:
    assert _decide({"learned": (1.0, -0.2), "uniform": (1.0, -0.1), "greedy": (0.9, 0.0)}) == (
        "uniform"
    )
    assert _decide({"learned": (1.0, -0.1), "uniform": (1.0, -0.1), "greedy": (1.0, -0.3)}) == (
        "learned"
    )


@pytest.mark.parametrize("metric", ["accuracy then loss", "loss then accuracy"])
@pytest.mark.parametrize("accept", ["ge", "gt"])
def test_early_rejection_gives_the_soup_of_the_plain_loop(metric: str, accept: str) -> None:
    """Among them scaled copies, whose means have equal accuracies and other losses."""
    n, generator = 160, torch.Generator().manual_seed(0)
    targets = torch.randint(0, 2, (n,), generator=generator)
    models = []
    for scale in (3.0, 0.2):
        right = torch.rand(n, generator=generator) < 0.8
        sign = torch.where(right == (targets == 0), 1.0, -1.0)
        own = sign * torch.rand(n, generator=generator)
        models += [margins(*own.tolist()), margins(*(scale * own).tolist())]
    soups = []
    for early in (True, False):
        evaluator = TaskEvaluator(task(metric, targets), device="cpu")
        options = {"accept": accept, "early_rejection": early, "explain": False}
        recipe = Greedy(**options)  # type: ignore[arg-type]
        soups.append(recipe.cook(models, evaluator=evaluator, report=False))
    early, plain = soups
    assert early.selected == plain.selected
    assert [step.accepted for step in early.steps] == [step.accepted for step in plain.steps]
    assert early.examples_evaluated <= plain.examples_evaluated


def test_interpolation_takes_the_best_of_equal_points() -> None:
    # Class 0 everywhere from α = 1/3 on, ever more surely: equal accuracies, falling losses.
    base, tuned = margins(*[-1.0] * 6), margins(*[2.0] * 6)
    targets = torch.zeros(6, dtype=torch.long)
    assert WiseFT().cook([tuned], task("accuracy", targets), base=base).details.alpha == 0.5
    found = WiseFT().cook([tuned], task("accuracy then loss", targets), base=base)
    assert (found.details.alpha, found.scores["val"].value) == (1.0, 1.0)
    layers = WiseFT(by="layer", alphas=(0.5,)).cook(
        [tuned], task("accuracy then loss", targets), base=base
    )
    assert layers.details.alpha == 1.0


def sure_and_unsure(n: int = 120) -> tuple[stockpot.Checkpoint, stockpot.Checkpoint]:
    """One right everywhere and hardly sure; one sure, and wrong in two places, hardly."""
    return margins(*[0.1] * n), margins(*[10.0] * (n - 2), -0.05, -0.05)


@pytest.mark.parametrize("prefer", ["simple", "score"])
def test_auto_goes_on_to_the_next_metric_among_those_within_noise(prefer: str) -> None:
    """The mean of the two is as right as the first, and far surer: its loss is beyond noise."""
    targets = torch.zeros(120, dtype=torch.long)
    options = {"recipes": ("uniform",), "ensembles": False, "prefer": prefer}
    plain = Auto(**options).cook(list(sure_and_unsure()), task("accuracy", targets))
    assert plain.details.chosen == "best-single"
    assert plain.details.compared == ()
    found = Auto(**options).cook(list(sure_and_unsure()), task("accuracy then loss", targets))
    assert (found.details.chosen, found.details.ahead) == ("uniform", "uniform")
    (compared,) = found.details.compared
    assert compared.columns == ("accuracy", "cross-entropy")
    assert compared.higher_is_better == (True, False)
    assert list(compared.values) == ["best-single", "uniform"]
    # −log σ(2m): m = 0.1 everywhere; m = 5.05 in 118 places and 0.025 in two.
    loss = torch.nn.functional.softplus
    one, two = (float(loss(torch.tensor(-2.0 * m, dtype=torch.float64))) for m in (0.1, 5.05))
    last = float(loss(torch.tensor(-0.05, dtype=torch.float64)))
    assert compared.values["best-single"] == pytest.approx((1.0, one))
    assert compared.values["uniform"] == pytest.approx((1.0, (118 * two + 2 * last) / 120))
    assert compared.front == ("uniform",)


def test_what_decided_is_recorded_and_shown_and_the_soup_verifies(tmp_path: Path) -> None:
    targets = torch.zeros(120, dtype=torch.long)
    categories = ["sure"] * 118 + ["unsure"] * 2
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "run-0", "run-1")]
    for path, model in zip(
        paths, (margins(*[-1.0] * 118, 1.0, 1.0), *sure_and_unsure()), strict=True
    ):
        save_file({"weight": model.read("weight").contiguous()}, path)
    soup = Auto(recipes=("uniform",), ensembles=False).cook(
        paths[1:], task("accuracy then loss", targets, categories=categories), base=paths[0]
    )
    assert soup.decided_by == ("accuracy", "cross-entropy")
    assert "of equal accuracy, cross-entropy decided" in soup.notes
    by_metric, by_category = soup.details.compared
    assert by_category.values["base"] == (0.0, 1.0)
    assert by_category.front == ("best-single", "uniform")
    soup.save(tmp_path / "soup.safetensors")
    assert not stockpot.verify(tmp_path / "soup.safetensors")
    again = stockpot.Soup.load(tmp_path / "soup.safetensors")
    assert again.decided_by == soup.decided_by
    assert again.details.compared == (by_metric, by_category)
    report = open_report(tmp_path / "soup.safetensors")
    tables = {table.title: table for table in report.figures if table.title.startswith("Cand")}
    assert list(tables) == ["Candidates by metric", "Candidates by category"]
    marks = {row.name: row.cells[0] for row in tables["Candidates by metric"].rows}
    assert marks == {"best-single": "", "uniform": "yes", "base": ""}
    html = to_html(report)
    assert "cross-entropy (less is better)" in html
    assert "of equal accuracy, cross-entropy decided" in html

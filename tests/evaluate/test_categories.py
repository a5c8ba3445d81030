"""Examples of named categories: scores by category, and metrics that decide by them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import stockpot
from stockpot.errors import EvaluationError, RecipeError, TaskError
from stockpot.evaluate.callable import CallableEvaluator
from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.metrics import by_category, metric_by_name, value_of
from stockpot.evaluate.splits import part_of
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import Auto, BestSingle, Greedy, Uniform, WiseFT
from stockpot.recipes.ensembles import compare_models, pareto_front
from stockpot.tasks import ClassificationTask

# The model's output for example i is row i of its weight: what it says is written down.
N = 6
TARGETS = torch.tensor([0, 0, 0, 0, 1, 1])
CATEGORIES = ("news", "news", "news", "news", "law", "law")


def task(metric: str, *, categories: tuple[str, ...] | None = CATEGORIES) -> ClassificationTask:
    data = TensorDataset(torch.eye(N), TARGETS)
    return ClassificationTask(
        build=lambda: torch.nn.Linear(N, 2, bias=False),
        splits={
            "val": Split(data, role="held-out", categories=categories),
            "test": Split(data, role="test", categories=categories),
        },
        metric=metric,
        version="1",
    )


def model(*answers: int) -> stockpot.Checkpoint:
    """One that answers these classes, by logits of ±1."""
    rows = torch.tensor(answers) * 2.0 - 1
    return stockpot.from_state_dict({"weight": torch.stack([-rows, rows])})


ALL_NEWS = model(0, 0, 0, 0, 0, 0)  # accuracy 4/6; news 1, law 0
BALANCED = model(0, 0, 1, 1, 1, 0)  # accuracy 3/6; news 1/2, law 1/2


@pytest.mark.parametrize(
    ("metric", "first", "second"),
    [
        ("accuracy", 4 / 6, 3 / 6),
        ("accuracy by worst", 0, 1 / 2),
        ("accuracy by mean", 1 / 2, 1 / 2),
        ("accuracy by law", 0, 1 / 2),
        ("accuracy by news", 1, 1 / 2),
    ],
)
def test_values_by_hand(metric: str, first: float, second: float) -> None:
    evaluator = TaskEvaluator(task(metric), device="cpu")
    for one, expected in ((ALL_NEWS, first), (BALANCED, second)):
        score = evaluator.score(one, "val")
        assert score.value == expected
        assert score.metric == metric
        assert score.low is not None
        assert score.low <= score.value <= score.high


def test_the_worst_of_losses_is_the_largest() -> None:
    outputs = torch.tensor([[2.0, 0], [2.0, 0]])
    targets = torch.tensor([0, 1])
    metric = metric_by_name("loss by worst")
    each = by_category(metric_by_name("loss"), outputs, targets, ["a", "b"])
    assert metric.compute_by(outputs, targets, ["a", "b"]) == max(each.values())
    assert not metric.higher_is_better


def test_the_metric_decides_what_is_chosen() -> None:
    chosen = {
        metric: BestSingle().cook([ALL_NEWS, BALANCED], task(metric)).selected
        for metric in ("accuracy", "accuracy by worst")
    }
    assert chosen["accuracy"] != chosen["accuracy by worst"]
    soup = Greedy().cook([ALL_NEWS, BALANCED], task("accuracy by worst"))
    assert soup.scores["val"].value >= 0.5


def test_without_categories_it_is_the_metric_itself() -> None:
    evaluator = TaskEvaluator(task("accuracy by worst", categories=None), device="cpu")
    assert evaluator.score(ALL_NEWS, "val").value == 4 / 6


def test_resamples_go_by_the_categories_of_their_examples() -> None:
    evaluator = TaskEvaluator(task("accuracy by law"), device="cpu")
    found = evaluator.predictions(BALANCED, "val")
    assert found.score(np.array([0, 1, 4])) == 1
    assert found.score(np.array([5, 5, 0])) == 0
    assert np.isnan(found.score(np.array([0, 1])))
    assert {name: part.score(np.arange(len(part.targets))) for name, part in
            found.by_category().items()} == {"law": 0.5, "news": 0.5}  # fmt: skip


def test_models_are_compared_by_category() -> None:
    evaluator = TaskEvaluator(task("accuracy"), device="cpu")
    found = compare_models(evaluator, [ALL_NEWS, BALANCED])
    first, second = found.categories.values()
    assert {name: score.value for name, score in first["test"].items()} == {"law": 0, "news": 1}
    assert {name: score.n for name, score in second["test"].items()} == {"law": 2, "news": 4}
    table = next(table for table in found.tables() if table.title == "test, by category")
    assert [column.name for column in table.columns] == ["law", "news", "worst category"]
    assert [row.cells for row in table.rows] == [(0, 1, "law"), (0.5, 0.5, "law")]
    path = next(iter(found.scores))
    assert found.to_json()["categories"][path]["val"]["news"]["value"] == 1
    plain = compare_models(TaskEvaluator(task("accuracy", categories=None)), [ALL_NEWS])
    assert "categories" not in plain.to_json()


def test_a_part_of_a_split_has_the_categories_of_its_examples() -> None:
    part = part_of(task("accuracy").splits["val"], [5, 0], fingerprint="f")
    assert part.categories == ("law", "news")


def test_a_category_for_each_example_is_expected() -> None:
    split = task("accuracy").splits["val"]
    with pytest.raises(TaskError, match=r"6 examples has 2 categories; expected one for each"):
        replace(split, categories=("a", "b"))


def test_categories_in_which_a_soup_is_worse_beyond_noise_are_named() -> None:
    """Uniform of two: what one of them has right in `law` is lost, and `news` is as before."""
    n = 60
    inputs, targets = torch.eye(n), torch.zeros(n, dtype=torch.long)
    categories = ["law"] * 30 + ["news"] * 30
    splits = {
        name: Split(TensorDataset(inputs[part], targets[part]), role=role, categories=own)
        for name, role, part, own in (
            ("val", "held-out", slice(0, n, 2), categories[::2]),
            ("test", "test", slice(1, n, 2), categories[1::2]),
        )
    }
    made = ClassificationTask(
        build=lambda: torch.nn.Linear(n, 2, bias=False), splits=splits, version="1"
    )
    right = torch.tensor([1.0, -1.0])
    wrong = torch.stack([-3 * right if name == "law" else right for name in categories], dim=1)
    models = [
        stockpot.from_state_dict({"weight": right[:, None].repeat(1, n)}),
        stockpot.from_state_dict({"weight": wrong}),
    ]
    soup = Uniform().cook(models, made)
    (note,) = [note for note in soup.notes if "categories" in note]
    assert note.startswith("on test it is worse than best-single beyond noise in 1 of 2 categories")
    assert "-100.0 points in law" in note
    assert "news" not in note
    assert not [note for note in BestSingle().cook(models, made).notes if "categories" in note]


def test_further_metrics_are_made_of_the_same_outputs() -> None:
    evaluator = TaskEvaluator(task("accuracy"), device="cpu")
    found = compare_models(
        evaluator, [ALL_NEWS, BALANCED], metrics=["accuracy by worst", "loss", "accuracy"]
    )
    assert evaluator.counters.examples == 2 * N  # both splits have the same examples
    first, second = found.also.values()
    assert list(first) == ["accuracy by worst", "cross-entropy"]
    assert first["accuracy by worst"]["test"].value == 0
    assert second["accuracy by worst"]["test"].value == 1 / 2
    for one, model_ in ((first, ALL_NEWS), (second, BALANCED)):
        alone = TaskEvaluator(task("loss"), device="cpu").score(model_, "val")
        assert one["cross-entropy"]["val"] == alone
    assert set(found.front) == set(found.scores)
    table = next(table for table in found.tables() if table.title == "val, by metric")
    assert [column.name for column in table.columns] == [
        "accuracy",
        "accuracy by worst",
        "cross-entropy (less is better)",
        "Pareto front",
    ]
    path = next(iter(found.scores))
    assert found.to_json()["metrics"][path]["accuracy by worst"]["val"]["value"] == 0
    plain = compare_models(evaluator, [ALL_NEWS])
    assert "metrics" not in plain.to_json()
    assert plain.front == ()


def test_a_function_gives_no_outputs_to_make_another_metric_of() -> None:
    evaluator = CallableEvaluator(lambda model: 1.0, build=task("accuracy").build)
    with pytest.raises(EvaluationError, match=r"a further metric \(cross-entropy\) needs outputs"):
        compare_models(evaluator, [ALL_NEWS], metrics=["loss"])
    with pytest.raises(EvaluationError, match="no metric is named 'lose'"):
        compare_models(evaluator, [ALL_NEWS], metrics=["lose"])


def test_a_model_that_another_betters_in_everything_is_not_on_the_front() -> None:
    evaluator = TaskEvaluator(task("accuracy"), device="cpu")
    worst = model(1, 1, 1, 1, 0, 0)
    found = compare_models(evaluator, [ALL_NEWS, worst, BALANCED], metrics=["accuracy by worst"])
    paths = list(found.scores)
    assert found.front == (paths[0], paths[2])
    assert pareto_front({}) == ()


def test_interpolation_stops_where_it_would_lose_a_category_to_the_base() -> None:
    """By hand: law is right below α = 1/3, half of news above 0.22, the other half above 0.52."""
    n = 120
    data = TensorDataset(torch.eye(n), torch.zeros(n, dtype=torch.long))
    categories = ["law"] * 30 + ["news"] * 90
    made = ClassificationTask(
        build=lambda: torch.nn.Linear(n, 2, bias=False),
        splits={"val": Split(data, role="held-out", categories=categories)},
        version="1",
    )

    def answers(law: float, first: float, second: float) -> stockpot.Checkpoint:
        margin = torch.tensor([law] * 30 + [first] * 45 + [second] * 45)
        return stockpot.from_state_dict({"weight": torch.stack([margin, -margin])})

    base, tuned = answers(1.0, -1.0, -1.0), answers(-2.0, 3.54, 0.92)
    plain = WiseFT().cook([tuned], made, base=base)
    assert (plain.details.alpha, plain.scores["val"].value) == (0.55, 90 / 120)
    kept = WiseFT(keep_categories=True).cook([tuned], made, base=base)
    assert (kept.details.alpha, kept.scores["val"].value) == (0.3, 75 / 120)
    assert "of those that lose no category to the base" in kept.details.rule
    # The layer is better at 0.55, and would lose law there.
    layers = WiseFT(by="layer", alphas=(0.3,), keep_categories=True).cook([tuned], made, base=base)
    found = {round(step.alpha, 2): (step.score, step.accepted) for step in layers.details.layers}
    assert found == {0.05: (30 / 120, False), 0.55: (90 / 120, False)}
    chosen = Auto(recipes=("wise-ft",), ensembles=False, keep_categories=True).cook(
        [tuned], made, base=base
    )
    assert (chosen.details.chosen, chosen.scores["val"].value) == ("wise-ft", 75 / 120)
    with pytest.raises(RecipeError, match="alpha is given"):
        WiseFT(alpha=0.5, keep_categories=True)
    bare = replace(made, splits={"val": Split(data, role="held-out")})
    with pytest.raises(RecipeError, match="val has no categories to keep"):
        WiseFT(keep_categories=True).cook([tuned], bare, base=base)


def test_the_constraint_takes_no_soup_that_loses_a_category_to_the_base() -> None:
    """`wide` is best over all, and has lost the whole of `law`, in which the base was right."""
    n = 120
    inputs, targets = torch.eye(n), torch.zeros(n, dtype=torch.long)
    categories = ["law"] * 30 + ["news"] * 90
    data = TensorDataset(inputs, targets)
    made = ClassificationTask(
        build=lambda: torch.nn.Linear(n, 2, bias=False),
        splits={"val": Split(data, role="held-out", categories=categories)},
        version="1",
    )

    def answers(law: float, news: float) -> stockpot.Checkpoint:
        margin = torch.tensor([law] * 30 + [news] * 90, dtype=torch.float32)
        return stockpot.from_state_dict({"weight": torch.stack([margin, -margin])})

    base, wide, kind = answers(1, -1), answers(-9, 9), answers(0.5, -1)
    options = {"recipes": ("uniform", "greedy"), "ensembles": False, "prefer": "score"}
    plain = Auto(**options).cook([wide, kind], made, base=base)
    assert plain.scores["val"].value == 0.75
    kept = Auto(**options, keep_categories=True).cook([wide, kind], made, base=base)
    rows = {row.recipe: row for row in kept.details.table}
    assert rows["best-single"].reason.startswith("worse than base: -100.0 points in law")
    assert all(row.reason for name, row in rows.items() if name != "base")
    assert any("the constraint chose nothing" in note for note in kept.notes)
    mild = answers(0.5, 0.25)
    kept = Auto(**options, keep_categories=True).cook([wide, mild, kind], made, base=base)
    assert kept.details.chosen == "best-single"
    assert kept.scores["val"].value == 1
    barred = [row.recipe for row in kept.details.table if row.reason]
    assert barred == ["uniform"]
    assert barred == [
        row.recipe for row in kept.details.table if not row.chosen_from and row.recipe != "base"
    ]
    assert "uniform could not be chosen: worse than base" in " ".join(kept.details.sentences(kept))
    with pytest.raises(RecipeError, match="val has no categories to keep"):
        Auto(**options, keep_categories=True).cook(
            [wide, kind],
            replace(made, splits={"val": Split(data, role="held-out")}),
            base=base,
        )


@pytest.mark.parametrize(
    "name", ["accuracy by worst", "loss by mean", "f1-macro by worst", "loss by b", "accuracy by x"]
)
def test_resamples_have_the_values_of_their_examples(name: str) -> None:
    """Of means a resample takes the values by example once, and is what anew computing gives."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(60, 3)).astype(np.float32)
    targets = torch.from_numpy(rng.integers(0, 3, 60))
    categories = [str(c) for c in rng.choice(["a", "b", "c"], 60)]
    metric = metric_by_name(name)
    predictions = Predictions(outputs, targets, None, metric, categories)
    for _ in range(20):
        index = rng.integers(0, 60, 25)
        again = value_of(
            metric,
            torch.from_numpy(outputs[index]),
            targets[index],
            [categories[i] for i in index],
        )
        assert predictions.value(metric, index) == pytest.approx(again, rel=1e-12, nan_ok=True)

"""What every recipe must do, as checks that raise AssertionError."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from stockpot._figures import figure_from_json
from stockpot.errors import SplitRoleError
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task import Role, Task
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing.ingredients import Ingredients
from stockpot.recipes.base import Recipe, recipe_to_json
from stockpot.recipes.card import model_card
from stockpot.recipes.reading import read_summary
from stockpot.recipes.record import SoupRecord, verify
from stockpot.recipes.result import RecordedDetails
from stockpot.recipes.soup import Soup


@dataclass(frozen=True)
class RecipeCase:
    """A recipe and what to try it on.

    Attributes:
        recipe: the recipe.
        paths: checkpoints of different content, with different scores.
        task: with one held-out split, a test split and a shift.
        folder: empty, to write to.
        base: the common initialisation, for recipes that need one.
        order_matters: whether the order of arguments is one of its options.
    """

    recipe: Recipe
    paths: Sequence[str]
    task: Task
    folder: Path
    base: str | None = None
    order_matters: bool = False

    def cook(self, *, evaluator: Evaluator | None = None, report: bool = False) -> Soup:
        """The soup of this case."""
        scorer = TaskEvaluator(self.task) if evaluator is None else evaluator
        return self.recipe.cook(
            list(self.paths), self.task, base=self.base, evaluator=scorer, report=report
        )


RecipeCheck: TypeAlias = Callable[[RecipeCase], None]


def is_a_value(case: RecipeCase) -> None:
    """A recipe is a frozen dataclass that can be pickled and written as JSON, and has a name."""
    recipe = case.recipe
    parameters = vars(type(recipe)).get("__dataclass_params__")
    assert parameters is not None
    assert parameters.frozen
    assert isinstance(recipe, Recipe)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert json.loads(json.dumps(recipe_to_json(recipe)))["name"] == recipe.name


def coefficients_are_complete(case: RecipeCase) -> None:
    """Coefficients sum to 1, unless they may have any sum; what was selected is among the given."""
    soup = case.cook()
    given = {checkpoint.path for checkpoint in Ingredients(list(case.paths), base=case.base)}
    assert set(soup.selected) <= given
    assert len(set(soup.selected)) == len(soup.selected)
    coefficients = soup.mixture.coefficients
    for vector in coefficients.vectors.values():
        assert coefficients.any_sum or abs(sum(vector) - 1) < 1e-6
    assert {step.candidate for step in soup.steps} <= given
    assert soup.examples_evaluated <= soup.examples_plain or not soup.steps


def arguments_may_come_in_any_order(case: RecipeCase) -> None:
    """The weights do not depend on the order of arguments, to the bit."""
    if case.order_matters:
        return
    turned = dataclasses.replace(case, paths=list(reversed(case.paths)))
    one, other = case.cook(), turned.cook()
    assert set(one.selected) == set(other.selected)
    for name in one.mixture:
        assert bytes(one.mixture.raw(name).tobytes()) == bytes(other.mixture.raw(name).tobytes())


def reports_every_split(case: RecipeCase) -> None:
    """With `report`, every split and the average over shifts is scored, with an interval."""
    soup = case.cook(report=True)
    assert set(case.task.splits) | {"shift_average"} == set(soup.scores)
    for score in soup.scores.values():
        assert score is not None
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high
        assert score.n > 0


def only_held_out_data_choose(case: RecipeCase) -> None:
    """A recipe refuses to choose on data that reports."""
    if not case.recipe.chooses:
        return
    for name, split in case.task.splits.items():
        if split.role is Role.HELD_OUT:
            continue
        try:
            case.recipe.cook(list(case.paths), case.task, base=case.base, choose_on=name)
        except SplitRoleError:
            continue
        raise AssertionError(f"{case.recipe.name} chose on {name}")


def whatever_chose_is_recorded(case: RecipeCase) -> None:
    """A soup of a recipe that chooses says which split decided; any other says that none did."""
    soup = case.cook(report=True)
    held_out = [name for name, split in case.task.splits.items() if split.role is Role.HELD_OUT]
    if not case.recipe.chooses:
        assert soup.chosen_on is None
        return
    assert soup.chosen_on in held_out
    assert soup.to_json()["chosen_on"] == soup.chosen_on
    record: dict[str, Any] = soup.record()
    assert "(chose)" in model_card(record, case.folder, name="soup")


def nothing_is_scored_twice(case: RecipeCase) -> None:
    """A second run with the same journal makes no forward pass and comes to the same soup."""
    first = TaskEvaluator(case.task, cache=case.folder / "cache")
    second = TaskEvaluator(case.task, cache=case.folder / "cache")
    one = case.cook(evaluator=first, report=True)
    other = case.cook(evaluator=second, report=True)
    assert second.counters.examples == 0
    assert one.to_json() == other.to_json()
    assert one.mixture.key == other.mixture.key


def rebuilds_what_it_saved(case: RecipeCase) -> None:
    """What is saved loads as what was cooked, and verifies."""
    soup = case.cook()
    path = case.folder / "soup.safetensors"
    soup.save(path)
    assert verify(path) == []
    loaded = Soup.load(path)
    assert loaded.to_json() == soup.to_json()
    assert loaded.mixture.key == soup.mixture.key


def shows_what_it_decided(case: RecipeCase) -> None:
    """Tables and figures are plain data with names of their own, and need no ingredient."""
    soup = case.cook(report=True)
    path = case.folder / "soup.safetensors"
    soup.save(path)
    recorded = SoupRecord.read(path).summary
    assert recorded.details == soup.details or type(recorded.details) is RecordedDetails
    for shown, again in (
        (soup.tables(), recorded.tables()),
        (soup.figures(), recorded.figures()),
    ):
        assert len({one.name for one in shown}) == len(shown)
        for one in shown:
            assert figure_from_json(json.loads(json.dumps(one.to_json()))) == one
        if type(recorded.details) is not RecordedDetails:
            assert [one.name for one in shown] == [one.name for one in again]
    assert all(isinstance(text, str) for text in soup.details.sentences(soup))


def says_first_whether_anything_was_gained(case: RecipeCase) -> None:
    """The first line of a soup that was scored is its gain, on data that did not choose."""
    soup = case.cook(report=True)
    assert soup.gain is not None
    assert str(soup).splitlines()[0] == str(soup.gain)
    assert soup.gain.model is not None
    held_out = [name for name, split in case.task.splits.items() if split.role is Role.HELD_OUT]
    assert not {*soup.gain.splits, *soup.gain.shifts} & set(held_out)
    assert read_summary(soup.to_json()).gain == soup.gain
    assert case.cook(report=False).gain is None


def ingredients_are_left_alone(case: RecipeCase) -> None:
    """Cooking changes no input."""
    before = [Path(path).read_bytes() for path in case.paths if Path(path).is_file()]
    prints = [open_checkpoint(path).fingerprint for path in case.paths]
    case.cook()
    assert [Path(path).read_bytes() for path in case.paths if Path(path).is_file()] == before
    assert [open_checkpoint(path).fingerprint for path in case.paths] == prints


RECIPE_CHECKS: tuple[RecipeCheck, ...] = (
    is_a_value,
    coefficients_are_complete,
    arguments_may_come_in_any_order,
    reports_every_split,
    only_held_out_data_choose,
    whatever_chose_is_recorded,
    nothing_is_scored_twice,
    rebuilds_what_it_saved,
    shows_what_it_decided,
    says_first_whether_anything_was_gained,
    ingredients_are_left_alone,
)


def recipe_conformance(case: RecipeCase) -> None:
    """Every check of `RECIPE_CHECKS` in turn.

    Raises:
        AssertionError: the first that fails.
    """
    for number, check in enumerate(RECIPE_CHECKS):
        folder = case.folder / f"{number}"
        folder.mkdir(parents=True, exist_ok=True)
        check(dataclasses.replace(case, folder=folder))

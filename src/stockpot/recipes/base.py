"""What every recipe is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from stockpot._figures import Role as ModelRole
from stockpot._options import check_options
from stockpot._types import JSON, kind_of
from stockpot.analysis.initialisation import warn_of_exchanged_base, warn_of_other_starts
from stockpot.errors import RecipeError, StockpotError
from stockpot.evaluate.batchnorm import BatchNormPolicy
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.splits import split_to_choose_on
from stockpot.evaluate.task import Role, Score, Task
from stockpot.formats.base import Checkpoint
from stockpot.mixing import Mixture, Rule
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.mixing.reconcile import Reconcile
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.gain import Gain, categories_lost, measure_gain
from stockpot.recipes.result import BatchNormEffect, Details, ScoredModel, Step
from stockpot.recipes.soup import Soup, as_scored
from stockpot.tensors.spec import DType


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model that a soup is held against.

    Attributes:
        name: in tables.
        model: its weights.
        path: as results name it.
        role: what kind of model it is.
        is_target: whether it is the one that the soup has to beat.
    """

    name: str
    model: Checkpoint
    path: str
    role: ModelRole = "run"
    is_target: bool = False


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a recipe decided.

    Attributes:
        mixture: the weights; BatchNorm statistics are made for it afterwards.
        selected: paths of the ingredients with a coefficient other than 0, in order of acceptance.
        steps: every decision, in order.
        details: what only this recipe has to say.
        notes: what a person should know, one sentence each.
        examples: forward passes that choosing among soups took (recalibration apart).
        examples_plain: those of a loop that scores every candidate in full.
        examples_calibration: those of recalibrating BatchNorm for each candidate.
        scores: of the mixture, where the recipe has them already; None has them made.
        coefficients: path → coefficient where it is not that of the mixture without zeros.
        batchnorm: what recalibration did, of a mixture that brings its statistics.
    """

    mixture: Mixture
    selected: Sequence[str]
    steps: Sequence[Step] = ()
    details: Details = field(default_factory=Details)
    notes: Sequence[str] = ()
    examples: int = 0
    examples_plain: int = 0
    examples_calibration: int = 0
    scores: Mapping[str, Score | None] | None = None
    coefficients: Mapping[str, JSON] | None = None
    batchnorm: BatchNormEffect | None = None


class Recipe(ABC):
    """How coefficients are decided: a frozen, keyword-only dataclass whose fields are its options.

    A final subclass declares the class attributes below and implements `solve`; aligning the
    ingredients, checking which split may decide, recording which did, scoring and saving is done
    here, once. It passes the suite of `stockpot.testing.recipes`.

    Attributes:
        name: as commands, tables and records name it, such as `"greedy"`.
        title: as headings name its soups, such as `"Greedy soup"`.
        summary: what it does, in one line.
        about: what a person should know before using it, in a paragraph.
        examples: command lines.
        command: its command; None for recipes without one.
        details_type: the class of its soups' `details`.
        needs_outputs: whether scores alone, as programs give them (`--eval`), are not enough.
        needs_base: whether a base has to be given.
        checks_start: whether it looks itself at where the ingredients come from; else it is warned
            of those that do not seem to share an initialisation.
        batchnorm: the BatchNorm policy where none was asked for; None for what suits the task.
        simplicity: place among the recipes that `Auto` tries, the simplest first; None for the
            last, and for those that it does not try.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    about: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = ()
    command: ClassVar[str | None] = None
    details_type: ClassVar[type[Details]] = Details
    needs_outputs: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    checks_start: ClassVar[bool] = False
    batchnorm: ClassVar[BatchNormPolicy | None] = None
    simplicity: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def solve(self, context: RecipeContext) -> Solution:
        """Decide the coefficients."""

    @property
    def chooses(self) -> bool:
        """Whether, with these options, it decides by score and so needs a held-out split."""
        return True

    def align(
        self,
        ingredients: Ingredients | Iterable[Source],
        *,
        base: Source | None,
        on_mismatch: OnMismatch,
        form: Reconcile | None = None,
    ) -> Ingredients:
        """The ingredients that `solve` mixes, aligned; `form` says what to do about other forms.

        Raises:
            MismatchError: they cannot be averaged.
        """
        if isinstance(ingredients, Ingredients):
            return ingredients
        return Ingredients(ingredients, base=base, on_mismatch=on_mismatch, reconcile=form)

    def selection_split(self, task: Task, choose_on: str | None) -> str | None:
        """The split that decides; None where none is needed.

        Raises:
            SplitRoleError: `choose_on` reports, or it is not clear which split decides.
        """
        if not self.chooses and choose_on is None:
            return None
        return split_to_choose_on(task, choose_on)

    def references(self, context: RecipeContext) -> Sequence[Reference]:
        """What its soups are held against: the best single ingredient, and the base."""
        found, best = [], context.best_single()
        if best is not None:
            model = context.ingredients[best]
            found.append(
                Reference(name="best-single", model=model, path=model.path, is_target=True)
            )
        base = context.ingredients.base
        if base is not None:
            found.append(Reference(name="base", model=base, path=base.path, role="base"))
        return found

    def cook(
        self,
        ingredients: Ingredients | Iterable[Source],
        task: Task | None = None,
        *,
        base: Source | None = None,
        evaluator: Evaluator | None = None,
        choose_on: str | None = None,
        on_mismatch: OnMismatch = "error",
        dtype: DType | str | None = None,
        reconcile: Reconcile | None = None,
        report: bool = True,
    ) -> Soup:
        """Decide the coefficients and score what follows from them.

        Args:
            ingredients: `Ingredients`, or what they are made of.
            task: what to choose and report on; not needed by recipes that do not choose.
            base: the common initialisation, for ingredients that are not `Ingredients` yet.
            evaluator: scores; by default one that forgets, made from the task.
            choose_on: the held-out split that decides, where there are several.
            on_mismatch: see `Ingredients`.
            dtype: of the output; candidates are scored in it.
            reconcile: what to do about checkpoints that differ in form, and which tensors are
                mixed, for ingredients that are not `Ingredients` yet.
            report: score the soup on all splits; False scores only what choosing needs.

        Raises:
            MismatchError: the ingredients cannot be averaged; a MaskMismatchError, if they are
                pruned with different masks.
            SplitRoleError: `choose_on` reports, or it is not clear which split decides.
            RecipeError: the recipe needs what was not given.
        """
        _check_scorers(task, evaluator)
        form = Reconcile() if reconcile is None else reconcile
        form = form if dtype is None else replace(form, dtype=dtype)
        aligned = self.align(ingredients, base=base, on_mismatch=on_mismatch, form=form)
        if evaluator is None and task is not None:
            # With worker processes and clusters: a merge that scores nothing starts without them.
            from stockpot.evaluate.task_evaluator import TaskEvaluator

            evaluator = TaskEvaluator(task)
        split = None if evaluator is None else self.selection_split(evaluator.task, choose_on)
        if evaluator is not None:
            evaluator = evaluator.with_default_batchnorm(self.batchnorm)
        context = RecipeContext(
            ingredients=aligned, evaluator=evaluator, choose_on=split, dtype=dtype, report=report
        )
        return _finish(self, context, self.solve(context))

    def cook_within(self, context: RecipeContext) -> Soup:
        """Its soup of the same ingredients and scores, as part of the recipe that `context` is of.

        It is not held against baselines: the whole is.
        """
        evaluator, form = context.evaluator, Reconcile(dtype=context.dtype)
        inner = RecipeContext(
            ingredients=self.align(context.ingredients, base=None, on_mismatch="error", form=form),
            evaluator=evaluator,
            choose_on=None
            if evaluator is None
            else self.selection_split(evaluator.task, context.choose_on),
            dtype=context.dtype,
            report=context.report,
            is_part=True,
        )
        soup = _finish(self, inner, self.solve(inner))
        context.chosen_on = context.chosen_on or soup.chosen_on
        return soup

    def to_json(self) -> dict[str, JSON]:
        """Name and options, as the record of a soup keeps them."""
        return recipe_to_json(self)


def recipe_to_json(recipe: Any) -> dict[str, JSON]:
    """Name and options of a recipe, as its record keeps them."""
    options = {item.name: getattr(recipe, item.name) for item in fields(recipe)}
    return {"name": recipe.name, **{name: _plain(value) for name, value in options.items()}}


def _plain(value: Any) -> Any:
    """An option as JSON: tuples as lists, rules and records by what they hold."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Rule):
        return value.to_json()
    return value.as_dict() if hasattr(value, "as_dict") else value


def _check_scorers(task: object, evaluator: object) -> None:
    if not (task is None or isinstance(task, Task)):
        raise RecipeError(
            f"task= is {kind_of(task)}; expected a task such as stockpot.ClassificationTask(…), "
            "made already"
        )
    if not (evaluator is None or isinstance(evaluator, Evaluator)):
        raise RecipeError(
            f"evaluator= is {kind_of(evaluator)}; expected one such as "
            "stockpot.TaskEvaluator(task), or give the task as task=…; functions of a model go to "
            "stockpot.greedy(…, evaluate=…) and its like"
        )


def _finish(recipe: Recipe, context: RecipeContext, solution: Solution) -> Soup:
    """The soup of a decided mixture, with the BatchNorm statistics that it was scored with."""
    given, evaluator = solution.mixture, context.evaluator
    scores = context.scores(given) if solution.scores is None else dict(solution.scores)
    mixture, batchnorm, noted = given, solution.batchnorm, list[str]()
    splits = {} if evaluator is None else evaluator.task.splits
    decided_by: tuple[str, ...] = ()
    if evaluator is not None and evaluator.then and context.chosen_on is not None:
        decided_by = tuple(metric.name for metric in (evaluator.metric, *evaluator.then))
    if evaluator is not None:
        policy = evaluator.batchnorm_policy(given)
        single = given.n_mixed < 2
        if policy is not None and (policy != "averaged" or not single):
            batchnorm = _batchnorm_effect(context, evaluator, given, policy)
        if evaluator.recalibrates(given) and single and context.chosen_on is None:
            noted = ["scored with recalibrated BatchNorm statistics, saved with its own"]
        elif evaluator.recalibrates(given):
            own = (
                {}
                if given.overrides is None
                else {n: given.overrides.read(n) for n in given.overrides}
            )
            statistics = {n: v for n, v in evaluator.statistics(given).items() if n in given}
            mixture = given.with_overrides({**own, **statistics})
        noted = [*noted, *evaluator.notes, *_decided(decided_by)]
    options = recipe.to_json()
    del options["name"]
    whole = context.report and not context.is_part
    gain, baselines, lost = _compare(recipe, context, given) if whole else (None, (), ())
    sparse = [] if context.sparsity is None else [context.sparsity.note]
    warned = whole and not recipe.checks_start
    started = _start_warnings(context.ingredients) if warned else []
    if evaluator is None:
        noted = _batchnorm_notes(given)
    notes = (*context.ingredients.notes, *sparse, *noted, *solution.notes, *started, *lost)
    return Soup(
        recipe=recipe.name,
        options=options,
        mixture=mixture,
        selected=tuple(solution.selected),
        coefficients=_by_path(given) if solution.coefficients is None else solution.coefficients,
        steps=tuple(solution.steps),
        scores=scores,
        chosen_on=context.chosen_on,
        examples_evaluated=solution.examples,
        examples_plain=solution.examples_plain,
        examples_calibration=solution.examples_calibration,
        details=solution.details,
        batchnorm=batchnorm,
        gain=gain,
        baselines=baselines,
        roles={name: str(split.role) for name, split in splits.items()},
        decided_by=decided_by,
        not_averaged=tuple(
            name for name, s in splits.items() if s.role is Role.SHIFT and not s.averaged
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def _decided(names: Sequence[str]) -> list[str]:
    """What decided where scores were equal."""
    if not names:
        return []
    return [f"of equal {names[0]}, {', then '.join(names[1:])} decided"]


def _start_warnings(ingredients: Ingredients) -> list[str]:
    """What is amiss with the common start of the ingredients, by their first values."""
    found = warn_of_other_starts(ingredients)
    if found or ingredients.base is None:
        return found
    return warn_of_exchanged_base(list(ingredients), ingredients.base)


def _batchnorm_notes(mixture: Mixture) -> list[str]:
    """That statistics of BatchNorm are averaged, where no data are there to make them from."""
    layers = [name for name in mixture.distinct if name.endswith("running_var")]
    if not layers or mixture.n_mixed < 2:
        return []
    return [
        f"the running statistics of {len(layers)} BatchNorm layers are averaged like weights, "
        "which costs accuracy: recompute them from training data, with a task that has some "
        "(--task) or torch.optim.swa_utils.update_bn"
    ]


def _compare(
    recipe: Recipe, context: RecipeContext, mixture: Mixture
) -> tuple[Gain | None, tuple[ScoredModel, ...], list[str]]:
    """The gain over what a soup has to beat, the scores of all that it is held against, and in
    which categories it is worse than they."""
    evaluator = context.evaluator
    if evaluator is None:
        return None, (), []
    rows: list[ScoredModel] = []
    lost: list[str] = []
    target: Reference | None = None
    for one in recipe.references(context):
        try:
            scores = evaluator.scores(one.model)
        except StockpotError:  # a base with another head cannot be scored, which is no failure
            continue
        rows.append(ScoredModel(name=one.name, path=one.path, scores=scores, role=one.role))
        lost += categories_lost(evaluator, as_scored(mixture), one.model, name=one.name)
        target = one if one.is_target else target
    against, path = (None, "") if target is None else (target.model, target.path)
    return measure_gain(evaluator, as_scored(mixture), against, path=path), tuple(rows), lost


def _by_path(mixture: Mixture) -> dict[str, JSON]:
    """`{path: c}`, or `{group: {path: c}}` where groups have coefficients of their own."""
    paths = mixture.ingredients.labels
    found: dict[str, JSON] = {
        group: {path: c for path, c in zip(paths, vector, strict=True) if c != 0}
        for group, vector in mixture.coefficients.vectors.items()
    }
    whole = found.get("")
    return whole if isinstance(whole, dict) else found


def _batchnorm_effect(
    context: RecipeContext, evaluator: Evaluator, mixture: Mixture, policy: BatchNormPolicy
) -> BatchNormEffect:
    """Scores with averaged statistics and under the policy, on the split that decides."""
    split = context.choose_on or next(iter(evaluator.task.splits))
    return BatchNormEffect(
        policy=policy,
        split=split,
        before=evaluator.with_batchnorm("averaged").score(mixture, split),
        after=evaluator.score(mixture, split),
        calibration_examples=evaluator.calibration_size(),
    )

"""What every recipe is, and what it works with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from stockpot._figures import Role
from stockpot._types import JSON
from stockpot.analysis.initialisation import warn_of_other_starts
from stockpot.errors import EvaluationError, RecipeError, SplitRoleError, StockpotError
from stockpot.evaluate.batchnorm import BatchNormPolicy
from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.splits import split_to_choose_on
from stockpot.evaluate.task import Score, Task
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.base import Checkpoint
from stockpot.mixing import Coefficients, Mixture, SharedMask, shared_mask
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.mixing.reconcile import Reconcile
from stockpot.recipes.gain import Gain, measure_gain
from stockpot.recipes.result import BatchNormEffect, Details, ScoredModel, Step
from stockpot.recipes.soup import Soup, as_scored
from stockpot.tensors.spec import DType


@dataclass(eq=False, kw_only=True)
class RecipeContext:
    """What a recipe works with: aligned ingredients and, when there is a task, an evaluator.

    It has state: `chosen_on`, the split that has decided something so far. What a recipe learns
    from the split that decides, it learns through `choosing`, `singles` or `ranking`, which record
    it.

    Attributes:
        ingredients: aligned.
        evaluator: scores; None without a task.
        choose_on: the split that decides where one does; None without a task.
        dtype: of the output; candidates are scored in it.
        report: whether the soup is to be scored on all splits.
        sparsity: what averages are masked with; None where the ingredients are dense.
        is_part: whether the soup is one of those that another recipe chooses among.
        chosen_on: `choose_on` as soon as it has decided something.
    """

    ingredients: Ingredients
    evaluator: Evaluator | None = None
    choose_on: str | None = None
    dtype: DType | str | None = None
    report: bool = True
    sparsity: SharedMask | None = None
    is_part: bool = False
    chosen_on: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.ingredients, self.sparsity = shared_mask(self.ingredients)

    @property
    def paths(self) -> list[str]:
        """Paths of the ingredients, in the order given."""
        return [checkpoint.path for checkpoint in self.ingredients]

    def mixture(self, coefficients: Iterable[float]) -> Mixture:
        """A mixture of the ingredients with one coefficient for each of them."""
        return self.mixed(Coefficients.per_model(list(coefficients)))

    def mixed(self, coefficients: Coefficients) -> Mixture:
        """A mixture of the ingredients, as sparse as they are."""
        mixture = Mixture(self.ingredients, coefficients, dtype=self.dtype)
        mask = None if self.sparsity is None else self.sparsity.mask_of(mixture)
        return mixture if mask is None else mixture.with_mask(mask)

    def like(self, ingredients: Ingredients, coefficients: Iterable[float]) -> Mixture:
        """A mixture of other ingredients, such as these and their base, in the same dtype."""
        shares = Coefficients.per_model(list(coefficients))
        return Mixture(ingredients, shares, dtype=self.dtype)

    def uniform(self, members: Iterable[int]) -> Mixture:
        """The plain mean of the ingredients at `members`; the others have coefficient 0."""
        chosen = set(members)
        share = 1.0 / len(chosen)
        return self.mixture(share if i in chosen else 0.0 for i in range(len(self.ingredients)))

    def choosing(self, purpose: str) -> tuple[Evaluator, str]:
        """The evaluator and the split that decides, which has now chosen.

        Args:
            purpose: what needs them, for the message.

        Raises:
            RecipeError: there is no task.
        """
        evaluator, split = self.scoring(purpose)
        self.chosen_on = split
        return evaluator, split

    def scoring(self, purpose: str) -> tuple[Evaluator, str]:
        """The evaluator and the split that decides, to report on it and to decide nothing.

        Raises:
            RecipeError: there is no task.
        """
        if self.evaluator is None or self.choose_on is None:
            raise RecipeError(
                f"{purpose} chooses by score and needs a task: give task=… or evaluate=… (--task, "
                "--eval), or use Uniform, which needs none"
            )
        return self.evaluator, self.choose_on

    def scores(self, mixture: Mixture) -> dict[str, Score | None]:
        """Scores of `mixture` on what is to be reported; empty without a task."""
        if self.evaluator is None:
            return {}
        splits = None if self.report or self.choose_on is None else [self.choose_on]
        return dict(self.evaluator.scores(mixture, splits))

    def duplicates(self) -> Mapping[int, int]:
        """Positions of ingredients whose content an earlier one has, with that one's position."""
        first: dict[str, int] = {}
        return {
            i: first[checkpoint.fingerprint]
            for i, checkpoint in enumerate(self.ingredients)
            if first.setdefault(checkpoint.fingerprint, i) != i
        }

    def duplicate_notes(self) -> list[str]:
        """A sentence for every ingredient that is left out because another is the same."""
        return [
            f"{self.paths[i]} holds the same weights as {self.paths[j]} and was left out"
            for i, j in self.duplicates().items()
        ]

    def singles(self, purpose: str) -> dict[int, Predictions]:
        """Predictions of every ingredient, duplicates left out, on the split that decides.

        Raises:
            EvaluationError: scores that are not numbers; every ingredient at fault is named.
        """
        evaluator, split = self.choosing(purpose)
        return self._singles(evaluator, split)

    def _singles(self, evaluator: Evaluator, split: str) -> dict[int, Predictions]:
        duplicates = self.duplicates()
        models = {i: self.uniform([i]) for i in range(len(self.ingredients)) if i not in duplicates}
        evaluator.score_ahead(list(models.values()) if evaluator.n_ahead else [], split)
        found = dict[int, Predictions]()
        problems: list[str] = []
        for i, mixture in models.items():
            try:
                found[i] = evaluator.predictions(mixture, split)
                evaluator.score_of(found[i], split, name=self.paths[i], interval=False)
            except EvaluationError as error:
                # Where nothing was scored yet, what scores is at fault rather than a checkpoint.
                if not found:
                    raise
                problems.append(str(error))
        if problems:
            raise EvaluationError("\n".join(problems))
        return found

    def ranking(
        self, purpose: str, predictions: Mapping[int, Predictions] | None = None
    ) -> list[tuple[int, float]]:
        """Positions and values of the ingredients, best first; ties in the order of arguments."""
        evaluator, split = self.choosing(purpose)
        singles = self.singles(purpose) if predictions is None else predictions
        return self._ranked(evaluator, split, singles)

    def _ranked(
        self, evaluator: Evaluator, split: str, singles: Mapping[int, Predictions]
    ) -> list[tuple[int, float]]:
        values = {
            i: evaluator.score_of(found, split, name=self.paths[i], interval=False).value
            for i, found in singles.items()
        }
        quality = evaluator.metric.quality
        return sorted(values.items(), key=lambda item: (-quality(item[1]), item[0]))

    def best_single(self) -> int | None:
        """Position of the ingredient that is best on held-out data, to compare with.

        It decides nothing. None where there is no held-out split, or where several could decide;
        and where every score takes a run of a program that nothing else asked for.
        """
        evaluator = self.evaluator
        if evaluator is None:
            return None
        if len(self.ingredients) == 1:
            return 0
        if self.chosen_on is None and not evaluator.has_outputs:
            return None
        try:
            split = self.choose_on or split_to_choose_on(evaluator.task)
        except SplitRoleError:
            return None
        return self._ranked(evaluator, split, self._singles(evaluator, split))[0][0]

    def calibration_examples(self, tried: Sequence[tuple[Step, Mixture]]) -> int:
        """Examples of recalibrating BatchNorm for each mixture that was scored."""
        evaluator = self.evaluator
        if evaluator is None:
            return 0
        passes = sum(step.examples > 0 and evaluator.recalibrates(m) for step, m in tried)
        return passes * evaluator.calibration_size() if passes else 0

    def cook(self, recipe: Recipe) -> Soup:
        """The soup of another recipe from the same ingredients and scores, as part of this one.

        It is not held against baselines: the whole is.
        """
        evaluator = self.evaluator
        inner = RecipeContext(
            ingredients=recipe.align(
                self.ingredients, base=None, on_mismatch="error", form=Reconcile(dtype=self.dtype)
            ),
            evaluator=evaluator,
            choose_on=None
            if evaluator is None
            else recipe.selection_split(evaluator.task, self.choose_on),
            dtype=self.dtype,
            report=self.report,
            is_part=True,
        )
        soup = _finish(recipe, inner, recipe.solve(inner))
        self.chosen_on = self.chosen_on or soup.chosen_on
        return soup


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
    role: Role = "run"
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
        simplicity: place among the recipes that `Auto` tries, the simplest first; None for those
            that it does not try.
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
        form = Reconcile() if reconcile is None else reconcile
        form = form if dtype is None else replace(form, dtype=dtype)
        aligned = self.align(ingredients, base=base, on_mismatch=on_mismatch, form=form)
        if evaluator is None and task is not None:
            evaluator = TaskEvaluator(task)
        split = None if evaluator is None else self.selection_split(evaluator.task, choose_on)
        if evaluator is not None:
            evaluator = evaluator.with_default_batchnorm(self.batchnorm)
        context = RecipeContext(
            ingredients=aligned, evaluator=evaluator, choose_on=split, dtype=dtype, report=report
        )
        return _finish(self, context, self.solve(context))

    def to_json(self) -> dict[str, JSON]:
        """Name and options, as the record of a soup keeps them."""
        return recipe_to_json(self)


def recipe_to_json(recipe: Any) -> dict[str, JSON]:
    """Name and options of a recipe, as its record keeps them."""
    options = {item.name: getattr(recipe, item.name) for item in fields(recipe)}
    return {"name": recipe.name, **{name: _plain(value) for name, value in options.items()}}


def _plain(value: Any) -> Any:
    """An option as JSON: tuples as lists, records by what they hold."""
    if isinstance(value, tuple):
        return list(value)
    return value.as_dict() if hasattr(value, "as_dict") else value


def _finish(recipe: Recipe, context: RecipeContext, solution: Solution) -> Soup:
    """The soup of a decided mixture, with the BatchNorm statistics that it was scored with."""
    given, evaluator = solution.mixture, context.evaluator
    scores = context.scores(given) if solution.scores is None else dict(solution.scores)
    mixture, batchnorm, noted = given, solution.batchnorm, list[str]()
    roles: dict[str, str] = {}
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
        noted = [*noted, *evaluator.notes]
        roles = {name: str(split.role) for name, split in evaluator.task.splits.items()}
    options = recipe.to_json()
    del options["name"]
    whole = context.report and not context.is_part
    gain, baselines = _compare(recipe, context, given) if whole else (None, ())
    sparse = [] if context.sparsity is None else [context.sparsity.note]
    warned = whole and not recipe.checks_start
    started = warn_of_other_starts(context.ingredients) if warned else []
    if evaluator is None:
        noted = _batchnorm_notes(given)
    notes = (*context.ingredients.notes, *sparse, *noted, *solution.notes, *started)
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
        roles=roles,
        notes=tuple(dict.fromkeys(notes)),
    )


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
) -> tuple[Gain | None, tuple[ScoredModel, ...]]:
    """The gain over what a soup has to beat, and the scores of all that it is held against."""
    evaluator = context.evaluator
    if evaluator is None:
        return None, ()
    rows: list[ScoredModel] = []
    target: Reference | None = None
    for one in recipe.references(context):
        try:
            scores = evaluator.scores(one.model)
        except StockpotError:  # a base with another head cannot be scored, which is no failure
            continue
        rows.append(ScoredModel(name=one.name, path=one.path, scores=scores, role=one.role))
        target = one if one.is_target else target
    against, path = (None, "") if target is None else (target.model, target.path)
    return measure_gain(evaluator, as_scored(mixture), against, path=path), tuple(rows)


def _by_path(mixture: Mixture) -> dict[str, JSON]:
    """`{path: c}`, or `{group: {path: c}}` where groups have coefficients of their own."""
    paths = [checkpoint.path for checkpoint in mixture.ingredients]
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

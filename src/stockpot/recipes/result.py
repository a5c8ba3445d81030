"""What a recipe decided and measured: steps, details, scores, and what of it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stockpot._figures import (
    AnyFigure,
    Axis,
    Cell,
    Column,
    Estimate,
    Heatmap,
    Line,
    Point,
    Role,
    Row,
    ScatterChart,
    Table,
)
from stockpot._types import JSON
from stockpot.evaluate.batchnorm import BatchNormPolicy
from stockpot.evaluate.compare import SHIFT_AVERAGE, scores_to_json
from stockpot.evaluate.stats import Optimism
from stockpot.evaluate.task import Score
from stockpot.io.paths import natural_key
from stockpot.recipes.gain import Gain

NOISE_LEVEL = 0.05
"""A gain whose p-value is above this is called within noise."""

Names = Mapping[str, str]
"""Path of a checkpoint → the shorter name under which it is shown; others are shown as they are."""


@dataclass(frozen=True, slots=True)
class Step:
    """One decision of a recipe.

    Attributes:
        candidate: path of the ingredient that was tried.
        accepted: whether it was kept (for pruned soups: removed).
        score: of the soup with it, on the split that decides; None when it was rejected before all
            examples were seen.
        score_at_most: what that score could still have been then (at least, where lower is better);
            None when `score` is known.
        examples: forward passes that the decision took.
        p_value: of no difference to the soup before it, on the split that chose and so a property
            of the search; None without a full score.
        reason: why it was not tried, or nothing.
    """

    candidate: str
    accepted: bool
    score: float | None = None
    score_at_most: float | None = None
    examples: int = 0
    p_value: float | None = None
    reason: str = ""

    @property
    def within_noise(self) -> bool | None:
        """Whether p > 0.05; None without a p-value."""
        return None if self.p_value is None else self.p_value > NOISE_LEVEL

    def to_json(self) -> dict[str, JSON]:
        """The keys that scripts may rely on, and the reason."""
        return {
            "candidate": self.candidate,
            "score": self.score,
            "score_at_most": self.score_at_most,
            "accepted": self.accepted,
            "examples": self.examples,
            "p_value": self.p_value,
            "within_noise": self.within_noise,
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """A model in the table of a result: the soup, or what it is compared with.

    Attributes:
        name: in the table.
        path: of the checkpoint, where it is one.
        scores: by split; null for what was not scored.
        role: what kind of model it is.
        chosen: whether it is the soup that is saved.
        coefficients: path → coefficient, or group → {path: coefficient}; None for what is no soup.
        p_value: of no difference to the best single ingredient on the split that decides.
        models: forward passes that one prediction costs.
        ingredients: how many take part; None where that has no meaning.
        note: why there are no scores, or another remark.
    """

    name: str
    path: str = ""
    scores: Mapping[str, Score | None]
    role: Role = "soup"
    chosen: bool = False
    coefficients: Mapping[str, JSON] | None = None
    p_value: float | None = None
    models: int = 1
    ingredients: int | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Details:
    """What only one recipe has to say of its soups; this one, the base of the others, nothing.

    A subclass is a frozen dataclass. Its `to_json` gives keys that stand at the top level of the
    soup's JSON, and `from_json` reads them there again.
    """

    def to_json(self) -> dict[str, JSON]:
        """The keys that are merged into the soup's JSON."""
        return {}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Details:
        """The details in the JSON of a soup; keys that are none of theirs are ignored."""
        return cls()

    @property
    def selection_optimism(self) -> Optimism | None:
        """How much the score that chose is too good, where that was measured."""
        return None

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """What was decided, in a sentence or two, without scores."""
        return ()

    def models(self, soup: ScoredModel) -> tuple[ScoredModel, ...]:
        """The rows of the table of scores: the soup, and what it is compared with."""
        return (soup,)

    def tables(self, names: Names) -> tuple[Table, ...]:
        """Further tables, beside those of scores and steps."""
        return ()

    def figures(self, names: Names) -> tuple[AnyFigure, ...]:
        """Charts, beside those of steps and coefficients."""
        return ()


@dataclass(frozen=True, kw_only=True)
class RecordedDetails(Details):
    """The details of a soup whose recipe is not one of `RECIPES`, as they were recorded.

    Attributes:
        data: key → value.
    """

    data: Mapping[str, JSON] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        """The keys as they were recorded."""
        return dict(self.data)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RecordedDetails:
        """All keys that are not those of every soup."""
        return cls(data={name: value for name, value in data.items() if name not in _COMMON})


@dataclass(frozen=True, kw_only=True)
class BatchNormEffect:
    """The BatchNorm policy of a soup, and what it does to the score.

    Attributes:
        policy: under which the soup and all that it is compared with are scored.
        split: where: the split that decides, else the task's first.
        before: with averaged statistics; of a single model, with its own.
        after: under the policy.
        calibration_examples: of one calibration pass.
    """

    policy: BatchNormPolicy
    split: str
    before: Score
    after: Score
    calibration_examples: int

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return {
            "policy": self.policy,
            "split": self.split,
            "before": scores_to_json({self.split: self.before})[self.split],
            "after": scores_to_json({self.split: self.after})[self.split],
            "calibration_examples": self.calibration_examples,
        }


@dataclass(frozen=True, kw_only=True)
class SoupSummary:
    """Everything that was decided and measured of a soup, without its weights.

    Attributes:
        recipe: name of what decided, such as `"greedy"`.
        options: its options, as they are recorded.
        selected: paths of the ingredients with a coefficient other than 0, in order of acceptance.
        coefficients: path → coefficient, or group → {path: coefficient}.
        steps: every decision, in order.
        scores: by split; empty without a task.
        chosen_on: the split that decided; None when nothing was chosen.
        examples_evaluated: forward passes that choosing among soups took (recalibration apart).
        examples_plain: those of a loop that scores every candidate in full.
        examples_calibration: those of recalibrating BatchNorm for each candidate, counted apart.
        details: what only this recipe has to say.
        batchnorm: what recalibration of BatchNorm did; None where nothing was recalibrated.
        gain: the soup against what it has to beat, on data that chose neither; None without a
            task, or where only what choosing needs was scored.
        baselines: what one had before: the best single ingredient and the base.
        roles: split → `"held-out"`, `"test"` or `"shift"`, in the order of the task.
        not_averaged: the shifts that the average over shifts leaves out.
        decided_by: names of the metrics that decided, in order, where there are several.
        notes: what a person should know, one sentence each.
    """

    recipe: str
    options: Mapping[str, JSON] = field(default_factory=dict)
    selected: tuple[str, ...]
    coefficients: Mapping[str, JSON]
    steps: tuple[Step, ...] = ()
    scores: Mapping[str, Score | None] = field(default_factory=dict)
    chosen_on: str | None = None
    examples_evaluated: int = 0
    examples_plain: int = 0
    examples_calibration: int = 0
    details: Details = field(default_factory=Details)
    batchnorm: BatchNormEffect | None = None
    gain: Gain | None = None
    baselines: tuple[ScoredModel, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    not_averaged: tuple[str, ...] = ()
    decided_by: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def higher_is_better(self) -> bool:
        """Whether larger scores are better; True without any."""
        return all(s.higher_is_better for s in self.scores.values() if s is not None)

    def splits(self, role: str) -> tuple[str, ...]:
        """Names of the splits of a role, in the order of the task."""
        return tuple(name for name, found in self.roles.items() if found == role)

    def to_json(self) -> dict[str, JSON]:
        """Everything, with the keys that scripts may rely on."""
        found: dict[str, JSON] = {
            "recipe": {"name": self.recipe, **self.options},
            "selected": list(self.selected),
            "coefficients": dict(self.coefficients),
            "steps": [step.to_json() for step in self.steps],
            "scores": scores_to_json(self.scores),
            "direction": "max" if self.higher_is_better else "min",
            "chosen_on": self.chosen_on,
            "examples_evaluated": self.examples_evaluated,
            "examples_plain": self.examples_plain,
            "examples_calibration": self.examples_calibration,
            "notes": list(self.notes),
            **self._compared(),
            **self.details.to_json(),
        }
        if self.batchnorm is not None:
            found["batchnorm"] = self.batchnorm.to_json()
        if self.roles:
            found["roles"] = dict(self.roles)
        if self.not_averaged:
            found["not_averaged"] = list(self.not_averaged)
        if self.decided_by:
            found["decided_by"] = list(self.decided_by)
        return found

    def _compared(self) -> dict[str, JSON]:
        if self.gain is None:
            return {}
        rows: dict[str, JSON] = {
            row.name: {"path": row.path, "scores": scores_to_json(row.scores)}
            for row in self.baselines
        }
        return {"gain": self.gain.to_json(), "baselines": rows}

    def models(self) -> tuple[ScoredModel, ...]:
        """The rows of the table of scores: this soup, and what it is compared with."""
        own = ScoredModel(
            name=self.recipe,
            scores=self.scores,
            role="wise-ft" if self.recipe == "wise-ft" else "soup",
            chosen=True,
            coefficients=self.coefficients,
            ingredients=len(self.selected),
        )
        rows = self.details.models(own)
        known = {row.name for row in rows}
        return (*(row for row in self.baselines if row.name not in known), *rows)

    def tables(self, names: Names | None = None) -> tuple[Table, ...]:
        """Scores, steps, and what only this recipe has to say."""
        shown = names or {}
        steps = (steps_table(self, shown),) if self.steps else ()
        scores = (scores_table(self.models()),) if self.scores else ()
        return (*scores, *steps, *self.details.tables(shown))

    def figures(self, names: Names | None = None) -> tuple[AnyFigure, ...]:
        """Steps, coefficients by group, and what only this recipe has to say."""
        shown = names or {}
        steps = (steps_chart(self, shown),) if self.steps else ()
        grouped = {g: c for g, c in self.coefficients.items() if isinstance(c, dict)}
        heat = (coefficients_heatmap(self.recipe, grouped, shown),) if grouped else ()
        return (*steps, *heat, *self.details.figures(shown))


_COMMON = {
    "recipe", "selected", "coefficients", "steps", "scores", "direction", "chosen_on",
    "examples_evaluated", "examples_plain", "examples_calibration", "notes", "batchnorm", "roles",
    "gain", "baselines", "not_averaged", "decided_by",
}  # fmt: skip


_P_HELP = "of no difference to the best single, on the data that chose"


def is_share(metric: str) -> bool:
    """Whether a metric of this name is a share of the examples, shown in per cent."""
    return metric == "accuracy"


def scores_table(models: Sequence[ScoredModel]) -> Table:
    """A row for each model, a column for each split."""
    found = [score for model in models for score in model.scores.values() if score is not None]
    percent = {score.split: is_share(score.metric) for score in found}
    splits = list(dict.fromkeys(split for model in models for split in model.scores))
    if SHIFT_AVERAGE in splits and any(_repeats(models, split) for split in splits):
        splits.remove(SHIFT_AVERAGE)  # of a single shift
    columns = [Column(name=split, percent=percent.get(split, False)) for split in splits]
    compared = any(model.p_value is not None for model in models)
    if compared:
        columns += [Column(name="ingredients"), Column(name="p", help=_P_HELP)]
    return Table(
        name="scores",
        title="Scores",
        columns=tuple(columns),
        rows=tuple(
            Row(
                name=model.name,
                cells=(
                    *(_estimate(model.scores.get(split)) for split in splits),
                    *((model.ingredients, model.p_value) if compared else ()),
                ),
                role=model.role,
                chosen=model.chosen and len(models) > 1,
            )
            for model in models
        ),
    )


def _repeats(models: Sequence[ScoredModel], split: str) -> bool:
    """Whether the average over shifts is the score on `split` for every model."""
    both = [(model.scores.get(split), model.scores.get(SHIFT_AVERAGE)) for model in models]
    return split != SHIFT_AVERAGE and all(
        (None if one is None else one.value) == (None if other is None else other.value)
        for one, other in both
    )


def _estimate(score: Score | None) -> Cell:
    if score is None:
        return None
    return Estimate(value=score.value, low=score.low, high=score.high)


_WORDS = {"pruned": ("taken out", "kept")}


def steps_table(summary: SoupSummary, names: Names) -> Table:
    """What was tried in which order, and what became of it."""
    bound = "≤" if summary.higher_is_better else "≥"
    accepted, rejected = _WORDS.get(summary.recipe, ("kept", "left out"))
    rows = []
    for step in summary.steps:
        score: Cell = step.score
        if score is None and step.score_at_most is not None:
            score = f"{bound}{step.score_at_most:.4f}"
        noise = " (within noise)" if step.accepted and step.within_noise else ""
        decision = (accepted if step.accepted else rejected) + noise
        cells = (score, step.p_value, step.examples, decision)
        rows.append(Row(name=names.get(step.candidate, step.candidate), cells=cells))
    return Table(
        name="steps",
        title=f"Decisions of the {summary.recipe} soup",
        explanation=(
            f"Scores are on {summary.chosen_on}, which chose. p is that of no difference to the "
            "soup before, on the same data: a property of the search."
        ),
        columns=(
            Column(name="score"),
            Column(name="p", help="p-value on the data that chose"),
            Column(name="examples", help="forward passes that the decision took"),
            Column(name="decision"),
        ),
        rows=tuple(rows),
        first="candidate",
    )


def steps_chart(summary: SoupSummary, names: Names) -> ScatterChart:
    """The score of the soup as it grew, and of what was tried on the way."""
    points, current = [], list[tuple[int, float]]()
    for number, step in enumerate(summary.steps, 1):
        value = step.score_at_most if step.score is None else step.score
        if value is None:
            continue
        if step.accepted:
            current.append((number, value))
        role: Role = "accepted" if step.accepted else "rejected"
        if step.score is None:
            role = "bound"
        group = "rejected early: at most" if role == "bound" else role
        points.append(
            Point(
                name=names.get(step.candidate, step.candidate),
                x=float(number),
                y=value,
                group=group,
                role=role,
                note="" if step.p_value is None else f"p = {step.p_value:.2g}",
            )
        )
    if current:
        current.append((len(summary.steps), current[-1][1]))
    metric = next((s.metric for s in summary.scores.values() if s is not None), "score")
    line = Line(
        name="the soup",
        x=tuple(float(x) for x, _ in current),
        y=tuple(y for _, y in current),
        role="soup",
        steps=True,
    )
    return ScatterChart(
        name="path",
        title=f"The path of the {summary.recipe} soup",
        explanation=(
            f"Scores on {summary.chosen_on}, which chose. The line is the soup as it stood. Bounds "
            "are of candidates that had lost before all examples were seen."
        ),
        x=Axis(name="step", whole=True),
        y=Axis(name=f"{metric} on {summary.chosen_on}", percent=is_share(metric)),
        points=tuple(points),
        lines=(line,) if current else (),
    )


def coefficients_heatmap(
    recipe: str, groups: Mapping[str, Mapping[str, Any]], names: Names
) -> Heatmap:
    """Coefficients of a soup that mixes each group of tensors by itself."""
    paths = list(dict.fromkeys(path for shares in groups.values() for path in shares))
    return Heatmap(
        name="coefficients-by-group",
        title=f"Coefficients of the {recipe} soup",
        explanation=(
            "A row for each group of tensors, a column for each ingredient; the stronger the "
            "colour, the larger the share."
        ),
        rows=tuple(sorted(groups, key=natural_key)),
        columns=tuple(names.get(path, path) for path in paths),
        values=tuple(
            tuple(float(groups[group].get(path, 0.0)) for path in paths)
            for group in sorted(groups, key=natural_key)
        ),
        scale=Axis(name="coefficient"),
    )

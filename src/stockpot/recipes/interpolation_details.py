"""What WiSE-FT has to say: the curve, the point that was taken, and its two ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from stockpot._figures import AnyFigure, Axis, Column, Estimate, LineChart, Row, Rule, Table
from stockpot._figures import Line as ChartLine
from stockpot._types import JSON
from stockpot.analysis.barrier import HIGH_BARRIER, Barrier
from stockpot.analysis.diversity import Diversity, Override
from stockpot.evaluate.compare import (
    Difference,
    scores_to_json,
)
from stockpot.evaluate.task import Score
from stockpot.recipes.reading import scores_from_json
from stockpot.recipes.result import (
    Details,
    Names,
    ScoredModel,
    SoupSummary,
    is_share,
)

if TYPE_CHECKING:
    pass


MEAN_OF_BOTH = "mean_of_both"
"""The mean of the reference score and of the shift average, which one number has to stand for."""


@dataclass(frozen=True, slots=True)
class InterpolationPoint:
    """The scores at α, by split: 0 is the base, 1 the tuned model."""

    alpha: float
    scores: Mapping[str, Score]


@dataclass(frozen=True, slots=True)
class BestAlpha:
    """The best point for one objective, to read and not to choose by.

    Attributes:
        alpha: where; of equals the one nearest 0.5.
        value: the score there.
        above_ends: how much better it is than the better end; for a split that reports it is
            optimistic, since this α was looked up on it.
    """

    alpha: float
    value: float
    above_ends: float


@dataclass(frozen=True, slots=True)
class LayerStep:
    """One layer that was tried at an α of its own."""

    layer: str
    alpha: float
    score: float
    accepted: bool
    p_value: float | None


@dataclass(frozen=True, kw_only=True)
class WiseFTDetails(Details):
    """What WiSE-FT has to say: the curve, what was chosen from it and by what, and its two ends.

    Attributes:
        alpha: of the soup.
        curve: scores by α; empty without a curve.
        rule: by what `alpha` was chosen.
        best: objective (split, shift average, their mean) → the α that was best for it.
        gains: `"base"` and `"tuned"` → split → the soup less that end, on the same examples.
        ensemble: the two ends mixed in output space at every α, at the cost of two models.
        alternatives: name → scores by α of what else needs no training, where asked for.
        barrier: of the loss along the path; None where outputs are no logits over classes.
        barrier_split: where the barrier was measured.
        diversity: split → how differently the ends decide, and whom the midpoint follows.
        recalibrated: some points with BatchNorm statistics recomputed on the training set, beside a
            curve of averaged ones.
        layers: what was tried where layers have an α of their own; None where they have not.
        moved: scores of the soup, where layers have moved off its α; empty where none has.
    """

    alpha: float
    curve: tuple[InterpolationPoint, ...] = ()
    rule: str = ""
    best: Mapping[str, BestAlpha] = field(default_factory=dict)
    gains: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)
    ensemble: tuple[InterpolationPoint, ...] = ()
    alternatives: Mapping[str, tuple[InterpolationPoint, ...]] = field(default_factory=dict)
    barrier: Barrier | None = None
    barrier_split: str | None = None
    diversity: Mapping[str, tuple[Diversity, Override]] = field(default_factory=dict)
    recalibrated: tuple[InterpolationPoint, ...] = ()
    layers: tuple[LayerStep, ...] | None = None
    moved: Mapping[str, Score] = field(default_factory=dict)

    @property
    def chosen(self) -> Mapping[str, Score]:
        """The scores of what was taken: of the point at `alpha`, or of what its layers became."""
        return self.moved or self.at(self.alpha)

    def at(self, alpha: float) -> Mapping[str, Score]:
        """The scores of the curve at one of its points; empty where it has none there."""
        return next((point.scores for point in self.curve if point.alpha == alpha), {})

    def to_json(self) -> dict[str, JSON]:
        """`alpha`, and as far as there is a curve the other keys that scripts may rely on."""
        found: dict[str, JSON] = {"alpha": self.alpha}
        if self.curve:
            found["curve"] = _points_to_json(self.curve)
            found["chosen"] = _point_to_json(self.alpha, self.chosen)
            found["rule"] = self.rule
        if self.layers is not None:
            found["layers"] = [asdict(step) for step in self.layers]
        if self.best:
            found["half"] = _point_to_json(0.5, self.at(0.5))
            found["best"] = {name: asdict(best) for name, best in self.best.items()}
        if self.gains:
            found["gains"] = {
                end: {split: gap.to_json() for split, gap in gaps.items()}
                for end, gaps in self.gains.items()
            }
            found["ensemble"] = _points_to_json(self.ensemble)
            found["barrier"] = (
                None
                if self.barrier is None
                else {**asdict(self.barrier), "split": self.barrier_split}
            )
            found["diversity"] = {
                split: _diversity_to_json(*pair) for split, pair in self.diversity.items()
            }
        if self.recalibrated:
            found["recalibrated"] = _points_to_json(self.recalibrated)
        if self.alternatives:
            found["alternatives"] = {
                name: _points_to_json(points) for name, points in self.alternatives.items()
            }
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WiseFTDetails:
        """The details in the JSON of a soup."""
        higher = data.get("direction", "max") == "max"
        barrier, layers = data.get("barrier"), data.get("layers")
        steps = None if layers is None else tuple(LayerStep(**step) for step in layers)
        moved = any(step.accepted for step in steps or ()) and "chosen" in data
        return cls(
            alpha=data["alpha"],
            curve=_points_from_json(data.get("curve"), higher),
            moved=_points_from_json([data["chosen"]], higher)[0].scores if moved else {},
            rule=data.get("rule", ""),
            best={name: BestAlpha(**best) for name, best in data.get("best", {}).items()},
            gains={
                end: {split: _difference(gap, split, end) for split, gap in gaps.items()}
                for end, gaps in data.get("gains", {}).items()
            },
            ensemble=_points_from_json(data.get("ensemble"), higher),
            alternatives={
                name: _points_from_json(points, higher)
                for name, points in data.get("alternatives", {}).items()
            },
            barrier=None if barrier is None else Barrier(barrier["height"], barrier["alpha"]),
            barrier_split=None if barrier is None else barrier["split"],
            diversity={
                split: _diversity_from_json(found)
                for split, found in data.get("diversity", {}).items()
            },
            recalibrated=_points_from_json(data.get("recalibrated"), higher),
            layers=steps,
        )

    def warnings(self) -> list[str]:
        """What the curve warns of."""
        if self.barrier is None or self.barrier.height <= HIGH_BARRIER:
            return []
        return [
            f"warning: at α = {self.barrier.alpha} the loss lies {self.barrier.height:.2f} nat "
            "above the straight line between the two ends: there is a barrier on the path, and "
            "one of the ends is the better choice"
        ]

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """The point that was taken, and by what."""
        rule = f" ({self.rule})" if self.rule else ""
        found = [f"α = {self.alpha:g} between the base (0) and the tuned model (1){rule}."]
        if self.layers is not None:
            kept = [f"{step.layer} {step.alpha:g}" for step in self.layers if step.accepted]
            found.append(f"Layers with an α of their own: {', '.join(kept) or 'none'}.")
        return tuple(found)

    def models(self, soup: ScoredModel) -> tuple[ScoredModel, ...]:
        """The soup beside its two ends, α = 0.5, and the ensemble at the α of the soup."""
        ends = [
            ScoredModel(name="base", scores=self.at(0.0), role="base"),
            ScoredModel(name="tuned", scores=self.at(1.0), role="run"),
            ScoredModel(name="α = 0.5", scores=self.at(0.5), role="wise-ft"),
        ]
        mixed = next((p.scores for p in self.ensemble if p.alpha == self.alpha), {})
        outputs = ScoredModel(name="ensemble", scores=mixed, role="ensemble", models=2)
        return (soup, *(model for model in (*ends, outputs) if model.scores))

    def tables(self, names: Names) -> tuple[Table, ...]:
        """The curve, and for each column the best α beside the chosen one, 0.5 and the ensemble."""
        found = []
        if self.curve:
            found.append(self._points_table(self.curve, "curve", "Along the path"))
        if self.recalibrated:
            title = "Along the path, BatchNorm statistics recomputed on the training set"
            found.append(self._points_table(self.recalibrated, "recalibrated", title))
        return (*found, *((self._best_table(),) if self.best else ()))

    def _points_table(self, points: Sequence[InterpolationPoint], name: str, title: str) -> Table:
        first = points[0].scores
        return Table(
            name=name,
            title=title,
            first="α",
            columns=tuple(Column(name=s, percent=is_share(v.metric)) for s, v in first.items()),
            rows=tuple(
                Row(
                    name=f"{point.alpha:g}",
                    cells=tuple(_estimate(point.scores[split]) for split in first),
                    chosen=point.alpha == self.alpha,
                )
                for point in points
            ),
        )

    def _best_table(self) -> Table:
        mixed = next((p.scores for p in self.ensemble if p.alpha == 0.5), {})
        heads = ["best α", "score", "above both ends", "chosen", "α = 0.5"]
        heads += ["ensemble at 0.5"] if mixed else []
        shown = [self.chosen, self.at(0.5), *([mixed] if mixed else [])]
        rows = []
        for name, best in self.best.items():
            values = [scores[name].value if name in scores else None for scores in shown]
            gap = self.gains.get("tuned", {}).get(name)
            known = gap is not None and (self.alpha != 1 or self.moved)
            last = None if gap is None or not known else _gap(gap)
            cells = (f"{best.alpha:g}", best.value, best.above_ends, *values, last)
            rows.append(Row(name=name, cells=cells))
        return Table(
            name="best-alphas",
            title="The best α by column",
            explanation=(
                "To read and not to choose by: on a split that reports, the best α was looked "
                "up on that split. The last column compares the chosen point with the tuned model "
                "on the same examples."
            ),
            first="split",
            columns=tuple(Column(name=head) for head in (*heads, "chosen − tuned")),
            rows=tuple(rows),
        )

    def figures(self, names: Names) -> tuple[AnyFigure, ...]:
        """Scores against α, one line a split, with the chosen point."""
        title = "From the base to the tuned model"
        mixed = self._chart(self.curve, "interpolation", title)
        recalibrated = self._chart(
            self.recalibrated, "interpolation-recalibrated", f"{title}, BatchNorm recalibrated"
        )
        return tuple(chart for chart in (mixed, recalibrated) if chart is not None)

    def _chart(
        self, points: Sequence[InterpolationPoint], name: str, title: str
    ) -> LineChart | None:
        if len(points) < 2:
            return None
        first = points[0].scores
        shares = all(is_share(score.metric) for score in first.values())
        return LineChart(
            name=name,
            title=title,
            explanation="Scores along the path; bands are 95 % intervals.",
            x=Axis(name="α"),
            y=Axis(name="score", percent=shares),
            lines=tuple(_line(split, points) for split in first),
            rules=(Rule(name=f"chosen, α = {self.alpha:g}", value=self.alpha),),
        )


def _line(split: str, curve: Sequence[InterpolationPoint]) -> ChartLine:
    found = [point.scores[split] for point in curve]
    lows = [score.low for score in found if score.low is not None]
    highs = [score.high for score in found if score.high is not None]
    banded = len(lows) == len(highs) == len(found)
    return ChartLine(
        name=split,
        x=tuple(point.alpha for point in curve),
        y=tuple(score.value for score in found),
        low=tuple(lows) if banded else None,
        high=tuple(highs) if banded else None,
    )


def _estimate(score: Score) -> Estimate:
    return Estimate(value=score.value, low=score.low, high=score.high)


def _gap(gap: Difference) -> Estimate:
    return Estimate(value=gap.value, low=gap.low, high=gap.high)


def _difference(data: Mapping[str, Any], split: str, end: str) -> Difference:
    return Difference(
        value=data["difference"], low=data["low"], high=data["high"], p_value=data["p_value"],
        split=split, against=end,
    )  # fmt: skip


def _point_to_json(alpha: float, scores: Mapping[str, Score]) -> JSON:
    return {"alpha": alpha, "scores": scores_to_json(scores)}


def _points_to_json(points: Iterable[InterpolationPoint]) -> JSON:
    return [_point_to_json(point.alpha, point.scores) for point in points]


def _points_from_json(data: Any, higher_is_better: bool) -> tuple[InterpolationPoint, ...]:
    points = []
    for point in data or ():
        found = scores_from_json(point["scores"], higher_is_better=higher_is_better)
        points.append(
            InterpolationPoint(point["alpha"], {s: v for s, v in found.items() if v is not None})
        )
    return tuple(points)


_ENDS = {"margin_f": "margin_base", "margin_g": "margin_tuned"}
_FOLLOWED = {"first": "base", "second": "tuned"}


def _diversity_to_json(found: Diversity, followed: Override) -> JSON:
    whom = {_FOLLOWED.get(k, k): v for k, v in asdict(followed).items() if k != "n"}
    return {**{_ENDS.get(k, k): v for k, v in asdict(found).items()}, "override": whom}


def _diversity_from_json(data: Mapping[str, Any]) -> tuple[Diversity, Override]:
    of_ends = {key: data[_ENDS.get(key, key)] for key in Diversity.__dataclass_fields__}
    whom = {k: data["override"][_FOLLOWED.get(k, k)] for k in ("disagree", "first", "second")}
    neither = data["override"]["neither"]
    return Diversity(**of_ends), Override(**whom, neither=neither, n=data["n"])

"""The result of `stockpot diagnose`: what was measured, its JSON, its tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stockpot._figures import AnyFigure, Column, Estimate, Row, Table
from stockpot._types import JSON
from stockpot.analysis.barrier import ScoredLine
from stockpot.analysis.diversity import Override
from stockpot.analysis.geometry import Moves
from stockpot.analysis.landscape import Landscape
from stockpot.analysis.pairs import (
    STEP,
    PairStudy,
    advantage_correlation,
    approximation_correlation,
)
from stockpot.diagnosis import figures
from stockpot.diagnosis.parts import CalibrationRow, Contribution, LayerMap, ModelRow, Spending
from stockpot.evaluate.compare import SHIFT_AVERAGE, Difference
from stockpot.io.paths import short_names
from stockpot.recipes.selection import CurvePoint

Answer = Literal["yes", "mixed", "within noise", "no"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, and sentences with the numbers behind it.

    Of the uniform and the greedy soup, whichever fares better against the best single model on data
    that chose neither: `yes` when it is better beyond noise somewhere and nowhere worse, `mixed`
    when it is both, `no` when it is worse, `within noise` when it is neither. Models of different
    starts, or with barriers between most of them, are `no` unless a soup is better all the same.
    """

    answer: Answer
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `diagnose` measured; every part names its data.

    Attributes:
        base: path of the base.
        ingredients: paths, in the order given.
        best: path of the ingredient with the best held-out score.
        kept: paths in the greedy soup, in order of acceptance.
        split: the held-out split: it chose, and all lines, pairs and planes are measured on it.
        test: the split on which calibration is reported; the held-out one where there is no other.
        shifts: names of the shift splits.
        metric: of the scores.
        higher_is_better: its direction.
        moves: distances, angles and evidence of a common start.
        layers: the same by layer.
        models: by name: scores on all splits, as far as the budget allowed.
        gains: model → split or `shift_average` → difference to the best single ingredient.
        lines: with their barriers.
        pairs: of ingredients; all of them, or a sample.
        landscape: None without a budget for it, or where `notes` says why.
        calibration: of best, soups and ensemble.
        override: whom the midpoint of base and best follows on the test split.
        contributions: of each ingredient to the uniform and to the greedy soup.
        growth: uniform soups by number of ingredients, over random orders.
        hyperparameters: by path, where they are known.
        spending: evaluations.
        notes: what a person should know, one sentence each.
        verdict: whether these will soup, in plain words with the numbers behind them.
    """

    base: str
    ingredients: tuple[str, ...]
    best: str
    kept: tuple[str, ...]
    split: str
    test: str
    shifts: tuple[str, ...]
    metric: str
    higher_is_better: bool
    moves: Moves
    layers: tuple[LayerMap, ...]
    models: Mapping[str, ModelRow]
    gains: Mapping[str, Mapping[str, Difference]]
    lines: tuple[ScoredLine, ...]
    pairs: tuple[PairStudy, ...]
    landscape: Landscape | None
    calibration: tuple[CalibrationRow, ...]
    override: Override | None
    contributions: tuple[Contribution, ...]
    growth: tuple[CurvePoint, ...]
    spending: Spending
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    verdict: Verdict = Verdict("within noise", ())

    @property
    def names(self) -> dict[str, str]:
        """Short names of everything that tables and figures show, by path."""
        ends = [end for line in self.lines for end in (line.a, line.b)]
        marks = () if self.landscape is None else self.landscape.marks
        projected = [mark.name for mark in marks if mark.kind != "midpoint"]
        return short_names([self.base, *self.ingredients, *ends, *self.models, *projected])

    def figures(self) -> list[AnyFigure]:
        """Every figure for which there are numbers, in the order of the page."""
        names, split = self.names, self.split
        growth = [(p.n_ingredients, p.mean[split], p.sd[split]) for p in self.growth]
        found = [
            None
            if self.landscape is None
            else figures.landscape_heatmap(self.landscape, split, names),
            figures.lines_chart(self.lines, split, names),
            figures.greedy_path_chart(self.lines, split),
            figures.barrier_heatmap(self.pairs, self.ingredients, names),
            figures.angle_chart(self.pairs, split, names, self.hyperparameters),
            figures.diversity_chart(self.pairs, self.override, split, names),
            figures.gap_chart(self.pairs, names),
            figures.reliability_chart(
                self.calibration, names, fitted_on=split, reported_on=self.test
            ),
            figures.growth_chart(growth, split),
            figures.contribution_chart(
                self.contributions, split, names, higher_is_better=self.higher_is_better
            ),
            figures.layer_distance_heatmap(self.layers, self.ingredients, names),
            figures.layer_angle_chart(self.layers),
        ]
        return [figure for figure in found if figure is not None]

    def tables(self) -> list[Table]:
        """Scores of all models, barriers of all lines, and calibration; those that have rows."""
        found = [self._score_table(), self._line_table(), self._calibration_table()]
        return [table for table in found if table.rows]

    def _score_table(self) -> Table:
        splits = list(next(iter(self.models.values())).scores) if self.models else []
        percent = self.metric == "accuracy"
        rows = []
        for name, model in self.models.items():
            scores = [model.scores.get(split) for split in splits]
            cells = tuple(
                None if s is None else Estimate(value=s.value, low=s.low, high=s.high)
                for s in scores
            )
            rows.append(Row(name=self.names[name], cells=cells, role=model.kind))
        return Table(
            name="scores",
            title="Scores",
            columns=tuple(
                Column(name="shift average" if s == SHIFT_AVERAGE else s, percent=percent)
                for s in splits
            ),
            rows=tuple(rows),
        )

    def _line_table(self) -> Table:
        names = self.names
        return Table(
            name="barriers-of-lines",
            title="Barriers on lines",
            explanation=f"Largest excess of the loss on {self.split} over the straight line.",
            first="line",
            columns=tuple(map(_column, ("kind", "barrier (nat)", "at"))),
            rows=tuple(
                Row(name=f"{names[x.a]} – {names[x.b]}", cells=(x.kind, x.barrier, x.at))
                for x in self.lines
            ),
        )

    def _calibration_table(self) -> Table:
        measures = ("ece", "nll", "brier")
        rows = []
        for row in self.calibration:
            pairs = [(getattr(row.before, m), getattr(row.after, m)) for m in measures]
            cells = [value for pair in pairs for value in pair]
            rows.append(Row(name=self.names[row.name], cells=(*cells, 1 / row.after.beta)))
        heads = [f"{name}{when}" for name in ("ECE", "NLL", "Brier") for when in ("", ", scaled")]
        return Table(
            name="calibration",
            title=f"Calibration on {self.test}",
            explanation=f"Before and after a temperature that was fitted on {self.split}.",
            columns=tuple(map(_column, (*heads, "temperature"))),
            rows=tuple(rows),
        )

    def to_json(self) -> dict[str, JSON]:
        """The keys that scripts may rely on, and what belongs to them."""
        return {
            "verdict": {"answer": self.verdict.answer, "sentences": list(self.verdict.sentences)},
            "same_init": self._same_init(),
            "angles": self._angles(),
            "barriers": {
                "lines": [found.to_json() for found in self.lines],
                "pairs": [{**pair.where, "barrier": pair.barrier} for pair in self.pairs],
            },
            "landscape": None if self.landscape is None else self.landscape.to_json(),
            "diversity": {
                "pairs": [{**pair.where, **asdict(pair.diversity)} for pair in self.pairs],
                "override": None if self.override is None else asdict(self.override),
            },
            "calibration": {
                "fitted_on": self.split,
                "reported_on": self.test,
                "models": [row.to_json() for row in self.calibration],
            },
            "robustness": self._robustness(),
            "soup_vs_ensemble": {
                "step": STEP,
                "points": [row for pair in self.pairs for row in pair.gaps_json()],
                "correlation": asdict(approximation_correlation(self.pairs)),
            },
            "ingredients": self._ingredients(),
            "budget": {
                "given": self.spending.budget,
                "planned": self.spending.planned,
                "made": self.spending.made,
                "parts": dict(self.spending.parts),
            },
            "chosen_on": self.split,
            "direction": "max" if self.higher_is_better else "min",
            "notes": list(self.notes),
        }

    def _same_init(self) -> dict[str, JSON]:
        return {
            "base": self.base,
            "tensors": self.moves.tensors,
            "ingredients": [
                {"path": move.path, "distance": move.distance, **asdict(move.same_initialisation)}
                for move in self.moves.ingredients
            ],
        }

    def _angles(self) -> dict[str, JSON]:
        pairs: list[JSON] = [
            {
                **pair.where,
                "degrees": pair.degrees,
                "advantage": pair.advantage,
                "advantage_loss": pair.advantage_loss,
                "differs": None if pair.differs is None else list(pair.differs),
            }
            for pair in self.pairs
        ]
        return {
            "pairs": pairs,
            "all": [asdict(angle) for angle in self.moves.angles],
            "correlation": asdict(advantage_correlation(self.pairs)),
            "correlation_loss": asdict(advantage_correlation(self.pairs, of_loss=True)),
            "layers": [
                {**asdict(found), "distances": dict(found.distances)} for found in self.layers
            ],
        }

    def _robustness(self) -> dict[str, JSON]:
        return {
            "best_single": self.best,
            "greedy_kept": list(self.kept),
            "models": {name: row.to_json() for name, row in self.models.items()},
            "gains": {
                name: {split: found.to_json() for split, found in by.items()}
                for name, by in self.gains.items()
            },
        }

    def _ingredients(self) -> dict[str, JSON]:
        growth: list[JSON] = [
            {
                "n_ingredients": point.n_ingredients,
                "mean": point.mean[self.split],
                "sd": point.sd[self.split],
            }
            for point in self.growth
        ]
        return {
            "leave_one_out": [found.to_json() for found in self.contributions],
            "growth": growth,
            "hyperparameters": {path: dict(found) for path, found in self.hyperparameters.items()},
        }


def _column(name: str) -> Column:
    return Column(name=name)

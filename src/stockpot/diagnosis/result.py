"""What a study found, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stockpot._types import JSON
from stockpot.analysis.barrier import Line
from stockpot.analysis.diversity import Override
from stockpot.analysis.geometry import Moves
from stockpot.analysis.landscape import Landscape
from stockpot.analysis.pairs import (
    STEP,
    PairStudy,
    advantage_correlation,
    approximation_correlation,
)
from stockpot.diagnosis.reporting import CalibrationRow, Contribution
from stockpot.diagnosis.verdict import Verdict, judge_study
from stockpot.evaluate.compare import Difference, scores_to_json
from stockpot.evaluate.task import Score
from stockpot.recipes.repeats import CurvePoint


@dataclass(frozen=True)
class ModelRow:
    """One model and its scores on every split; `kind` is base, run, soup or ensemble."""

    name: str
    kind: str
    scores: Mapping[str, Score]
    members: tuple[str, ...] = ()

    def to_json(self) -> dict[str, JSON]:
        """Kind, members and scores."""
        return {
            "kind": self.kind,
            "members": list(self.members),
            "scores": scores_to_json(self.scores),
        }


@dataclass(frozen=True)
class LayerMap:
    """One layer: relative distances from the base by path, and the angles of all pairs.

    Quantiles of the angles are over pairs, in degrees; None where fewer than two models moved it.
    """

    layer: str
    distances: Mapping[str, float | None]
    low: float | None
    median: float | None
    high: float | None


@dataclass(frozen=True)
class Spending:
    """Evaluations (one set of weights on one split): the limit, the plan, and what was done.

    `made` leaves out what the journal knew.
    """

    budget: int | None
    parts: Mapping[str, int]
    made: int

    @property
    def planned(self) -> int:
        """Most that the plan could have taken."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `diagnose` measured; every part says on which data.

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
        worth: of each ingredient to the uniform and to the greedy soup.
        growth: uniform soups by number of ingredients, over random orders.
        hyperparameters: by path, where they are known.
        spending: evaluations.
        notes: what a person should know, one sentence each.
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
    lines: tuple[Line, ...]
    pairs: tuple[PairStudy, ...]
    landscape: Landscape | None
    calibration: tuple[CalibrationRow, ...]
    override: Override | None
    worth: tuple[Contribution, ...]
    growth: tuple[CurvePoint, ...]
    spending: Spending
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Whether these will soup, in plain words with the numbers behind them."""
        return judge_study(self)

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
            "leave_one_out": [found.to_json() for found in self.worth],
            "growth": growth,
            "hyperparameters": {path: dict(found) for path, found in self.hyperparameters.items()},
        }


def layer_maps(
    paths: tuple[str, ...],
    distances: Mapping[str, Mapping[str, float | None]],
    degrees: Mapping[str, tuple[float, ...]],
) -> tuple[LayerMap, ...]:
    """Distances {path: {layer: …}} and angles {layer: over pairs} as one row for each layer."""
    maps = []
    for layer, values in degrees.items():
        low, median, high = np.quantile(values, [0, 0.5, 1]).tolist() if values else (None,) * 3
        maps.append(
            LayerMap(layer, {path: distances[path][layer] for path in paths}, low, median, high)
        )
    return tuple(maps)

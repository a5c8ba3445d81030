"""What greedy and pruned soups have to say of how they were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stockpot._figures import AnyFigure, Axis, Column, Line, LineChart, Row, Table
from stockpot._types import JSON
from stockpot.analysis.explanations import Finding
from stockpot.evaluate.stats import Optimism
from stockpot.recipes.result import Details, Names, SoupSummary


@dataclass(frozen=True, kw_only=True)
class RandomOrders:
    """Greedy soups of several random orders.

    Attributes:
        orders: how many.
        mean: of each split's score over the orders.
        sd: with n−1 in the denominator.
        selected: paths that each order kept.
    """

    orders: int
    mean: Mapping[str, float]
    sd: Mapping[str, float]
    selected: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return {
            "orders": self.orders,
            "mean": dict(self.mean),
            "sd": dict(self.sd),
            "selected": [list(kept) for kept in self.selected],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RandomOrders:
        """The value that `to_json` was made from."""
        return cls(**{**data, "selected": tuple(map(tuple, data["selected"]))})


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Scores of uniform soups of `n_ingredients`, over random choices of them."""

    n_ingredients: int
    mean: Mapping[str, float]
    sd: Mapping[str, float | None]

    def to_json(self) -> dict[str, JSON]:
        """The three fields; `sd` is null where there is only one choice."""
        return {"ingredients": self.n_ingredients, "mean": dict(self.mean), "sd": dict(self.sd)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CurvePoint:
        """The value that `to_json` was made from."""
        return cls(data["ingredients"], data["mean"], data["sd"])


@dataclass(frozen=True, kw_only=True)
class SelectionDetails(Details):
    """What greedy and pruned soups have to say.

    Attributes:
        optimism: how much the score that chose is too good; None where the metric is no mean.
        singles: path → score of each ingredient on the split that decided, best first.
    """

    optimism: Optimism | None = None
    singles: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        """`optimism` and `singles`."""
        return {"optimism": optimism_to_json(self.optimism), "singles": dict(self.singles)}

    @property
    def selection_optimism(self) -> Optimism | None:
        """How much the score that chose is too good; None where the metric is no mean."""
        return self.optimism

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """How many are kept, and how many of the decisions are within noise."""
        found = [f"The {summary.recipe} soup keeps {len(summary.selected)} of {len(self.singles)}."]
        taken = [step for step in summary.steps if step.accepted and step.reason != "first"]
        if taken:
            weak = sum(bool(step.within_noise) for step in taken)
            found.append(f"Of {len(taken)} accepted steps, {weak} are within noise.")
        return tuple(found)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SelectionDetails:
        """The value that `to_json` was made from."""
        return cls(
            optimism=optimism_from_json(data.get("optimism")), singles=data.get("singles", {})
        )


@dataclass(frozen=True, kw_only=True)
class GreedyDetails(SelectionDetails):
    """What greedy soups have to say.

    Attributes:
        reasons: why only one ingredient was kept; empty otherwise.
        random_orders: soups of random orders, where asked for.
        ingredients_curve: scores against the number of ingredients, where asked for.
    """

    reasons: tuple[Finding, ...] = ()
    random_orders: RandomOrders | None = None
    ingredients_curve: tuple[CurvePoint, ...] = ()

    def to_json(self) -> dict[str, JSON]:
        """`reasons`, `optimism`, `singles`, and what was asked for beside them."""
        reasons: list[JSON] = [reason.to_json() for reason in self.reasons]
        found: dict[str, JSON] = {"reasons": reasons, **super().to_json()}
        if self.random_orders is not None:
            found["random_orders"] = self.random_orders.to_json()
        if self.ingredients_curve:
            found["ingredients_curve"] = [point.to_json() for point in self.ingredients_curve]
        return found

    def tables(self, names: Names) -> tuple[Table, ...]:
        """Soups of random orders, and scores against the number of ingredients."""
        found = []
        orders, points = self.random_orders, self.ingredients_curve
        if orders is not None:
            kept = ", ".join(str(len(selected)) for selected in orders.selected)
            found.append(
                Table(
                    name="random-orders",
                    title=f"Greedy soups of {orders.orders} random orders",
                    explanation=f"They keep {kept} ingredients.",
                    columns=tuple(Column(name=split) for split in orders.mean),
                    rows=(
                        Row(name="mean", cells=tuple(orders.mean.values())),
                        Row(name="sd", cells=tuple(orders.sd[split] for split in orders.mean)),
                    ),
                    first=f"{orders.orders} random orders",
                )
            )
        if points:
            splits = list(points[0].mean)
            found.append(
                Table(
                    name="ingredients-curve",
                    title="Scores against the number of ingredients",
                    explanation="Means of so many checkpoints, in random orders.",
                    columns=tuple(Column(name=split) for split in splits),
                    rows=tuple(
                        Row(
                            name=str(point.n_ingredients),
                            cells=tuple(_spread_text(point, split) for split in splits),
                        )
                        for point in points
                    ),
                    first="mean of",
                )
            )
        return tuple(found)

    def figures(self, names: Names) -> tuple[AnyFigure, ...]:
        """Scores against the number of ingredients."""
        points = self.ingredients_curve
        if len(points) < 2:
            return ()
        x = tuple(float(point.n_ingredients) for point in points)
        lines = []
        for split in points[0].mean:
            y = tuple(point.mean[split] for point in points)
            sd = [point.sd[split] or 0.0 for point in points]
            low = tuple(value - s for value, s in zip(y, sd, strict=True))
            high = tuple(value + s for value, s in zip(y, sd, strict=True))
            lines.append(Line(name=split, x=x, y=y, low=low, high=high))
        return (
            LineChart(
                name="ingredients-curve",
                title="Scores against the number of ingredients",
                explanation="Means of so many checkpoints; bands are one sd over random orders.",
                x=Axis(name="ingredients", whole=True),
                y=Axis(name="score"),
                lines=tuple(lines),
            ),
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GreedyDetails:
        """The value that `to_json` was made from."""
        common = SelectionDetails.from_json(data)
        orders = data.get("random_orders")
        return cls(
            optimism=common.optimism,
            singles=common.singles,
            reasons=tuple(Finding(**reason) for reason in data.get("reasons", ())),
            random_orders=None if orders is None else RandomOrders.from_json(orders),
            ingredients_curve=tuple(map(CurvePoint.from_json, data.get("ingredients_curve", ()))),
        )


def optimism_to_json(optimism: Optimism | None) -> JSON:
    """`{value, low, high, candidates}`."""
    if optimism is None:
        return None
    found = asdict(optimism)
    found["candidates"] = found.pop("n_candidates")
    return found


def optimism_from_json(data: Mapping[str, Any] | None) -> Optimism | None:
    """The value that `optimism_to_json` was given."""
    if data is None:
        return None
    return Optimism(data["value"], data["low"], data["high"], data["candidates"])


def _spread_text(point: CurvePoint, split: str) -> str:
    sd = point.sd[split]
    return f"{point.mean[split]:.4f}" + ("" if sd is None else f" (sd {sd:.4f})")

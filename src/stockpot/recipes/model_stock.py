"""Model Stock: how far to go from the base towards the mean, by the angle between the moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

from stockpot._figures import AnyFigure, Axis, Column, Estimate, IntervalChart, Row, Table
from stockpot._options import option
from stockpot._types import JSON
from stockpot.analysis.geometry import tensor_grams
from stockpot.errors import RecipeError
from stockpot.mixing import Coefficients
from stockpot.mixing.coefficients import group_names
from stockpot.recipes.base import Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.interpolation import RecipeFromBase
from stockpot.recipes.result import Details, Names, SoupSummary


@dataclass(frozen=True, kw_only=True)
class ModelStockDetails(Details):
    """What Model Stock has to say: tensor → t, its share of the mean against the base."""

    shares: Mapping[str, float]

    def to_json(self) -> dict[str, JSON]:
        """`shares`."""
        return {"shares": dict(self.shares)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelStockDetails:
        """The details in the JSON of a soup."""
        return cls(shares=data["shares"])

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """The range of the shares."""
        low, median, high = np.quantile(list(self.shares.values()), [0, 0.5, 1]).tolist()
        return (
            f"Between the base (0) and the mean (1), tensors stand at {low:.2f} to {high:.2f}, in "
            f"the median at {median:.2f}.",
        )

    def tables(self, names: Names) -> tuple[Table, ...]:
        """The share of every tensor."""
        rows = tuple(Row(name=name, cells=(share,)) for name, share in self.shares.items())
        columns = (Column(name="share of the mean"),)
        title = "How far tensors go from the base to the mean"
        return (Table(name="shares", title=title, columns=columns, rows=rows, first="tensor"),)

    def figures(self, names: Names) -> tuple[AnyFigure, ...]:
        """The share of every tensor, in the order of the model."""
        rows = tuple((name, Estimate(value=share)) for name, share in self.shares.items())
        return (
            IntervalChart(
                name="shares",
                title="How far tensors go from the base to the mean",
                explanation="Tensors whose moves stand at right angles stay near the base.",
                x=Axis(name="share of the mean"),
                rows=rows,
                reference=1.0,
            ),
        )


@final
@dataclass(frozen=True, kw_only=True)
class ModelStock(RecipeFromBase):
    """t·mean + (1−t)·base for each tensor, t from the angle between the moves from the base.

    t = N·c / (1 + (N−1)·c), c the mean pairwise cosine of the moves of N ingredients: moves that
    agree go all the way to the mean, moves at right angles stay at the base. It takes no data.
    Tensors that did not move are those of the mean, and t is kept within 0..1. BatchNorm statistics
    take the t of the whole model.

    Attributes:
        norms: `"equal"` is the paper's formula, which assumes that all moves are equally long;
            `"measured"` is t = [Σ_{i≠j} G_ij / N(N−1)] / [Σ_ij G_ij / N²] of their inner products.

    Reference: Jang et al. 2024, arXiv 2403.19522, eq. 6.
    """

    name = "model-stock"
    title = "Model Stock"
    command = "model-stock"
    summary = "Model Stock: from base to mean as far as the moves agree."
    about = (
        "Reads every checkpoint once to measure, for each tensor, the angles between the moves "
        "from the base, and goes from the base towards the mean as far as they agree."
    )
    examples = ("stockpot model-stock a/ b/ c/ --base base/ -o stock/",)
    details_type = ModelStockDetails
    simplicity = 2

    norms: Literal["equal", "measured"] = option(
        "equal", help="Assume equally long moves, as the paper does, or measure them."
    )

    @property
    def chooses(self) -> bool:
        """It never does."""
        return False

    def solve(self, context: RecipeContext) -> Solution:
        """Measure all tensors and decide the share of each.

        Raises:
            RecipeError: a single ingredient, which has no angle to another.
        """
        given = context.ingredients
        *tuned, base = given
        n = len(tuned)
        if n < 2:
            raise RecipeError(
                "Model Stock goes by the angles between moves, and one checkpoint has none; "
                "expected at least two (for one there is stockpot interpolate)"
            )
        names = [name for name in given.specs if name in given.averaged]
        group_of = group_names(names, "tensor", tied=given.tied)
        grams = tensor_grams(tuned, base)
        whole = share_of_mean(sum(grams.values(), np.zeros((n, n))), norms=self.norms)
        shares = {
            group: share_of_mean(grams[group], norms=self.norms) if group in grams else whole
            for group in dict.fromkeys(group_of.values())
        }
        vectors = {group: [*[t / n] * n, 1.0 - t] for group, t in shares.items()}
        return Solution(
            mixture=context.mixed(Coefficients.per_group(vectors, group_of=group_of)),
            selected=context.paths[:n],
            details=ModelStockDetails(shares={name: shares[name] for name in grams}),
        )


def share_of_mean(
    gram: npt.NDArray[np.float64], *, norms: Literal["equal", "measured"] = "equal"
) -> float:
    """t of one tensor from the inner products (N, N) of its moves, within 0..1.

    >>> [round(share_of_mean(np.array([[1, c], [c, 1]])), 4) for c in (0.0, 0.5, 1.0)]
    [0.0, 0.6667, 1.0]
    """
    n = len(gram)
    squares = np.diag(gram)
    apart = ~np.eye(n, dtype=bool)
    if norms == "measured":
        mean_square = float(gram.sum()) / n**2
        t = float(gram[apart].mean()) / mean_square if mean_square > 0 else 1.0
    else:
        if not (squares > 0).all():
            return 1.0
        cosine = float((gram / np.sqrt(np.outer(squares, squares)))[apart].mean())
        scale = 1 + (n - 1) * cosine
        t = n * cosine / scale if scale > 0 else 0.0
    return min(1.0, max(0.0, t)) if math.isfinite(t) else 1.0

"""SLERP: spherical interpolation of two checkpoints, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from stockpot._options import option
from stockpot._types import JSON
from stockpot.analysis.geometry import tensor_cosines
from stockpot.errors import RecipeError
from stockpot.mixing import Coefficients
from stockpot.mixing.coefficients import group_names
from stockpot.recipes.base import Recipe, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.result import Details, SoupSummary

LINEAR_ABOVE = 0.9995
"""Cosine above which two tensors are taken as parallel, and mixed linearly."""


@dataclass(frozen=True, kw_only=True)
class SlerpDetails(Details):
    """What SLERP has to say: tensor → angle between the two, in degrees."""

    degrees: Mapping[str, float]

    def to_json(self) -> dict[str, JSON]:
        """`degrees`."""
        return {"degrees": dict(self.degrees)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SlerpDetails:
        """The details in the JSON of a soup."""
        return cls(degrees=data["degrees"])

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """The range of the angles."""
        low, median, high = np.quantile(list(self.degrees.values()), [0, 0.5, 1]).tolist()
        return (
            f"Tensors of the two stand at {low:.1f} to {high:.1f} degrees to each other, in the "
            f"median at {median:.1f}.",
        )


@final
@dataclass(frozen=True, kw_only=True)
class Slerp(Recipe):
    """sin((1−t)φ)/sin φ · θ₁ + sin(tφ)/sin φ · θ₂, φ the angle between two tensors.

    The angle is that of the whole tensors about the origin; the coefficients apply to the tensors
    as they are, so tensors of equal norm keep their norm. Where cos φ > 0.9995 the two are mixed
    linearly; tensors that point in opposite directions (cos φ < −0.9995) have no way between them
    and are refused. The ends are the two checkpoints themselves.

    Attributes:
        t: 0 is the first checkpoint, 1 the second.

    Reference: Shoemake 1985, "Animating rotation with quaternion curves", §3.
    """

    name = "slerp"
    title = "SLERP"
    command = "slerp"
    summary = "SLERP: spherical interpolation of two checkpoints."
    about = "Measures the angle between the two for each tensor, in one pass, and keeps norms."
    examples = ("stockpot slerp a.safetensors b.safetensors -o between.safetensors --t 0.5",)
    details_type = SlerpDetails

    t: float = option(0.5, help="0 is the first checkpoint, 1 the second.")

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise RecipeError(f"t is {self.t}; expected 0 to 1")

    @property
    def chooses(self) -> bool:
        """It never does."""
        return False

    def solve(self, context: RecipeContext) -> Solution:
        """Measure all angles and mix.

        Raises:
            RecipeError: not two ingredients, or tensors that point in opposite directions.
        """
        given = context.ingredients
        if len(given) != 2:
            raise RecipeError(f"SLERP goes between two checkpoints, found {len(given)}")
        cosines = tensor_cosines(given[0], given[1])
        opposite = [name for name, cosine in cosines.items() if cosine < -LINEAR_ABOVE]
        if opposite:
            raise RecipeError(
                f"{', '.join(opposite[:5])} of the two point in opposite directions; between them "
                "there is no shortest way: use interpolate or average"
            )
        names = [name for name in given.specs if name in given.averaged]
        group_of = group_names(names, "tensor", tied=given.tied)
        vectors = {
            group: spherical_coefficients(cosines.get(group, 1.0), self.t)
            for group in dict.fromkeys(group_of.values())
        }
        parts = [path for path, taken in zip(context.paths, (self.t < 1, self.t > 0), strict=True)
                 if taken]  # fmt: skip
        return Solution(
            mixture=context.mixed(Coefficients.per_group(vectors, group_of=group_of, any_sum=True)),
            selected=parts,
            details=SlerpDetails(
                degrees={
                    name: math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
                    for name, cosine in cosines.items()
                }
            ),
        )


def spherical_coefficients(cosine: float, t: float) -> tuple[float, float]:
    """The coefficients of two vectors whose angle has this cosine.

    >>> [round(c, 6) for c in spherical_coefficients(0.0, 0.5)]
    [0.707107, 0.707107]
    >>> spherical_coefficients(0.3, 0.0), spherical_coefficients(0.3, 1.0)
    ((1.0, 0.0), (0.0, 1.0))
    >>> spherical_coefficients(0.99999, 0.25)
    (0.75, 0.25)
    """
    if t in (0.0, 1.0) or cosine > LINEAR_ABOVE:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)

"""SLERP: between checkpoints along the sphere, tensor by tensor; of several, their Karcher mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from stockpot._options import option
from stockpot._types import JSON
from stockpot.analysis.geometry import inner_products
from stockpot.analysis.initialisation import comparable
from stockpot.errors import RecipeError
from stockpot.mixing import Coefficients
from stockpot.mixing.coefficients import group_names
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.mixing.reconcile import Reconcile
from stockpot.recipes.base import Recipe, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.interpolation import BaseAlignment, with_base
from stockpot.recipes.karcher import karcher_coefficients
from stockpot.recipes.result import Details, SoupSummary

LINEAR_ABOVE = 0.9995
"""Cosine above which two tensors are taken as parallel, and mixed linearly."""
_F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SlerpDetails(Details):
    """What SLERP has to say: tensor → angle between the two (the widest of several), in degrees."""

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
            f"Tensors stand at {low:.1f} to {high:.1f} degrees to each other, in the "
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

    With a base, angles are about the base: θ₀ plus the SLERP of the two task vectors (NuSLERP). Of
    more than two it is their Karcher mean, the point of the sphere nearest to all.

    Attributes:
        t: 0 is the first checkpoint, 1 the second; of more than two, 1/2.

    Reference: Shoemake 1985, "Animating rotation with quaternion curves", §3; Karcher 1977.
    """

    name = "slerp"
    title = "SLERP"
    command = "slerp"
    summary = "SLERP: spherical interpolation, or mean, of checkpoints."
    about = (
        "Measures the angle between the two for each tensor, in one pass, and keeps norms. Angles "
        "are those of the task vectors with --base. Of more than two it is the Karcher mean."
    )
    examples = (
        "stockpot slerp a.safetensors b.safetensors -o between.safetensors --t 0.5",
        "stockpot slerp a/ b/ --base base/ --t 0.3 -o between/",
        "stockpot slerp a/ b/ c/ -o mean/",
    )
    details_type = SlerpDetails
    simplicity = 2

    t: float = option(0.5, help="0 is the first checkpoint, 1 the second.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.t <= 1:
            raise RecipeError(f"t is {self.t}; expected 0 to 1")

    @property
    def chooses(self) -> bool:
        """It never does."""
        return False

    def align(
        self,
        ingredients: Ingredients | Iterable[Source],
        *,
        base: Source | None,
        on_mismatch: OnMismatch,
        form: Reconcile | None = None,
    ) -> Ingredients:
        """The checkpoints, and then the base where there is one."""
        alone = base is None and getattr(ingredients, "base", None) is None
        if alone:
            return super().align(ingredients, base=None, on_mismatch=on_mismatch, form=form)
        return with_base(ingredients, base, on_mismatch=on_mismatch, how=BaseAlignment(), form=form)

    def solve(self, context: RecipeContext) -> Solution:
        """Measure all angles and mix.

        Raises:
            RecipeError: a single ingredient, `t` for more than two, or tensors of two that point
                in opposite directions.
        """
        given = context.ingredients
        models = list(given) if given.base is None else list(given)[:-1]
        n = len(models)
        if n < 2 or (n > 2 and self.t != 0.5):
            raise RecipeError(
                f"SLERP goes between two checkpoints, or to the mean of more without t; found {n}"
                f"{f' and t = {self.t:g}' if n > 2 else ''}"
            )
        about = given.base
        measured = {
            name: inner_products(name, models, origin=about)
            for name in comparable(models, models[0] if about is None else about)
        }
        cosines = {name: _cosines(gram) for name, gram in measured.items()}
        opposite = [name for name, found in cosines.items() if found.min() < -LINEAR_ABOVE]
        if opposite and n == 2:
            raise RecipeError(
                f"{', '.join(opposite[:5])} of the two point in opposite directions; between them "
                "there is no shortest way: use interpolate or average"
            )
        names = [name for name in given.specs if name in given.averaged]
        group_of = group_names(names, "tensor", tied=given.tied)
        vectors = {
            group: self._vector(measured.get(group, np.ones((n, n))), with_base=n < len(given))
            for group in dict.fromkeys(group_of.values())
        }
        part = (self.t < 1, self.t > 0) if n == 2 else (True,) * n
        paths = [path for path, taken in zip(context.paths, part, strict=False) if taken]
        return Solution(
            mixture=context.mixed(Coefficients.per_group(vectors, group_of=group_of, any_sum=True)),
            selected=paths,
            details=SlerpDetails(
                degrees={n: math.degrees(math.acos(found.min())) for n, found in cosines.items()}
            ),
        )

    def _vector(self, gram: _F64, *, with_base: bool) -> tuple[float, ...]:
        if len(gram) == 2:
            found = list(spherical_coefficients(float(_cosines(gram)[0, 1]), self.t))
        else:
            found = karcher_coefficients(gram)
        return (*found, *([1.0 - math.fsum(found)] if with_base else []))


def _cosines(gram: _F64) -> _F64:
    """Those of all pairs; 1 where a vector is zero or not finite, which has no direction."""
    norms = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    known = np.isfinite(gram) & (norms > 0)
    found: _F64 = np.clip(np.where(known, gram / np.where(known, norms, 1.0), 1.0), -1.0, 1.0)
    return found


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

"""The straight path from a base to what was fine-tuned from it: its points are mixtures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stockpot.errors import MaskMismatchError, MismatchError, RecipeError
from stockpot.evaluate.batchnorm import is_statistic
from stockpot.formats.base import Checkpoint
from stockpot.formats.memory import from_state_dict
from stockpot.io.memory import fits_in_memory
from stockpot.mixing import Coefficients, Mixture, shared_mask
from stockpot.mixing.coefficients import group_names, layer_of
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source, open_base, open_sources
from stockpot.mixing.reconcile import Reconcile, held
from stockpot.recipes.base import Recipe
from stockpot.recipes.context import RecipeContext
from stockpot.tensors.spec import TensorSpec

if TYPE_CHECKING:
    import torch


_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class InterpolationPath:
    """(1−α)·θ₀ + α·θ₁ with θ₁ = Σ sᵢ·θᵢ; the base is the last ingredient of the context.

    Attributes:
        context: the tuned models and then the base.
        shares: sᵢ of each tuned model.
        fixed: group of tensors → the α that it always has.
        group_of: the group of each tensor, where groups have an α of their own.
        fisher: parameter → (F of the base, F of θ₁): points are weighted by them.
    """

    context: RecipeContext
    shares: tuple[float, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)
    group_of: Mapping[str, str] = field(default_factory=dict)
    fisher: Mapping[str, tuple[_Floats, _Floats]] = field(default_factory=dict)

    def at(self, alpha: float, layers: Mapping[str, float] | None = None) -> Mixture:
        """The point α; `layers` gives some groups an α of their own.

        The ends of a plain path are the base and the tuned model themselves.
        """
        own = {**(layers or {}), **self.fixed}
        if not own:
            coefficients = Coefficients.per_model(self._vector(alpha))
        else:
            groups = sorted(set(self.group_of.values()))
            coefficients = Coefficients.per_group(
                {group: self._vector(own.get(group, alpha)) for group in groups},
                group_of=self.group_of,
            )
        if not self.fisher or alpha in (0, 1):
            return self._mixture(coefficients)
        weighted = self._fisher_shares(alpha)
        free = {n: share for n, share in weighted.items() if self.group_of.get(n) not in own}
        return self._by_element(coefficients, free, alpha)

    def randomly(self, alpha: float, *, seed: int) -> Mixture:
        """Every element from the tuned model with probability α, else from the base.

        What is taken from the tuned model at one α is taken from it at every larger one.
        """
        coefficients = Coefficients.per_model(self._vector(alpha))
        if alpha in (0, 1):
            return self._mixture(coefficients)
        shares = {
            name: (np.random.default_rng([seed, i]).random(spec.shape) < alpha).astype(np.float64)
            for i, (name, spec) in enumerate(sorted(self._parameters.items()))
        }
        return self._by_element(coefficients, shares, alpha)

    def _vector(self, alpha: float) -> list[float]:
        return [*(alpha * share for share in self.shares), 1.0 - alpha]

    def _mixture(
        self,
        coefficients: Coefficients,
        overrides: Mapping[str, torch.Tensor] | None = None,
    ) -> Mixture:
        mixture = self.context.mixed(coefficients)
        if overrides is None:
            return mixture
        return Mixture(
            mixture.ingredients,
            coefficients,
            mask=mixture.mask,
            overrides=overrides,
            dtype=mixture.dtype,
        )

    @cached_property
    def _parameters(self) -> Mapping[str, TensorSpec]:
        """What a mixture by element computes: mixable tensors but BatchNorm's, ties once."""
        given = self.context.ingredients
        repeated = {name for group in given.tied for name in group[1:]}
        return {
            name: spec
            for name, spec in given.specs.items()
            if name in given.averaged and spec.dtype.mixable
            and not is_statistic(name) and name not in repeated
        }  # fmt: skip

    def _by_element(
        self, coefficients: Coefficients, shares: Mapping[str, _Floats], alpha: float
    ) -> Mixture:
        """A mixture whose parameters have their own share of the tuned model at every element.

        They are computed now and override those of the plain mixture: so the record holds their
        hashes, and statistics and counters are those of the plain path.
        """
        given = self.context.ingredients
        tuned = {
            name: shares.get(name, np.full(spec.shape, alpha))
            for name, spec in given.specs.items()
            if name in given.averaged
        }
        elements = [
            # asarray: arithmetic makes scalars of arrays without dimensions.
            *({n: np.asarray(s * share) for n, share in tuned.items()} for s in self.shares),
            {n: np.asarray(1.0 - share) for n, share in tuned.items()},
        ]
        by_element = Mixture(
            given,
            Coefficients.elementwise([from_state_dict(e, path="<shares>") for e in elements]),
            dtype=self.context.dtype,
        )
        computed = {name: by_element.read(name) for name in shares}
        return self._mixture(coefficients, computed)

    def _fisher_shares(self, alpha: float) -> dict[str, _Floats]:
        """λ = α·F₁ / ((1−α)·F₀ + α·F₁) of every element."""
        return {
            name: alpha * tuned / ((1.0 - alpha) * base + alpha * tuned)
            for name, (base, tuned) in self.fisher.items()
            if name in self._parameters
        }

    def with_fisher(
        self, base: Mapping[str, _Floats], tuned: Mapping[str, _Floats]
    ) -> InterpolationPath:
        """The same path, weighted by the Fisher information of its two ends."""
        leaders = {n: group[0] for group in self.context.ingredients.tied for n in group}
        return replace(self, fisher={leaders.get(n, n): (f, tuned[n]) for n, f in base.items()})


class RecipeFromBase(Recipe):
    """A recipe that mixes ingredients with their base, which is the last of `context.ingredients`.

    It is abstract, as `Recipe` is.
    """

    needs_base = True

    @property
    def alignment(self) -> BaseAlignment:
        """How the ingredients are aligned with the base."""
        return BaseAlignment()

    def align(
        self,
        ingredients: Ingredients | Iterable[Source],
        *,
        base: Source | None,
        on_mismatch: OnMismatch,
        form: Reconcile | None = None,
    ) -> Ingredients:
        """The ingredients and then the base, in one list.

        Raises:
            RecipeError: there is no base.
        """
        return with_base(ingredients, base, on_mismatch=on_mismatch, how=self.alignment, form=form)


@dataclass(frozen=True, kw_only=True)
class BaseAlignment:
    """How ingredients are aligned with their base.

    Attributes:
        keep_head: what not all have, or not in one shape, comes from the first ingredient.
        shares: of each ingredient; those without one are not read.
        in_memory: read them once, now, where memory holds them, because they are mixed again and
            again.
    """

    keep_head: bool = False
    shares: Sequence[float] | None = None
    in_memory: bool = False


def with_base(
    tuned: Ingredients | Iterable[Source],
    base: Source | None,
    *,
    on_mismatch: OnMismatch,
    how: BaseAlignment,
    form: Reconcile | None = None,
) -> Ingredients:
    """Tuned models and then the base as ingredients of one list.

    With `keep_head` tensors that not all have, or not in one shape, come from the first tuned
    model, else from the base (`on_mismatch="common"`), else they are refused. With `in_memory`
    those that have a share are read once, now, where memory holds them: a curve mixes them again
    for every point.

    Raises:
        RecipeError: there is no base.
        MismatchError: they do not fit, with what could be done about it.
    """
    given = tuned.base if isinstance(tuned, Ingredients) and base is None else base
    if given is None:
        raise RecipeError("this recipe starts from a base, and there is none: give base=… (--base)")
    form = tuned.reconcile if isinstance(tuned, Ingredients) else form
    start = open_base(given)
    models = list(tuned) if isinstance(tuned, Ingredients) else open_sources(tuned, base=start)
    if how.in_memory:
        *models, start = _held([*models, start], how.shares)
    if how.keep_head:
        return Ingredients([*models, start], on_mismatch="common", reconcile=form, donor=0)
    if isinstance(tuned, Ingredients):
        on_mismatch = tuned.on_mismatch
    try:
        aligned = Ingredients(models, base=start, on_mismatch=on_mismatch, reconcile=form)
        fitting, _ = shared_mask(aligned)
    except MaskMismatchError:
        raise
    except MismatchError as error:
        raise MismatchError(f"{error}\n{_OFFER}", error.problems) from error
    if on_mismatch == "leave-out":  # they fit by now, and the base cannot be left out
        on_mismatch = "common" if len(fitting.averaged) < len(fitting.specs) else "error"
    start = start if fitting.base is None else fitting.base
    return Ingredients([*fitting, start], base=start, on_mismatch=on_mismatch, reconcile=form)


def _held(models: Sequence[Checkpoint], shares: Sequence[float] | None) -> list[Checkpoint]:
    """The tuned models that have a share, and the base, in memory if it holds them."""
    used = [True] * len(models)
    if shares is not None and len(shares) == len(models) - 1:
        used = [*(share != 0 for share in shares), True]
    n_bytes = sum(model.n_bytes for model, is_used in zip(models, used, strict=True) if is_used)
    if not fits_in_memory(2 * n_bytes):
        return list(models)
    return [held(m) if is_used else m for m, is_used in zip(models, used, strict=True)]


_OFFER = (
    "If it is a head that the base does not have, interpolate what they share and keep the "
    "tuned model's head: keep_head=True (--keep-head)."
)


def groups_of(
    ingredients: Ingredients, by: str, fixed: Mapping[str, float], head: Iterable[str] = ()
) -> tuple[dict[str, float], dict[str, str]]:
    """The α that groups always have, and the group of each tensor.

    Args:
        ingredients: whose tensors are grouped.
        by: `"model"` or `"layer"`, for those without a pattern.
        fixed: shell pattern → α.
        head: layers that come from the tuned model alone.

    Raises:
        RecipeError: a pattern matches no tensor.
    """
    names = [name for name in ingredients.specs if name in ingredients.averaged]
    own = set(head)
    groups = group_names(
        names, by, tied=ingredients.tied, patterns={pattern: pattern for pattern in fixed}
    )
    groups |= {n: layer_of(n) for n in names if layer_of(n) in own and groups[n] not in fixed}
    return {**dict.fromkeys(own, 1.0), **fixed}, groups

"""Mixtures of adapters, from their factors: the base is read once, and no full model is made."""

from __future__ import annotations

from collections.abc import Callable

from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.adapters.sum import AdapterSum, FactorForm, Term
from stockpot.formats.base import Checkpoint
from stockpot.mixing.coefficients import Coefficients
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.rules.base import Linear, Rule
from stockpot.tensors.spec import DType


def adapter_sum(
    given: Ingredients, coefficients: Coefficients, rule: Rule, dtype: DType | None
) -> AdapterSum | None:
    """The mixture as a sum of factors on their base; None where it is another kind of mixture.

    That is: not linear, with a coefficient for each element, or with a full model other than the
    base taking part.
    """
    if not isinstance(rule, Linear) or coefficients.elements or given.adapter_base is None:
        return None
    vectors = coefficients.vectors.values()
    used = [i for i in given.canonical if i < coefficients.n_ingredients
            and any(vector[i] != 0 for vector in vectors)]  # fmt: skip
    adapters = [one for i in used if isinstance(one := given[i], Adapter)]
    if not adapters:
        return None
    base = adapters[0].base
    if not all(_is_on(given[i], adapters[0]) for i in used):
        return None
    terms = [
        Term(one if isinstance(one := given[i], Adapter) else None, _share(coefficients, i))
        for i in used
    ]
    form = None if given.reconcile.merge else FactorForm(dtype=dtype, rank=given.reconcile.rank)
    return AdapterSum(base, terms, given.specs, form)


def _is_on(one: Checkpoint, first: Adapter) -> bool:
    """Whether `one` is an adapter of the base of `first`, or that base."""
    if isinstance(one, Adapter):
        return one.base is first.base
    base = first.given_base
    return one in (first.base, base) or (bool(one.files) and one.files == base.files)


def _share(coefficients: Coefficients, i: int) -> Callable[[str], float]:
    """The coefficient of ingredient `i` by tensor."""
    return lambda name: coefficients.for_tensor(name)[i]

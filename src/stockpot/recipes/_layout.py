"""Which coefficients a learned soup has, and in which order its numbers stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stockpot._types import JSON
from stockpot.mixing import Coefficients, Mixture
from stockpot.mixing.coefficients import group_names

if TYPE_CHECKING:
    import torch

    from stockpot.mixing.ingredients import Ingredients
    from stockpot.recipes.base import RecipeContext


@dataclass(frozen=True)
class Layout:
    """Groups of tensors, with a row of coefficients each.

    In rows (groups, k) ingredients stand in canonical order, so that neither the order of arguments
    nor where files lie changes a bit of the fit; in mixtures and JSON they stand as given.

    Attributes:
        context: the ingredients.
        row_of: the row of each tensor that is mixed, of tied ones of the first.
        index: the row of each group.
        group_of: the group of every averaged tensor, counters included.
        is_whole: whether there is one group because none were asked for.
        any_sum: whether coefficients may have any sum.
    """

    context: RecipeContext
    row_of: Mapping[str, int]
    index: Mapping[str, int]
    group_of: Mapping[str, str]
    is_whole: bool
    any_sum: bool

    @classmethod
    def of(
        cls,
        context: RecipeContext,
        names: Iterable[str],
        *,
        by: str,
        groups: tuple[tuple[str, str], ...],
        any_sum: bool,
    ) -> Layout:
        """The layout for tensors `names`, grouped `by` after the patterns of `groups`."""
        given = context.ingredients
        group_of = group_names(names, by, tied=given.tied, patterns=dict(groups))
        index = {group: row for row, group in enumerate(dict.fromkeys(group_of.values()))}
        # Counters and the like are not mixed by coefficients, but the mixture wants some for them.
        rest = dict.fromkeys(given.averaged - set(group_of), next(iter(index)))
        return cls(
            context,
            {name: index[group] for name, group in group_of.items()},
            index,
            group_of | rest,
            by == "model" and not groups,
            any_sum,
        )

    def mixture(self, rows: torch.Tensor) -> Mixture:
        """The mixture with coefficients `rows`."""
        rows = self.in_order(rows)
        if not self.any_sum:
            # Softmax rounds; the rest of the last bit would be the coefficients' error, not ours.
            rows = rows / rows.sum(dim=1, keepdim=True)
        values = {group: rows[row].tolist() for group, row in self.index.items()}
        coefficients = (
            Coefficients.per_model(next(iter(values.values())), any_sum=self.any_sum)
            if self.is_whole
            else Coefficients.per_group(values, group_of=self.group_of, any_sum=self.any_sum)
        )
        return self.context.mixed(coefficients)

    def in_order(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows` with the ingredients as they were given."""
        canonical = self.context.ingredients.canonical
        return rows[:, [canonical.index(i) for i in range(len(canonical))]]

    def lists(self, rows: torch.Tensor) -> JSON:
        """`rows` as a list of numbers, or one for each group."""
        rows = self.in_order(rows)
        if len(rows) == 1:
            return list(rows[0].tolist())
        return {group: rows[row].tolist() for group, row in self.index.items()}

    def rows_of(self, mixture: Mixture) -> torch.Tensor:
        """The coefficients of a mixture that has one vector for the whole model: (groups, k)."""
        import torch

        vector = mixture.coefficients.vectors[""]
        canonical = self.context.ingredients.canonical
        row = torch.tensor([vector[i] for i in canonical], dtype=torch.float64)
        return row.repeat(len(self.index), 1)


def to_json(context: RecipeContext, mixture: Mixture) -> dict[str, JSON]:
    """`{path: c}`, or `{group: {path: c}}` where groups have coefficients of their own."""
    paths, vectors = context.paths, mixture.coefficients.vectors
    named: dict[str, JSON] = {
        key: dict(zip(paths, vector, strict=True)) for key, vector in vectors.items()
    }
    only = named.get("")
    return only if isinstance(only, dict) else named


def streamed_names(given: Ingredients, known: Iterable[str] | None = None) -> list[str]:
    """Floating tensors that are averaged and `known` to the model; of tied ones the first."""
    repeated = {name for group in given.tied for name in group[1:]}
    kept = set(given.specs if known is None else known)
    return [
        name
        for name in given.specs
        if name in given.averaged
        and name in kept
        and name not in repeated
        and given.specs[name].dtype.mixable
    ]

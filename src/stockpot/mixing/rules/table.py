"""RULES: every rule by its name, so that a record can name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stockpot._records import loads, parse
from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.mixing.rules.base import Buffers, Copy, Elementwise, Linear, Rule, option_names
from stockpot.mixing.rules.breadcrumbs import Breadcrumbs
from stockpot.mixing.rules.by_tensor import ByTensor
from stockpot.mixing.rules.dare import Dare
from stockpot.mixing.rules.della import Della
from stockpot.mixing.rules.sce import Sce
from stockpot.mixing.rules.singular import IsoC, MonoSoup, TsvM
from stockpot.mixing.rules.ties import Ties

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        Linear,
        Elementwise,
        Copy,
        Buffers,
        Ties,
        Dare,
        Breadcrumbs,
        Della,
        Sce,
        IsoC,
        TsvM,
        MonoSoup,
        ByTensor,
    )
}
"""Every rule by its name."""


def register_rule(rule: type[Rule]) -> None:
    """Let records name a rule from outside the package; say it again in the program that verifies.

    Raises:
        RecipeError: another rule has its name.
    """
    if RULES.setdefault(rule.name, rule) is not rule:
        raise RecipeError(f"there is another rule named {rule.name!r}: give this one another name")


def rule_from_json(data: Mapping[str, Any]) -> Rule:
    """The rule that `Rule.to_json` described.

    Raises:
        RecipeError: no rule of that name is known, or its options are others.
    """
    options = dict(data)
    name = options.pop("name", None)
    if name == ByTensor.name:
        return _by_tensor(parse(_ByTensorJSON, options, error=RecipeError))
    rule = RULES.get(str(name))
    if rule is None:
        raise RecipeError(
            f"no mixing rule is named {name!r}; expected one of {', '.join(RULES)}; one of your "
            "own is known when its module is imported"
        )
    unknown = sorted(set(options) - set(option_names(rule)))
    if unknown:
        raise RecipeError(
            f"the mixing rule {name!r} has no options {', '.join(unknown)}; it has "
            f"{', '.join(option_names(rule)) or 'none'}"
        )
    return parse(rule, options, error=RecipeError)


@dataclass(frozen=True)
class _ByTensorJSON:
    rules: list[Mapping[str, Any]]
    of: Mapping[str, int]


def _by_tensor(data: _ByTensorJSON) -> ByTensor:
    if not all(0 <= place < len(data.rules) for place in data.of.values()):
        raise RecipeError(f"tensors have one of {len(data.rules)} rules; expected no other number")
    return ByTensor(rules=tuple(map(rule_from_json, data.rules)), of_name=data.of)


def rule_from_text(text: str) -> Rule:
    """The rule in a few words: its name, and options after commas.

    >>> rule_from_text("ties,keep=0.1,per=tensor")
    Ties(scale=1.0, keep=0.1, signs='elected', normalise=True, rescale='none', per='tensor')

    Raises:
        ValueError: there is no such rule, or no such option, or a value does not suit it.
    """
    name, *given = (part.strip() for part in text.split(","))
    pairs = [part.partition("=") for part in given]
    try:
        return rule_from_json({"name": name, **{key: _value(value) for key, _, value in pairs}})
    except RecipeError as error:
        raise ValueError(str(error)) from None


def _value(text: str) -> JSON:
    try:
        return loads(text)
    except ValueError:
        return text

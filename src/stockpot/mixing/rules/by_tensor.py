"""Tensors with rules of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from stockpot._types import JSON
from stockpot.mixing.rules.base import Raw, Rule, TensorPlan


@final
@dataclass(frozen=True, kw_only=True)
class ByTensor(Rule):
    """Each tensor by the rule that is named for it.

    Attributes:
        rules: those that there are.
        of_name: tensor → which of them.
    """

    name = "by-tensor"

    rules: tuple[Rule, ...]
    of_name: Mapping[str, int]

    @classmethod
    def made(cls, rules: Mapping[str, Rule]) -> ByTensor:
        """From the rule of each tensor; equal ones are kept once."""
        distinct = list(dict.fromkeys(rules.values()))
        places = {rule: i for i, rule in enumerate(distinct)}
        return cls(rules=tuple(distinct), of_name={name: places[r] for name, r in rules.items()})

    @property
    def uses_base(self) -> bool:
        """Whether one of them does."""
        return any(rule.uses_base for rule in self.rules)

    def of(self, name: str) -> Rule:
        """The rule of tensor `name`."""
        return self.rules[self.of_name[name]]

    def prepare(self, tensors: Sequence[TensorPlan]) -> ByTensor:
        """Each rule with what it has to know of the tensors that it makes."""
        ready = tuple(
            rule.prepare([one for one in tensors if self.of_name[one.source.name] == i])
            for i, rule in enumerate(self.rules)
        )
        return replace(self, rules=ready)

    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        """See `Rule.combine`."""
        self.of(tensor.source.name).combine(tensor, blocks, out, start)

    def to_json(self) -> dict[str, JSON]:
        """The rules, and which of them each tensor has."""
        rules: list[JSON] = [rule.to_json() for rule in self.rules]
        return {"name": self.name, "rules": rules, "of": dict(self.of_name)}

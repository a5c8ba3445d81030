"""Data sets that know fewer classes than the model: subsets, and several classes under one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from stockpot.errors import TaskError
from stockpot.tasks.checks import example_digests

GROUPS = "groups"
"""Key under which batches of such a data set carry the members of its labels."""


@dataclass(frozen=True)
class ClassGroups:
    """What the labels of a data set mean in classes of the model.

    Label g stands for the classes `members[g]`; its logit is the largest of theirs. Classes that no
    label stands for take no part: an answer is always one of the data set's own labels.

    >>> groups = ClassGroups.of({"pet": ["cat", "dog"], "car": ["car"]}, ["car", "cat", "dog"])
    >>> groups.names, groups.members
    (('pet', 'car'), ((1, 2), (0,)))

    Reference: ImageNet-A and ImageNet-R have 200 of ImageNet's classes (Hendrycks et al. 2019 and
    2020, arXiv 1907.07174 and 2006.16241); ObjectNet maps several to one (Barbu et al. 2019).
    """

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls, groups: Sequence[str] | Mapping[str, Sequence[str]], classes: Sequence[str]
    ) -> ClassGroups:
        """From names: a subset of `classes`, or label → the classes that it stands for.

        Raises:
            TaskError: fewer than two labels, a class that the model lacks, a label without
                classes, or a class under two labels; all are listed.
        """
        wanted = groups if isinstance(groups, Mapping) else {name: [name] for name in groups}
        index = {name: i for i, name in enumerate(classes)}
        named = [(label, name) for label, members in wanted.items() for name in members]
        problems = [
            f"{label!r}: the model has no class {name!r}"
            for label, name in named
            if name not in index
        ]
        problems += [f"{label!r} stands for no class" for label in wanted if not wanted[label]]
        flat = [name for _, name in named]
        twice = sorted({name for name in flat if flat.count(name) > 1})
        problems += [f"{name!r} stands under more than one label" for name in twice]
        if len(wanted) < 2 or len(wanted) < len(groups):
            problems.append(f"{len(wanted)} different labels, expected two or more, each once")
        if problems:
            shown = "\n  ".join(problems)
            raise TaskError(f"these are no labels in terms of the classes:\n  {shown}", problems)
        return cls(
            tuple(wanted), tuple(tuple(index[n] for n in members) for members in wanted.values())
        )

    def tensor(self) -> torch.Tensor:
        """Members as int64 (G, largest group); short rows repeat their first member."""
        longest = max(map(len, self.members))
        return torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in self.members])


def project(logits: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Logits (N, C) over classes → (N, G) over labels: the largest of each row of `members`.

    >>> project(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[2, 0], [1, 1]]))
    tensor([[1., 3.]])
    """
    return logits[:, members].amax(-1)


class Grouped(Dataset[dict[str, Any]]):
    """The examples of `dataset` as dicts that also carry the members of its labels."""

    def __init__(self, dataset: Dataset[Any], groups: ClassGroups) -> None:
        self.dataset, self.groups = dataset, groups
        self.members = groups.tensor()

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**as_dict(self.dataset[index]), GROUPS: self.members}

    @property
    def fingerprint(self) -> str:
        """That of the data set and of what its labels mean; none when the data set has none."""
        return grouped_fingerprint(getattr(self.dataset, "fingerprint"), self.groups)  # noqa: B009

    def example_digests(self) -> list[bytes]:
        """Those of the data set: the same image under other labels is the same image."""
        return example_digests(self.dataset)


def grouped_fingerprint(fingerprint: str, groups: ClassGroups) -> str:
    """A fingerprint that also depends on which classes the labels stand for."""
    import hashlib

    return hashlib.sha256(f"{fingerprint}\0{groups.members}".encode()).hexdigest()[:32]


def as_dict(example: Any) -> Mapping[str, Any]:
    """An example as `{"pixel_values", "labels"}`, from such a mapping or from a pair."""
    if isinstance(example, Mapping):
        return example
    pixels, label = example
    return {"pixel_values": pixels, "labels": label}

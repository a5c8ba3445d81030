"""Splits: which of them may decide, views and parts of them, and what they contain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from stockpot._types import kind_of
from stockpot.errors import EvaluationError, SplitRoleError
from stockpot.evaluate.task import Metric, Role, Split, Task

if TYPE_CHECKING:
    import xxhash
    from torch import nn
    from torch.utils.data import Dataset


MAX_HASHED = 20_000


def split_to_choose_on(
    task: Task, choose_on: str | None = None, *, besides: str | None = None
) -> str:
    """The name of the split that a recipe decides on.

    Args:
        task: has the splits.
        choose_on: the one to take, where there are several.
        besides: a held-out split that has another part in the choice, and cannot be this one.

    Raises:
        SplitRoleError: it is a test or shift split, there is none, or there are several and
            `choose_on` does not say which.
    """
    if besides is not None:
        split_to_choose_on(task, besides)
        if choose_on == besides:
            raise SplitRoleError(
                f"{choose_on!r} would both fit and decide; give two held-out splits, or leave "
                "decide_on (--decide-on) out to divide one"
            )
        if choose_on is None:
            rest = {name: split for name, split in task.splits.items() if name != besides}
            return split_to_choose_on(with_splits(task, rest))
    held_out = [name for name, split in task.splits.items() if split.role is Role.HELD_OUT]
    roles = ", ".join(f"{name} ({Role(split.role).value})" for name, split in task.splits.items())
    if choose_on is not None:
        if choose_on not in task.splits:
            raise SplitRoleError(f"the task has no split {choose_on!r}; it has {roles}")
        if choose_on not in held_out:
            raise SplitRoleError(
                f"choosing on {choose_on!r} would use data whose role is "
                f"{Role(task.splits[choose_on].role).value} and that reports the result; choose on "
                f"a held-out split (the task has {roles})"
            )
        return choose_on
    if len(held_out) == 1:
        return held_out[0]
    if len(held_out) == 0:
        raise SplitRoleError(
            f"the task has no held-out split to choose on, only {roles}; "
            'give one: splits={"val": Split(dataset, role="held-out"), …}'
        )
    raise SplitRoleError(
        f"the task has several held-out splits ({', '.join(held_out)}); "
        'say which one decides: choose_on="NAME" (--choose-on NAME)'
    )


class _View:
    """A task of which parts are replaced; everything else is the original's."""

    def __init__(self, task: Task, **parts: Any) -> None:
        self._task = task
        vars(self).update(parts)

    def __getattr__(self, name: str) -> Any:
        # Asked only for what the view itself lacks. Dunder names are the interpreter's: answering
        # for the original would let copy and pickle see another object's state.
        if name.startswith("__") or name == "_task":
            raise AttributeError(name)
        return getattr(self._task, name)


def with_splits(task: Task, splits: Mapping[str, Split]) -> Task:
    """`task` with `splits` in place of its own; works for any task, whatever its class."""
    return cast(Task, _View(task, splits=dict(splits)))


def with_build(task: Task, build: Callable[[], nn.Module]) -> Task:
    """`task` whose model is another; works for any task, whatever its class."""
    return cast(Task, _View(task, build=build))


def with_metric(task: Task, metric: Metric) -> Task:
    """`task` with another metric; works for any task, whatever its class."""
    return cast(Task, _View(task, metric=metric))


def part_of(split: Split, indices: Sequence[int], *, fingerprint: str) -> Split:
    """The examples of `split` at `indices`, with the same role.

    Args:
        split: the whole.
        indices: positions in it.
        fingerprint: of the whole; the part's is made from it and the indices, so that no example
            has to be read.
    """
    import hashlib

    import numpy as np
    import torch
    from torch.utils.data import Subset, TensorDataset

    chosen = np.asarray(indices, np.int64)
    digest = hashlib.sha256(fingerprint.encode() + chosen.tobytes()).hexdigest()[:32]
    if type(split.dataset) is TensorDataset:
        rows = torch.from_numpy(chosen)
        part: Any = TensorDataset(*(tensor[rows] for tensor in split.dataset.tensors))
    else:
        part = Subset(split.dataset, chosen.tolist())
    own = categories_at(split.categories, chosen)
    return Split(part, role=split.role, fingerprint=digest, categories=own)


def categories_at(categories: Sequence[str] | None, indices: Iterable[int]) -> list[str] | None:
    """The categories of the examples at `indices`, where there are any."""
    return None if categories is None else [categories[i] for i in indices]


@dataclass(frozen=True, slots=True)
class SplitFingerprint:
    """`value` identifies the examples; `note` says when only a part of them was hashed."""

    value: str
    note: str | None = None


def split_fingerprint(split: Split, *, max_hashed: int = MAX_HASHED) -> SplitFingerprint:
    """The fingerprint that was given, else the data set's own, else a hash of its examples."""
    if split.fingerprint is not None:
        return SplitFingerprint(split.fingerprint)
    return dataset_fingerprint(split.dataset, max_hashed=max_hashed)


def dataset_fingerprint(dataset: Dataset[Any], *, max_hashed: int = MAX_HASHED) -> SplitFingerprint:
    """XXH3-128 of the examples in order: 32 hex digits; or the set's own `fingerprint`.

    Of a set larger than `max_hashed`, that many evenly spaced examples and the length are hashed,
    and the note says so: a change elsewhere is not seen.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> len(dataset_fingerprint(TensorDataset(torch.zeros(3, 2))).value)
    32

    Raises:
        EvaluationError: the examples hold something that cannot be hashed by content.
    """
    import numpy as np
    import xxhash

    for attribute in ("fingerprint", "_fingerprint"):
        own = getattr(dataset, attribute, None)
        if isinstance(own, str):
            return SplitFingerprint(own)
    n = len(dataset)  # type: ignore[arg-type]
    hashed = n if n <= max_hashed else max_hashed
    state = xxhash.xxh3_128(f"{n} examples".encode())
    for i in np.linspace(0, n - 1, hashed).round().astype(int).tolist():
        _update(state, dataset[i])
    note = None
    if hashed < n:
        note = (
            f"fingerprint made from {hashed} of {n} examples; give the split a fingerprint "
            "if others may change"
        )
    return SplitFingerprint(state.hexdigest(), note)


def _update(state: xxhash.xxh3_128, value: Any) -> None:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        state.update(f"{value.dtype} {tuple(value.shape)}".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy() if value.numel() else b"")
    elif isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        state.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    elif isinstance(value, str | bytes | int | float | bool | type(None)):
        state.update(f"{type(value).__name__} {value!r}".encode())
    elif isinstance(value, Mapping):
        state.update(f"mapping {len(value)}".encode())
        for key in sorted(value, key=str):
            _update(state, str(key))
            _update(state, value[key])
    elif isinstance(value, list | tuple):
        state.update(f"sequence {len(value)}".encode())
        for item in value:
            _update(state, item)
    elif hasattr(value, "tobytes") and hasattr(value, "mode"):  # a PIL image
        state.update(f"image {value.mode} {value.size}".encode() + value.tobytes())
    else:
        raise EvaluationError(
            f"examples hold {kind_of(value)}, which cannot be hashed; give the split "
            "a fingerprint (Split(..., fingerprint=...)) that changes when its data do"
        )

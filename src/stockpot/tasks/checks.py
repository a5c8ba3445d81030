"""What is looked at before a task is used: labels, empty splits, examples in two splits, names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot._types import Progress, StrPath, no_progress
from stockpot.errors import TaskError
from stockpot.evaluate.task import Role, Split, Task, are_class_logits

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from stockpot.formats.base import Checkpoint


def check_task(task: Task, *, n_classes: int | None = None) -> None:
    """Refuse a task whose data contradict it, before anything is scored.

    Every example is read once. Training examples that also stand in another split are refused too:
    a soup chosen or reported on what its ingredients have learnt by heart looks better than it is.

    Args:
        task: any task; the splits and the training set are looked at, no model is built.
        n_classes: labels must lie in 0 … n_classes − 1; None for no check of labels.

    Raises:
        TaskError: an empty split, labels out of range, or examples in two splits of which one
            chooses or trains; `.problems` lists all of them.
    """
    problems = _empty(task)
    if n_classes is not None:
        for name, data in _parts(task).items():
            problems += label_problems(name, _labels(task, data), n_classes)
    if not problems:
        digests = {name: example_digests(data) for name, data in _parts(task).items()}
        problems += shared_examples(digests, task.splits)
    _refuse(problems)


def check_apart(
    task: Task,
    fingerprints: Mapping[str, str],
    *,
    cache: StrPath | None = None,
    progress: Progress = no_progress,
) -> None:
    """Refuse a task that would choose and report on the same examples, or on none.

    Every example of every split is read, but not the training set, and only the first time: that
    the splits were found apart is remembered in `cache`, for splits of the same content.

    Args:
        task: any task.
        fingerprints: of the content of each split.
        cache: folder to remember in; None for no memory.
        progress: called in splits.

    Raises:
        TaskError: an empty split, or examples in a split that chooses and in one that reports.
    """
    uses = {name: [Role(s.role).value, fingerprints[name]] for name, s in task.splits.items()}
    content = hashlib.sha256(json.dumps(uses, sort_keys=True).encode()).hexdigest()[:32]
    known = None if cache is None else Path(cache) / "apart" / content
    if known is not None and known.exists():
        return
    problems = [f"{name} is empty" for name, s in task.splits.items() if _size(s.dataset) == 0]
    if not problems:
        digests = {}
        for done, (name, split) in enumerate(task.splits.items()):
            progress(done, len(task.splits), "splits compared")
            digests[name] = example_digests(split.dataset)
        progress(len(digests), len(digests), "splits compared")
        problems = shared_examples(digests, task.splits)
    _refuse(problems)
    if known is not None:
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise TaskError("the task cannot be used:\n  " + "\n  ".join(problems), problems)


def check_ready(task: Task, start: Checkpoint | None = None) -> None:
    """Refuse, before the first run of a sweep, what every run would fail on or be misled by.

    `check_task`, and with `start` also `check_fit` and a forward pass over two examples of each
    part, which says how many classes there are.

    Raises:
        TaskError: lists what is wrong.
    """
    if start is not None:
        check_fit(task, start)
    n_classes = None
    if start is not None and not _empty(task):
        n_classes = _n_classes(task)
    check_task(task, n_classes=n_classes)


def _n_classes(task: Task) -> int | None:
    """Classes of the task's model, from two examples of its first split; None for other kinds."""
    import torch

    dataset = next(iter(task.splits.values())).dataset
    first = range(min(2, len(dataset)))  # type: ignore[arg-type]
    batch = next(iter(task.batches(dataset, first)))
    with torch.inference_mode():
        outputs = task.predict(task.build().eval(), batch)
    several = outputs.ndim == 2 and outputs.shape[1] > 1
    return outputs.shape[1] if several and are_class_logits(outputs, task.targets(batch)) else None


def label_problems(split: str, labels: Sequence[int], n_classes: int) -> list[str]:
    """One sentence naming the first labels outside 0 … n_classes − 1, or nothing.

    >>> label_problems("val", [0, 2, 1, 7], 2)
    ['val: 2 of 4 labels are out of range: 2 (example 1), 7 (example 3); expected 0 to 1']
    """
    bad = [(i, int(y)) for i, y in enumerate(labels) if not 0 <= int(y) < n_classes]
    if not bad:
        return []
    shown = ", ".join(f"{y} (example {i})" for i, y in bad[:3])
    return [
        f"{split}: {len(bad)} of {len(labels)} labels are out of range: {shown}; "
        f"expected 0 to {n_classes - 1}"
    ]


def shared_examples(
    digests: Mapping[str, Sequence[bytes]], splits: Mapping[str, Split]
) -> list[str]:
    """A sentence for each pair of splits that share examples and must not.

    `digests` maps split names to one digest per example; names that are not in `splits` train.
    Splits that only report may overlap: a shift is often the test set, changed.
    """
    reports = {name for name, split in splits.items() if split.role is not Role.HELD_OUT}
    positions = {name: {d: i for i, d in enumerate(found)} for name, found in digests.items()}
    problems = []
    names = list(digests)
    for n, a in enumerate(names):
        for b in names[n + 1 :]:
            same_use = {a, b} <= reports or {a, b} <= set(splits) - reports
            both = [] if same_use else [d for d in positions[a] if d in positions[b]]
            if both:
                first = both[0]
                where = f"{a}[{positions[a][first]}] = {b}[{positions[b][first]}]"
                problems.append(
                    f"{a} and {b} share {len(both)} examples (the first: {where}); leave them out "
                    "of one of the two"
                )
    return problems


def example_digests(dataset: Dataset[Any]) -> list[bytes]:
    """A digest of the content of each example, its label aside.

    A data set can offer its own `example_digests()`, for instance of texts before tokenising.
    """
    own = getattr(dataset, "example_digests", None)
    if own is not None:
        return list(own())
    return [_digest(dataset[i]) for i in range(_size(dataset))]


def _digest(example: Any) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    content = (
        {k: v for k, v in example.items() if k not in ("labels", "label")}
        if isinstance(example, Mapping)
        else example[0]
    )
    for part in _bytes(content):
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()


def _bytes(value: Any) -> Iterator[bytes]:
    import numpy as np
    import torch

    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            yield str(name).encode()
            yield from _bytes(value[name])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _bytes(item)
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        flat = value.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, bytes):
        yield value
    else:
        yield repr(value).encode()


def _parts(task: Task) -> dict[str, Dataset[Any]]:
    parts = {name: split.dataset for name, split in task.splits.items()}
    if task.train_set is not None:
        parts["the training set"] = task.train_set
    return parts


def _empty(task: Task) -> list[str]:
    return [f"{name} is empty" for name, data in _parts(task).items() if _size(data) == 0]


def _size(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]  # torch's Dataset declares no __len__


def _labels(task: Task, dataset: Dataset[Any]) -> list[int]:
    labels: list[int] = []
    for batch in task.batches(dataset):
        labels += task.targets(batch).tolist()
    return labels


def check_fit(task: Task, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose names or shapes are not those of the task's model.

    The model is built without memory for its weights where its layers allow that.

    Raises:
        TaskError: lists every tensor that only one of the two has, or that differs in shape.
    """
    import torch

    with torch.device("meta"):
        model = task.build()
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    problems = [
        f"{name}: in the checkpoint, not in the model"
        for name in checkpoint
        if name not in expected
    ]
    tied = _tied_names(model)
    for name, shape in expected.items():
        if name not in checkpoint:
            if not any(other in checkpoint for other in tied.get(name, ())):
                problems.append(f"{name} {shape}: in the model, not in the checkpoint")
        elif tuple(checkpoint[name].shape) != shape:
            problems.append(
                f"{name}: {tuple(checkpoint[name].shape)} in the checkpoint, {shape} in the model"
            )
    if problems:
        raise TaskError(
            f"{checkpoint.path} does not fit the task's model ({len(problems)} tensors):\n  "
            + "\n  ".join(problems),
            problems,
        )


def _tied_names(model: Any) -> dict[str, set[str]]:
    """For each parameter with several names, the other names."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {name: group - {name} for group in names.values() for name in group if len(group) > 1}

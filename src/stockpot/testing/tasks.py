"""What every task must do, as checks that raise AssertionError."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from stockpot._types import kind_of
from stockpot.evaluate.task import Role, Task

if TYPE_CHECKING:
    import torch
    from torch import nn


MakeTask: TypeAlias = Callable[[], Task]
TaskCheck: TypeAlias = Callable[[MakeTask], None]

_N_LOOKED_AT = 6
"""Examples of each split that the checks predict: enough to tell, few enough to be quick."""


def task_conformance(make_task: MakeTask) -> None:
    """Run every check of `TASK_CHECKS` on what `make_task()` returns.

    Made for tasks that are not a `ClassificationTask`: whoever passes can be souped.

    Args:
        make_task: makes the task; called several times.

    Raises:
        AssertionError: naming the check that failed, and how.

    >>> import torch
    >>> from stockpot import ClassificationTask, Split
    >>> data = torch.utils.data.TensorDataset(torch.eye(2), torch.tensor([0, 1]))
    >>> def make() -> ClassificationTask:
    ...     return ClassificationTask(lambda: torch.nn.Linear(2, 2), {"val": Split(data)})
    >>> task_conformance(make)
    """
    for check in TASK_CHECKS:
        try:
            check(make_task)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error


def _require(condition: bool, message: str) -> None:
    # Not an assert statement: those vanish under python -O.
    if not condition:
        raise AssertionError(message)


def _size(dataset: Any) -> int:
    return len(dataset)


def _some(dataset: Any) -> list[int]:
    return list(range(min(_N_LOOKED_AT, _size(dataset))))


def _first_split(task: Task) -> tuple[str, Any]:
    name = next(iter(task.splits))
    return name, task.splits[name].dataset


def _outputs(
    task: Task, model: nn.Module, dataset: Any, indices: list[int], batch_size: int
) -> torch.Tensor:
    import torch

    model.eval()
    with torch.no_grad():
        return torch.cat(
            [
                task.predict(model, batch)
                for batch in task.batches(dataset, indices, batch_size=batch_size)
            ]
        )


def its_parts_are_those_of_a_task(make_task: MakeTask) -> None:
    """All that the `Task` protocol names is there."""
    task = make_task()
    _require(isinstance(task, Task), f"{type(task).__name__} lacks parts of stockpot.Task")
    _require(task.batch_size >= 1, f"batch_size is {task.batch_size}")
    _require(str(task.version) != "", "version is empty")


def splits_have_roles_and_examples(make_task: MakeTask) -> None:
    """There is a split, none is empty, and each says what it may be used for."""
    splits = make_task().splits
    _require(len(splits) > 0, "there is no split")
    for name, split in splits.items():
        _require(isinstance(split.role, Role), f"{name} has no role")
        _require(_size(split.dataset) > 0, f"{name} is empty")


def every_example_has_one_row(make_task: MakeTask) -> None:
    """Outputs and targets of a batch have as many rows as examples were asked for."""
    task = make_task()
    model = task.build().eval()
    for name, split in task.splits.items():
        indices = _some(split.dataset)
        (batch,) = task.batches(split.dataset, indices, batch_size=len(indices))
        outputs = _outputs(task, model, split.dataset, indices, len(indices))
        _require(len(outputs) == len(indices), f"{name}: {len(outputs)} rows of outputs")
        targets = task.targets(batch)
        _require(len(targets) == len(indices), f"{name}: {len(targets)} rows of targets")


def batches_follow_the_indices(make_task: MakeTask) -> None:
    """Batches hold the examples asked for in that order, and all of them when none are named."""
    import torch

    task = make_task()
    name, dataset = _first_split(task)
    backwards = _some(dataset)[::-1]
    (together,) = task.batches(dataset, backwards, batch_size=len(backwards))
    alone = [next(iter(task.batches(dataset, [i], batch_size=1))) for i in backwards]
    rows = torch.cat([task.targets(batch) for batch in alone])
    _require(torch.equal(task.targets(together), rows), f"{name}: targets come in another order")
    n = sum(len(task.targets(batch)) for batch in task.batches(dataset))
    _require(n == _size(dataset), f"{name}: {n} of {_size(dataset)} examples come without indices")


def predictions_do_not_depend_on_the_batch(make_task: MakeTask) -> None:
    """An example is predicted the same (to 1e-4) alone, in company, and after others."""
    import torch

    task = make_task()
    name, dataset = _first_split(task)
    model, indices = task.build(), _some(dataset)
    together = _outputs(task, model, dataset, indices, len(indices))
    alone = _outputs(task, model, dataset, indices, 1)
    backwards = _outputs(task, model, dataset, indices[::-1], len(indices)).flip(0)
    for other, how in ((alone, "one by one"), (backwards, "in another order")):
        same = other.shape == together.shape and torch.allclose(
            other.double(), together.double(), rtol=1e-4, atol=1e-4, equal_nan=True
        )
        _require(same, f"{name}: outputs differ when predicted {how}")


def predictions_follow_the_weights(make_task: MakeTask) -> None:
    """Two models with the same state dict predict the same: nothing else decides."""
    import torch

    task = make_task()
    name, dataset = _first_split(task)
    one, other = task.build(), task.build()
    other.load_state_dict(one.state_dict())
    indices = _some(dataset)
    found = [_outputs(task, model, dataset, indices, len(indices)) for model in (one, other)]
    same = torch.allclose(found[0].double(), found[1].double(), equal_nan=True)
    _require(same, f"{name}: build() leaves something random outside of the state dict")


def predicting_leaves_the_model_alone(make_task: MakeTask) -> None:
    """In evaluation mode, predicting changes no tensor of the model."""
    import torch

    task = make_task()
    _, dataset = _first_split(task)
    model = task.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _outputs(task, model, dataset, _some(dataset), 2)
    changed = [
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value.nan_to_num(), before[name].nan_to_num())
    ]
    _require(not changed, f"predicting changed {', '.join(changed)}")


def metric_is_a_number_and_says_what_it_is(make_task: MakeTask) -> None:
    """The metric is a number, named, directed, and the mean it claims to be."""
    import torch

    task = make_task()
    name, dataset = _first_split(task)
    indices = _some(dataset)
    outputs = _outputs(task, task.build(), dataset, indices, len(indices))
    (batch,) = task.batches(dataset, indices, batch_size=len(indices))
    metric, targets = task.metric, task.targets(batch)
    value = metric.compute(outputs, targets)
    _require(isinstance(value, float), f"{name}: compute gives {kind_of(value)}")
    _require(not math.isinf(value), f"{name}: {metric.name} is {value}")
    _require(str(metric.name) != "", "the metric has no name")
    known = metric.higher_is_better in (True, False)
    _require(known, "the metric does not say whether higher is better")
    if metric.per_example is None:
        return
    each = metric.per_example(outputs, targets)
    _require(each.dtype == torch.float64, f"per_example gives {each.dtype}, not float64")
    _require(each.shape == (len(indices),), f"per_example has shape {tuple(each.shape)}")
    mean = float(each.mean())
    _require(math.isclose(mean, value, rel_tol=1e-9), f"compute is {value}, the mean {mean}")
    inside = bool(((each >= metric.low) & (each <= metric.high)).all())
    declared = f"{metric.low:g} to {metric.high:g}"
    _require(inside, f"per_example leaves the range that the metric declares, {declared}")


def the_loss_trains(make_task: MakeTask) -> None:
    """With a training set, the loss is a finite number that reaches the parameters."""
    task = make_task()
    if task.train_set is None:
        return
    model = task.build().train()
    indices = _some(task.train_set)
    (batch,) = task.batches(task.train_set, indices, batch_size=len(indices))
    loss = task.loss(task.predict(model, batch), task.targets(batch))
    _require(loss.ndim == 0, f"the loss has shape {tuple(loss.shape)}")
    _require(bool(loss.isfinite()), f"the loss is {float(loss.detach())}")
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    _require(any(bool(g.any()) for g in grads), "no gradient reaches a parameter")


def making_it_again_gives_the_same_task(make_task: MakeTask) -> None:
    """Version, splits and names of tensors are those of the first making."""
    one, other = make_task(), make_task()
    _require(one.version == other.version, "the version changes from one making to the next")
    _require(list(one.splits) == list(other.splits), "the splits change")
    names = [list(task.build().state_dict()) for task in (one, other)]
    _require(names[0] == names[1], "the tensors of the model change")


TASK_CHECKS: tuple[TaskCheck, ...] = (
    its_parts_are_those_of_a_task,
    splits_have_roles_and_examples,
    every_example_has_one_row,
    batches_follow_the_indices,
    predictions_do_not_depend_on_the_batch,
    predictions_follow_the_weights,
    predicting_leaves_the_model_alone,
    metric_is_a_number_and_says_what_it_is,
    the_loss_trains,
    making_it_again_gives_the_same_task,
)
"""Every check, to be run one by one: each takes a function that makes the task."""

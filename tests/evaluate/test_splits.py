"""Views of a task over other splits."""

from __future__ import annotations

import copy
import pickle

import torch
from torch.utils.data import Dataset, TensorDataset

from stockpot.evaluate.splits import part_of, with_splits
from stockpot.evaluate.task import Role, Split
from stockpot.tasks.classification import ClassificationTask


class Squares(Dataset[tuple[torch.Tensor, int]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(index) ** 2]), index % 2


def make_model() -> torch.nn.Module:
    return torch.nn.Linear(1, 2)


def make_task(dataset: Dataset[tuple[torch.Tensor, int]]) -> ClassificationTask:
    return ClassificationTask(make_model, {"val": Split(dataset, role="held-out")}, batch_size=4)


def test_a_view_has_its_own_splits_and_everything_else_of_the_task() -> None:
    task = make_task(Squares())
    view = with_splits(task, {"part": part_of(task.splits["val"], [4, 1], fingerprint="f")})
    assert list(view.splits) == ["part"]
    assert view.version == task.version
    assert view.metric is task.metric
    (batch,) = view.batches(view.splits["part"].dataset)
    assert batch[0].squeeze(1).tolist() == [16.0, 1.0]
    assert view.targets(batch).tolist() == [0, 1]


def test_a_part_keeps_the_role_and_is_identified_by_whole_and_indices() -> None:
    split = Split(Squares(), role="shift")
    parts = [
        part_of(split, [0, 1], fingerprint="a"),
        part_of(split, [1, 0], fingerprint="a"),
        part_of(split, [0, 1], fingerprint="b"),
        part_of(split, [0, 1], fingerprint="a"),
    ]
    assert parts[0].role is Role.SHIFT
    assert len({part.fingerprint for part in parts[:3]}) == 3
    assert parts[3].fingerprint == parts[0].fingerprint


def test_a_part_of_tensors_is_tensors_again_so_that_batches_stay_fast() -> None:
    data = TensorDataset(torch.arange(5.0)[:, None], torch.arange(5) % 2)
    part = part_of(Split(data), [3, 0], fingerprint="f").dataset
    assert type(part) is TensorDataset
    assert part.tensors[0].squeeze(1).tolist() == [3.0, 0.0]


def test_a_view_can_be_copied_and_sent_to_another_process() -> None:
    task = make_task(Squares())
    view = with_splits(task, {"val": task.splits["val"]})
    for twin in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert list(twin.splits) == ["val"]
        assert twin.batch_size == 4

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import stockpot
from stockpot.formats.base import Checkpoint
from stockpot.formats.memory import from_state_dict
from stockpot.tasks.checks import (
    check_apart,
    check_fit,
    check_ready,
    check_task,
    example_digests,
)


def data(first: int, n: int, *, label: int = 0) -> TensorDataset:
    inputs = torch.arange(first, first + n).float()[:, None]
    return TensorDataset(inputs, torch.full((n,), label))


def task(**sets: Dataset) -> stockpot.ClassificationTask:
    roles = {"val": "held-out", "other_val": "held-out", "test": "test", "blur": "shift"}
    return stockpot.ClassificationTask(
        build=lambda: nn.Linear(1, 2),
        splits={k: stockpot.Split(v, role=roles[k]) for k, v in sets.items() if k != "train"},
        train_set=sets.get("train"),
    )


def test_a_sound_task_passes() -> None:
    check_task(task(val=data(0, 5), test=data(5, 5), train=data(10, 5)), n_classes=2)


def test_every_empty_split_is_named() -> None:
    with pytest.raises(stockpot.TaskError) as caught:
        check_task(task(val=data(0, 0), test=data(5, 0), train=data(10, 5)))
    assert caught.value.problems == ("val is empty", "test is empty")


def test_labels_out_of_range_are_named_with_their_places() -> None:
    with pytest.raises(stockpot.TaskError, match=r"test: 2 of 2 labels are out of range: 2") as e:
        check_task(task(val=data(0, 5), test=data(5, 2, label=2)), n_classes=2)
    assert "expected 0 to 1" in str(e.value)


def test_held_out_and_test_may_not_share_examples_whatever_their_labels() -> None:
    with pytest.raises(stockpot.TaskError, match="val and test share 2 examples") as caught:
        check_task(task(val=data(0, 5), test=data(3, 5, label=1)))
    assert "val[3] = test[0]" in str(caught.value)


@pytest.mark.parametrize("other", ["val", "test", "blur"])
def test_training_examples_may_not_be_scored(other: str) -> None:
    sets = {"val": data(0, 5), "test": data(5, 5), "blur": data(10, 5)}
    with pytest.raises(stockpot.TaskError, match=f"{other} and the training set share 1"):
        check_task(task(**sets, train=TensorDataset(*sets[other][:1])))


def test_splits_of_one_use_may_overlap() -> None:
    check_task(task(val=data(0, 5), other_val=data(2, 5), test=data(9, 5), blur=data(10, 5)))


NAMES = {"val": "a", "test": "b", "train": "c"}


def test_splits_that_choose_and_report_on_the_same_examples_are_refused(tmp_path: Path) -> None:
    shared = task(val=data(0, 5), test=data(4, 5))
    for _ in range(2):  # a refusal is not remembered
        with pytest.raises(stockpot.TaskError, match="val and test share 1 examples"):
            check_apart(shared, NAMES, cache=tmp_path)
    with pytest.raises(stockpot.TaskError, match="test is empty"):
        check_apart(task(val=data(0, 5), test=data(0, 0)), NAMES)


def test_what_was_found_apart_is_not_read_again_until_its_content_changes(tmp_path: Path) -> None:
    class Counted(TensorDataset):
        read = 0

        def __getitem__(self, index: int) -> object:
            type(self).read += 1
            return super().__getitem__(index)

    counted = task(val=Counted(*data(0, 5).tensors), test=data(5, 5), train=data(0, 5))
    told: list[tuple[int, int | None, str]] = []
    for _ in range(2):
        check_apart(counted, NAMES, cache=tmp_path, progress=lambda *given: told.append(given))
    assert Counted.read == 5
    assert told == [(done, 2, "splits compared") for done in range(3)]
    check_apart(counted, {**NAMES, "test": "other content"}, cache=tmp_path)
    check_apart(counted, NAMES)
    assert Counted.read == 15


def test_digests_are_of_content_not_of_containers() -> None:
    class Dicts(Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> dict[str, object]:
            return {"x": torch.tensor([i]), "mask": [1, 2], "labels": i}

    first, second = example_digests(Dicts())
    assert first != second
    assert example_digests(Dicts()) == [first, second]
    plain = TensorDataset(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert len(set(example_digests(plain))) == 1
    as_double = TensorDataset(torch.zeros(2, 3).double(), torch.tensor([0, 1]))
    assert not set(example_digests(plain)) & set(example_digests(as_double))


def test_a_data_set_may_bring_its_own_digests() -> None:
    class Own(TensorDataset):
        def example_digests(self) -> list[bytes]:
            return [b"a", b"b"]

    assert example_digests(Own(torch.zeros(2, 1), torch.zeros(2))) == [b"a", b"b"]


def test_tensors_that_do_not_fit_are_all_listed() -> None:
    made = task(val=data(0, 5))
    check_fit(made, stockpot.from_state_dict(nn.Linear(1, 2)))
    wrong = {"weight": torch.zeros(3, 1), "head.bias": torch.zeros(2)}
    with pytest.raises(stockpot.TaskError) as caught:
        check_fit(made, stockpot.from_state_dict(wrong))
    assert caught.value.problems == (
        "head.bias: in the checkpoint, not in the model",
        "weight: (3, 1) in the checkpoint, (2, 1) in the model",
        "bias (2,): in the model, not in the checkpoint",
    )


def test_one_name_of_a_tied_tensor_is_enough() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    made = stockpot.ClassificationTask(build=Tied, splits={"val": stockpot.Split(data(0, 2))})
    check_fit(made, stockpot.from_state_dict({"a.weight": torch.zeros(2, 2)}))


def linear(n_classes: int) -> Checkpoint:
    return from_state_dict(nn.Linear(1, n_classes).state_dict())


def test_a_task_is_ready_when_labels_are_classes_of_the_model_and_the_start_fits() -> None:
    check_ready(task(val=data(0, 5), test=data(5, 5)), linear(2))
    with pytest.raises(stockpot.TaskError, match=r"2 \(example 0\).* expected 0 to 1"):
        check_ready(task(val=data(0, 5, label=2)), linear(2))
    with pytest.raises(stockpot.TaskError, match="does not fit"):
        check_ready(task(val=data(0, 5)), linear(3))
    with pytest.raises(stockpot.TaskError, match="val is empty"):
        check_ready(task(val=data(0, 0)), linear(2))


def test_without_a_start_no_model_is_asked_for_its_classes() -> None:
    check_ready(task(val=data(0, 5, label=9)))

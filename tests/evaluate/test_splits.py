"""Views of a task over other splits."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from stockpot.errors import EvaluationError, SplitRoleError
from stockpot.evaluate.splits import (
    dataset_fingerprint,
    part_of,
    split_fingerprint,
    split_to_choose_on,
    with_build,
    with_splits,
)
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


def test_a_view_builds_another_model_for_the_splits_of_the_task() -> None:
    task = make_task(Squares())
    view = with_build(task, lambda: torch.nn.Linear(1, 7))
    assert [model.out_features for model in (view.build(), task.build())] == [7, 2]
    assert view.splits == task.splits


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


class Listed(Dataset[Any]):
    def __init__(self, *examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


def image(value: int, mode: str = "L", size: tuple[int, int] = (2, 3)) -> Image.Image:
    return Image.new(mode, size, value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
        (torch.tensor([1, 2]), torch.tensor([[1, 2]])),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (np.array([1.0, 2.0]), np.array([1.0, 3.0])),
        (np.zeros(4), np.zeros((2, 2))),
        (np.zeros(2, np.float32), np.zeros(2, np.int32)),
        ("a", "b"),
        (1, 1.0),
        (1, "1"),
        (None, "None"),
        ({"x": 1, "y": 2}, {"x": 1, "y": 3}),
        ({"x": 1, "y": 2}, {"x": 1, "z": 2}),
        ([1, [2, 3]], [1, 2, 3]),
        ((torch.zeros(2), 0), (torch.zeros(2), 1)),
        (image(7), image(8)),
        (image(7), image(7, "P")),
        (image(7), image(7, size=(3, 2))),
    ],
)
def test_examples_that_differ_in_anything_have_other_fingerprints(one: Any, other: Any) -> None:
    found = [dataset_fingerprint(Listed("first", x, "last")) for x in (one, other)]
    assert found[0].value != found[1].value
    again = dataset_fingerprint(Listed("first", copy.deepcopy(one), "last"))
    assert again == found[0]
    assert again.note is None


def test_a_fingerprint_is_of_content_in_order_and_not_of_how_it_is_held() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    turned = values.T.contiguous().T  # the same values, elsewhere in memory
    assert dataset_fingerprint(Listed(values)) == dataset_fingerprint(Listed(turned))
    mappings = ({"x": 1, "y": 2}, {"y": 2, "x": 1})
    assert len({dataset_fingerprint(Listed(m)).value for m in mappings}) == 1
    orders = ((1, 2), (2, 1), (1, 2, 2))
    assert len({dataset_fingerprint(Listed(*order)).value for order in orders}) == 3


def test_of_a_large_set_evenly_spaced_examples_and_the_length_are_hashed_and_that_is_said() -> None:
    numbers = list(range(9))
    plain = dataset_fingerprint(Listed(*numbers), max_hashed=3)
    assert plain.note is not None
    assert "3 of 9 examples" in plain.note
    assert dataset_fingerprint(Listed(*numbers), max_hashed=9).note is None
    changed = []
    for place in numbers:
        others = [-1 if number == place else number for number in numbers]
        if dataset_fingerprint(Listed(*others), max_hashed=3) != plain:
            changed.append(place)
    assert changed == [0, 4, 8]
    longer = Listed(0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 8)
    assert dataset_fingerprint(longer, max_hashed=3).value != plain.value


def test_a_fingerprint_of_ones_own_comes_first_and_what_has_no_content_is_refused() -> None:
    data = Listed(object())
    with pytest.raises(EvaluationError, match="an object, which cannot be hashed"):
        dataset_fingerprint(data)
    data.fingerprint = "of the set"  # type: ignore[attr-defined]
    assert split_fingerprint(Split(data)).value == "of the set"
    assert split_fingerprint(Split(data, fingerprint="of the split")).value == "of the split"


def held_out(*names: str) -> ClassificationTask:
    splits = {name: Split(Squares(), role="held-out") for name in names}
    return ClassificationTask(make_model, {**splits, "test": Split(Squares(), role="test")})


def test_of_two_held_out_splits_the_one_that_decides_leaves_the_other_to_fit_on() -> None:
    assert split_to_choose_on(held_out("a")) == "a"
    assert split_to_choose_on(held_out("a", "b"), besides="a") == "b"
    assert split_to_choose_on(held_out("a", "b", "c"), "c", besides="a") == "c"
    with pytest.raises(SplitRoleError, match=r"several held-out splits \(b, c\)"):
        split_to_choose_on(held_out("a", "b", "c"), besides="a")
    with pytest.raises(SplitRoleError, match="would both fit and decide"):
        split_to_choose_on(held_out("a", "b"), "a", besides="a")
    with pytest.raises(SplitRoleError, match="no held-out split to choose on"):
        split_to_choose_on(held_out("a"), besides="a")
    for wrong in ("test", "nowhere"):
        with pytest.raises(SplitRoleError, match=wrong):
            split_to_choose_on(held_out("a", "b"), besides=wrong)

from __future__ import annotations

import functools

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from stockpot.errors import EvaluationError, TaskError
from stockpot.evaluate.metrics import Accuracy
from stockpot.evaluate.source_hash import source_hash
from stockpot.evaluate.task import Split
from stockpot.tasks.classification import ClassificationTask

DATA = TensorDataset(torch.arange(10.0).reshape(5, 2), torch.tensor([0, 1, 0, 1, 0]))


class Dicts(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {"x": torch.full((2,), float(i)), "labels": torch.tensor(i % 2)}


class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x):
        return type("Output", (), {"logits": self.layer(x)})()


def task(**options):
    return ClassificationTask(
        build=lambda: torch.nn.Linear(2, 2), splits={"val": Split(DATA)}, **options
    )


def test_batches_come_in_the_order_of_the_indices_with_a_short_last_one():
    batches = list(task(batch_size=2).batches(DATA, [4, 0, 3]))
    assert [len(b[1]) for b in batches] == [2, 1]
    assert torch.equal(torch.cat([b[0] for b in batches]), DATA.tensors[0][[4, 0, 3]])


def test_batches_of_a_tensor_dataset_equal_those_of_a_general_one():
    class General(Dataset):
        def __len__(self):
            return len(DATA)

        def __getitem__(self, i):
            return DATA[i]

    fast, slow = (list(task(batch_size=2).batches(d)) for d in (DATA, General()))
    for a, b in zip(fast, slow, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_a_data_set_that_fetches_many_is_asked_once_for_each_batch():
    class Many(Dataset):
        def __init__(self):
            self.asked = []

        def __len__(self):
            return 5

        def __getitem__(self, i):
            raise AssertionError("one example was asked for")

        def __getitems__(self, indices):
            self.asked.append(indices)
            return DATA.tensors[0][indices], DATA.tensors[1][indices]

    many = Many()
    own = task(batch_size=2, collate=lambda batch: batch)
    (first, _), (last, labels) = own.batches(many, [4, 0, 3])
    assert many.asked == [[4, 0], [3]]
    assert torch.equal(torch.cat([first, last]), DATA.tensors[0][[4, 0, 3]])
    assert torch.equal(labels, DATA.tensors[1][[3]])


def test_predict_reads_logits_of_dict_batches_and_ignores_labels():
    t, model = task(), Named()
    (batch,) = t.batches(Dicts())
    assert torch.equal(t.predict(model, batch), model.layer(batch["x"]))
    assert t.targets(batch).tolist() == [0, 1, 0]


def test_calibration_set_defaults_to_the_training_set():
    assert task(train_set=DATA).calibration_set is DATA
    assert task().calibration_set is None


def test_metric_may_be_a_name_or_a_metric():
    assert task(metric="acc").metric == task(metric=Accuracy()).metric


def test_unknown_metric_names_those_that_exist():
    with pytest.raises(EvaluationError, match="cross-entropy"):
        task(metric="nonsense")


def test_a_task_without_splits_is_refused():
    with pytest.raises(TaskError, match="at least one split"):
        ClassificationTask(build=lambda: torch.nn.Linear(2, 2), splits={})


def test_version_changes_with_what_build_refers_to_and_not_otherwise():
    def make(width):
        return lambda: torch.nn.Linear(2, width)

    assert source_hash(make(2)) == source_hash(make(2))
    assert source_hash(make(2)) != source_hash(make(3))


def test_version_follows_classes_that_build_names():
    def other():
        return Named()

    first = source_hash(other)
    original, Named.forward = Named.forward, lambda self, x: self.layer(x) + 1
    try:
        assert source_hash(other) != first
    finally:
        Named.forward = original


def test_a_given_version_is_kept():
    assert task(version="7").version == "7"


@pytest.mark.parametrize(
    ("metric", "version"),
    [
        ("accuracy", "b46e91929270b1fa56286ffcfaf31714"),
        ("cross-entropy", "de9d1912ae564100ad121e697b735ae4"),
    ],
)
def test_tasks_that_give_no_version_have_that_of_0_1_so_that_journals_answer(metric, version):
    build = functools.partial(torch.nn.Linear, 4, 3)
    given = ClassificationTask(build=build, splits={"val": Split(DATA)}, metric=metric)
    assert given.version == version
    augmented = ClassificationTask(
        build=build, splits={"val": Split(DATA)}, metric=metric, augment=lambda batch, _: batch
    )
    assert augmented.version != version

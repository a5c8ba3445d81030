from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from stockpot.errors import EvaluationError
from stockpot.evaluate import pool
from stockpot.evaluate.pool import divide
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.memory import from_state_dict
from stockpot.mixing import Ingredients, Mixture
from stockpot.tasks.classification import ClassificationTask
from stockpot.tasks.lookup import load_file

torch.manual_seed(0)
X = torch.randn(300, 6)
Y = torch.randint(0, 3, (300,))


def build():
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    )


def task(**options):
    data = TensorDataset(X, Y)
    # The lambda and the local class cannot be pickled, and need not be.
    return ClassificationTask(
        build=lambda: build(), splits={"val": Split(data)}, batch_size=32, train_set=data, **options
    )


def models(n):
    torch.manual_seed(1)
    return [
        Mixture(Ingredients([from_state_dict(build().state_dict()) for _ in range(2)]))
        for _ in range(n)
    ]


def test_outputs_do_not_depend_on_the_number_of_workers():
    alone = TaskEvaluator(task(), device="cpu")
    with TaskEvaluator(task(), device="cpu", n_workers=3) as divided:
        for weights in models(3):
            a, b = alone.predictions(weights, "val"), divided.predictions(weights, "val")
            assert np.array_equal(a.outputs, b.outputs)
            for name, value in alone.statistics(weights).items():
                assert torch.equal(divided.statistics(weights)[name], value)
        assert divided.counters == alone.counters


def test_single_examples_come_back_in_the_order_asked_for():
    weights = models(1)[0]
    order = np.random.default_rng(0).permutation(300).tolist()
    with TaskEvaluator(task(), device="cpu", n_workers=2) as divided:
        outputs = divided.run(weights, "val", order)
        whole = divided.predictions(weights, "val").outputs
    np.testing.assert_allclose(outputs, whole[order], atol=1e-5)


def test_an_error_in_a_worker_is_raised_here():
    def predict(model, batch):
        raise ValueError("no such input")

    with (
        TaskEvaluator(task(predict=predict), device="cpu", n_workers=2) as evaluator,
        pytest.raises(ValueError, match="no such input"),
    ):
        evaluator.score(models(1)[0], "val")


def test_a_worker_that_dies_is_said():
    def predict(model, batch):
        import os

        os._exit(1)

    evaluator = TaskEvaluator(task(predict=predict), device="cpu", n_workers=2)
    with pytest.raises(EvaluationError, match="fewer --workers"):
        evaluator.score(models(1)[0], "val")
    evaluator.close()


def test_a_task_file_and_a_task_that_cannot_be_sent(tmp_path, monkeypatch):
    """Where workers start afresh, as on macOS and Windows."""
    monkeypatch.setattr(pool, "_FORKS", False)
    (tmp_path / "task.py").write_text(
        "import tests.evaluate.test_pool as t, torch\n"
        "class Mine(torch.nn.Sequential):\n    pass\n"
        "def task():\n"
        "    made = t.task()\n"
        "    return t.ClassificationTask(build=lambda: Mine(*t.build()), splits=made.splits,\n"
        "        batch_size=32, train_set=made.train_set)\n"
    )
    weights = models(1)[0]
    with TaskEvaluator(load_file(tmp_path / "task.py").task(), device="cpu", n_workers=2) as two:
        alone = TaskEvaluator(task(), device="cpu")
        a, b = alone.predictions(weights, "val"), two.predictions(weights, "val")
        assert np.array_equal(a.outputs, b.outputs)
        for name, value in alone.statistics(weights).items():
            assert torch.equal(two.statistics(weights)[name], value)
    lock = threading.Lock()
    held = task(predict=lambda model, batch: (lock, model(batch[0]))[1])
    with pytest.raises(EvaluationError, match="cannot be sent to worker processes"):
        TaskEvaluator(held, device="cpu", n_workers=2).score(weights, "val")


def test_division_keeps_whole_units_and_covers_everything():
    for n in (1, 31, 64, 100, 129):
        for parts in (1, 2, 5):
            for unit in (1, 32):
                ranges = divide(n, parts, unit)
                assert [i for a, b in ranges for i in range(a, b)] == list(range(n))
                assert len(ranges) <= parts
                assert all(a % unit == 0 for a, _ in ranges)


def test_no_workers_are_refused():
    with pytest.raises(EvaluationError, match="n_workers is 0"):
        TaskEvaluator(task(), n_workers=0)

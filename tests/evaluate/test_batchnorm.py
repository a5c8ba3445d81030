from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from stockpot.errors import EvaluationError
from stockpot.evaluate.batchnorm import (
    apply_statistics,
    batch_statistics,
    calibration_order,
    has_batchnorm,
    recalibrate,
    statistics_names,
)
from stockpot.evaluate.task import Split
from stockpot.tasks.classification import ClassificationTask

torch.manual_seed(0)
DATA = TensorDataset(torch.randn(70, 6) * 3 + 1, torch.zeros(70, dtype=torch.long))


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5),
        torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4),
    )  # fmt: skip


def task(**options):
    return ClassificationTask(
        build=network, splits={"val": Split(DATA)}, batch_size=16, train_set=DATA, **options
    )


def test_equals_the_cumulative_mean_of_pytorch_over_the_same_batches():
    ours, theirs = network(), network()
    n_examples = recalibrate(ours, task(), seed=3)
    theirs[2].p = 0.0
    batches = [DATA.tensors[0][i] for i in calibration_order(70, 16, seed=3)]
    torch.optim.swa_utils.update_bn(batches, theirs)
    assert n_examples == 64
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_dividing_the_batches_changes_no_bit():
    t, order = task(), calibration_order(70, 16)
    whole, divided = network(), network()
    recalibrate(whole, t)
    helper = network()
    parts = []
    for batches in (order[:1], order[1:]):
        data = (b for i in batches for b in t.batches(DATA, i))
        parts += batch_statistics(helper, data, t.predict)
    apply_statistics(divided, parts)
    for name, value in whole.state_dict().items():
        assert torch.equal(divided.state_dict()[name], value)


def test_modes_and_momenta_are_restored():
    model = network().eval()
    model[1].momentum = 0.3
    recalibrate(model, task())
    assert model[1].momentum == 0.3
    assert not any(m.training for m in model.modules())


def test_a_set_sorted_by_class_is_shuffled():
    (first, *_) = calibration_order(100, 10, seed=0)
    assert max(first) > 50


def test_no_calibration_data_is_an_error():
    bare = ClassificationTask(build=network, splits={"val": Split(DATA)})
    with pytest.raises(EvaluationError, match="calibration_set"):
        recalibrate(network(), bare)


def test_an_empty_set_is_an_error():
    with pytest.raises(EvaluationError, match="at least two"):
        calibration_order(0, 4)
    with pytest.raises(EvaluationError, match="no batch"):
        apply_statistics(network(), [])


def test_only_layers_with_running_statistics_count():
    assert has_batchnorm(network())
    assert not has_batchnorm(torch.nn.BatchNorm1d(2, track_running_stats=False))
    assert statistics_names(network())[0] == "1.running_mean"

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from stockpot.errors import EvaluationError
from stockpot.evaluate.batchnorm import (
    apply_statistics,
    batch_statistics,
    calibration_order,
    calibration_set,
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
    options = {"train_set": DATA, **options}
    return ClassificationTask(build=network, splits={"val": Split(DATA)}, batch_size=16, **options)


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


class Noisy(torch.utils.data.Dataset):
    """Draws from torch's global generator, as transforms of torchvision do."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, i):
        x, y = DATA[i]
        return x + torch.randn(6), y


def doubled(batch, generator):
    return [2 * batch[0], batch[1]]


def noisy(batch, generator):
    return [batch[0] + torch.randn(batch[0].shape, generator=generator), batch[1]]


def test_recalibrated_takes_the_training_set_as_it_is_trained_on_and_clean_does_not():
    plain = TensorDataset(DATA.tensors[0] * 5, DATA.tensors[1])
    given = task(augment=doubled, calibration_set=plain)
    ours = {policy: network() for policy in ("recalibrated", "clean")}
    for policy, model in ours.items():
        recalibrate(model, given, policy=policy)
    for policy, factor in (("recalibrated", 2), ("clean", 5)):
        theirs = network()
        theirs[2].p = 0.0
        order = calibration_order(70, 16)
        batches = [factor * DATA.tensors[0][i] for i in order]
        torch.optim.swa_utils.update_bn(batches, theirs)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours[policy].state_dict()[name], value)
    assert calibration_set(given, "averaged") is None


@pytest.mark.parametrize("options", [{"augment": noisy}, {"train_set": Noisy()}])
def test_random_transforms_are_seeded_and_leave_the_global_generator_alone(options):
    given = task(**options)
    before = torch.random.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        model = network()
        recalibrate(model, given, seed=seed)
        found.append(model.state_dict()["1.running_mean"])
        torch.random.set_rng_state(before)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    torch.randn(3)  # another state of the caller's
    data = calibration_set(given, "recalibrated")
    state = torch.random.get_rng_state()
    one, other = (
        torch.cat([b[0] for b in data.batches(given, order, seed=0)])
        for order in ([[3, 1], [2, 0]], [[2, 0], [3, 1]])
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one, other.roll(2, 0))  # whichever worker makes a batch


def test_batches_of_one_example_are_a_clear_error():
    with pytest.raises(EvaluationError, match="batch_size of at least 2"):
        recalibrate(network(), task(), batch_size=1)

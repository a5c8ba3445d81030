from __future__ import annotations

import pytest
import torch

from stockpot.errors import MismatchError
from stockpot.evaluate.swap import load_weights


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(4, 3)
        self.head = torch.nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


def test_values_are_copied_into_the_same_tensors():
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    kept = model.weight
    load_weights(model, other.state_dict())
    assert model.weight is kept
    assert torch.equal(model.weight, other.weight)


def test_buffers_and_counters_are_copied():
    model, other = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    other.running_mean.fill_(3)
    other.num_batches_tracked.fill_(9)
    load_weights(model, other.state_dict())
    assert model.running_mean.tolist() == [3, 3]
    assert model.num_batches_tracked == 9


def test_half_precision_weights_are_widened():
    model = torch.nn.Linear(2, 2)
    values = {k: v.to(torch.bfloat16) for k, v in torch.nn.Linear(2, 2).state_dict().items()}
    load_weights(model, values)
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, values["weight"].float())


def test_every_key_that_does_not_fit_is_listed_and_nothing_is_copied():
    model = torch.nn.Linear(3, 2)
    before = model.weight.clone()
    bad = {"weight": torch.zeros(2, 3), "extra": torch.zeros(1)}
    with pytest.raises(MismatchError) as caught:
        load_weights(model, bad)
    assert {p.tensor for p in caught.value.problems} == {"extra", "bias"}
    assert torch.equal(model.weight, before)


def test_a_wrong_shape_is_refused_even_when_not_strict():
    with pytest.raises(MismatchError, match=r"weight: shape \(2, 4\), expected shape \(2, 3\)"):
        load_weights(torch.nn.Linear(3, 2), {"weight": torch.zeros(2, 4)}, strict=False)


def test_not_strict_fills_what_is_there():
    model = torch.nn.Linear(3, 2)
    load_weights(model, {"weight": torch.ones(2, 3), "other": torch.ones(1)}, strict=False)
    assert torch.equal(model.weight, torch.ones(2, 3))


def test_one_name_of_a_tied_pair_is_enough():
    model = Tied()
    load_weights(model, {"embed.weight": torch.ones(4, 3)})
    assert torch.equal(model.head.weight, torch.ones(4, 3))


class Filling(dict):
    """Fills what has its type, as a mixture does, and counts what is read instead."""

    def __init__(self, values):
        super().__init__(values)
        self.read_names = []

    def fill(self, name, target):
        if target.dtype != self[name].dtype:
            return False
        target.copy_(self[name])
        return True

    def read(self, name):
        self.read_names.append(name)
        return self[name]


def test_a_source_that_can_fill_is_not_read():
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    source = Filling({**other.state_dict(), "bias": other.bias.detach().double()})
    load_weights(model, source)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)
    assert source.read_names == ["bias"]

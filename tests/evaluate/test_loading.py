from __future__ import annotations

import pytest
import torch

from stockpot.errors import MismatchError
from stockpot.evaluate.loading import load_weights
from stockpot.formats.memory import from_state_dict
from stockpot.mixing import Ingredients, Mixture


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(4, 3)
        self.head = torch.nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


def test_values_are_copied_into_the_same_tensors():
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    kept = model.weight
    load_weights(model, from_state_dict(other.state_dict()))
    assert model.weight is kept
    assert torch.equal(model.weight, other.weight)


def test_buffers_and_counters_are_copied():
    model, other = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    other.running_mean.fill_(3)
    other.num_batches_tracked.fill_(9)
    load_weights(model, from_state_dict(other.state_dict()))
    assert model.running_mean.tolist() == [3, 3]
    assert model.num_batches_tracked == 9


def test_half_precision_weights_are_widened():
    model = torch.nn.Linear(2, 2)
    values = {k: v.to(torch.bfloat16) for k, v in torch.nn.Linear(2, 2).state_dict().items()}
    load_weights(model, from_state_dict(values))
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, values["weight"].float())


def test_every_key_that_does_not_fit_is_listed_and_nothing_is_copied():
    model = torch.nn.Linear(3, 2)
    before = model.weight.clone()
    bad = {"weight": torch.zeros(2, 3), "extra": torch.zeros(1)}
    with pytest.raises(MismatchError) as caught:
        load_weights(model, from_state_dict(bad))
    assert {p.tensor for p in caught.value.problems} == {"extra", "bias"}
    assert torch.equal(model.weight, before)


def test_a_wrong_shape_is_refused_even_when_not_strict():
    with pytest.raises(MismatchError, match=r"weight: shape \(2, 4\), expected shape \(2, 3\)"):
        load_weights(
            torch.nn.Linear(3, 2), from_state_dict({"weight": torch.zeros(2, 4)}), strict=False
        )


def test_not_strict_fills_what_is_there():
    model = torch.nn.Linear(3, 2)
    load_weights(
        model, from_state_dict({"weight": torch.ones(2, 3), "other": torch.ones(1)}), strict=False
    )
    assert torch.equal(model.weight, torch.ones(2, 3))


def test_one_name_of_a_tied_pair_is_enough():
    model = Tied()
    load_weights(model, from_state_dict({"embed.weight": torch.ones(4, 3)}))
    assert torch.equal(model.head.weight, torch.ones(4, 3))


def test_a_mixture_is_computed_in_place_where_the_type_allows_it(monkeypatch):
    model = torch.nn.Linear(3, 2)
    halves = [
        {"weight": torch.full((2, 3), v), "bias": torch.full((2,), v).double()} for v in (1.0, 3.0)
    ]
    mixture = Mixture(Ingredients([from_state_dict(half) for half in halves]))
    read, plain = [], Mixture.read
    monkeypatch.setattr(Mixture, "read", lambda self, name: read.append(name) or plain(self, name))
    load_weights(model, mixture)
    assert read == ["bias"]
    assert torch.equal(model.weight, torch.full((2, 3), 2.0))
    assert torch.equal(model.bias, torch.full((2,), 2.0))

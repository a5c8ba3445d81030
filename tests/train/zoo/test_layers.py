"""Gated sums of several models' weights: what they are at the start, and what they fold into."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from stockpot.errors import MismatchError
from stockpot.train.zoo.layers import MOMENTUM, ZooLayer, folded, unfolded


def network(n_classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, stride=2, padding_mode="reflect"),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, bias=False, dilation=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, n_classes),
    )


def states(n: int = 3) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    found = []
    for _ in range(n):
        state = network().state_dict()
        for name, value in state.items():
            if name.endswith("running_mean") or name == "1.weight":
                state[name] = torch.randn_like(value) + 1
        found.append(state)
    return found


def trained(model: nn.Module, steps: int = 5) -> nn.Module:
    torch.manual_seed(2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(steps):
        x, y = torch.randn(6, 2, 12, 12), torch.randint(0, 3, (6,))
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_at_the_start_it_is_the_mean_of_the_models(n: int) -> None:
    given = states(n)
    mean = network()
    mean.load_state_dict(
        {
            k: v if not v.is_floating_point() else torch.stack([s[k] for s in given]).mean(0)
            for k, v in given[0].items()
        }
    )
    model, fresh = unfolded(network(), given)
    x = torch.randn(4, 2, 12, 12)
    assert fresh == []
    for mode in (False, True):
        assert torch.allclose(model.train(mode)(x), mean.train(mode)(x), atol=1e-5)
    for layer in model.modules():
        if isinstance(layer, ZooLayer):
            assert torch.allclose(layer.gates, torch.full((n,), 1 / n))


def test_the_folded_model_predicts_as_the_unfolded_one() -> None:
    model = trained(unfolded(network(), states())[0])
    plain = network()
    plain.load_state_dict(folded(model))
    x = torch.randn(5, 2, 12, 12)
    with torch.no_grad():
        assert torch.allclose(plain.eval()(x), model(x), atol=1e-5)
    gates = model[0].gates
    assert not torch.allclose(gates, torch.full_like(gates, 1 / 3))


def test_all_that_is_gated_is_trained() -> None:
    before = unfolded(network(), states())[0]
    after = trained(copy.deepcopy(before))
    for name, value in before.named_parameters():
        assert not torch.equal(value, after.get_parameter(name)), name


@pytest.mark.parametrize("which", range(3))
def test_one_hot_gates_give_the_weights_of_that_model(which: int) -> None:
    given = states()
    model, _ = unfolded(network(), given)
    for layer in model.modules():
        if isinstance(layer, ZooLayer):
            layer.gates.zero_()[which] = 1
    found = folded(model)
    for name in ("0.weight", "3.weight", "7.weight"):
        assert torch.allclose(found[name], given[which][name], atol=1e-6)


def test_a_layer_by_hand() -> None:
    """Two models of one linear layer, [1, 2] and [3, 5]; the second's output is doubled."""
    layer = ZooLayer(
        nn.Linear(2, 1),
        [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])],
        torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        layer.transforms[1] = 2.0
        layer.hidden.copy_(torch.tensor([[1.0, -1.0]]))
        layer.gate.copy_(torch.tensor([[1.0], [0.0]]))
        layer.layer.bias.fill_(0.5)
    x = torch.tensor([[4.0, 1.0], [1.0, 2.0]])
    # Hidden units 3 and 0, after the ReLU; gates of the first model σ(3) and σ(0).
    first, second = (1 / (1 + math.exp(-3)) + 0.5) / 2, 0.5
    weight = [first * 1 + second * 6, first * 2 + second * 10]
    expected = [[4 * weight[0] + weight[1] + 0.5], [weight[0] + 2 * weight[1] + 0.5]]
    assert torch.allclose(layer(x), torch.tensor(expected))
    running = [(1 - MOMENTUM) * 0.5 + MOMENTUM * first, 0.5]
    assert torch.allclose(layer.gates, torch.tensor(running))
    layer.eval()
    weight = [running[0] * 1 + 0.5 * 6, running[0] * 2 + 0.5 * 10]
    assert torch.allclose(layer(x)[0], torch.tensor([4 * weight[0] + weight[1] + 0.5]))
    # Places are averaged before the gate: twice the same word is the word once.
    layer.train()
    assert torch.allclose(layer._gates_of(x[:, None].repeat(1, 2, 1)), layer._gates_of(x))


def test_transforms_mix_output_channels() -> None:
    weight = torch.arange(8.0).reshape(2, 1, 2, 2)
    layer = ZooLayer(nn.Conv2d(1, 2, 2), [weight, 0 * weight], torch.Generator())
    with torch.no_grad():
        layer.transforms[0] = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    expected = 0.5 * torch.stack([weight[1], 2 * weight[0]])
    assert torch.equal(layer.weight(layer.gates), expected)


def test_a_head_of_another_task_is_left_out_and_named() -> None:
    given = states()
    given[1] = {**given[1], "7.weight": torch.zeros(9, 8), "7.bias": torch.zeros(9)}
    own = network()
    model, fresh = unfolded(copy.deepcopy(own), given)
    assert fresh == ["7.bias", "7.weight"]
    assert isinstance(model[0], ZooLayer)
    assert torch.equal(model[7].weight, own[7].weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.head(self.middle(x))


def test_tied_weights_and_attention_start_from_the_mean_and_fold() -> None:
    torch.manual_seed(0)
    given = [Tied().state_dict() for _ in range(2)]
    model, _ = unfolded(Tied(), given)
    assert isinstance(model.middle, ZooLayer)
    assert not isinstance(model.head, ZooLayer)
    assert not isinstance(model.attention.out_proj, ZooLayer)
    assert torch.allclose(
        model.embedding.weight, (given[0]["head.weight"] + given[1]["head.weight"]) / 2
    )
    plain, ids = Tied(), torch.randint(0, 5, (3, 6))
    model.train()(ids)
    plain.load_state_dict(folded(model))
    with torch.no_grad():
        assert torch.allclose(plain.eval()(ids), model.eval()(ids), atol=1e-6)


def test_models_of_another_architecture_are_refused() -> None:
    given = [nn.Linear(3, 3).state_dict()] * 2
    with pytest.raises(MismatchError, match="share no convolution or linear layer"):
        unfolded(network(), given)


def test_gates_follow_from_the_seed_alone() -> None:
    one, other = (unfolded(network(), states(), seed=3)[0] for _ in range(2))
    another = unfolded(network(), states(), seed=4)[0]
    assert torch.equal(one[0].hidden, other[0].hidden)
    assert not torch.equal(one[0].hidden, another[0].hidden)

"""Layers whose weight is a gated sum of the weights of several models, and how they fold into one.

Reference: Shu et al. 2021, arXiv 2106.15434, §3 (the lite variant).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from stockpot.errors import MismatchError

MOMENTUM = 0.1
"""Of the running mean of the gates."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class ZooLayer(nn.Module):
    """A convolution or linear layer with the weight W = Σᵢ aᵢ·TᵢWᵢ of m models.

    Tᵢ mixes output channels and starts as the identity. The gates aᵢ follow from the layer's input,
    averaged over places: linear, ReLU, linear, sigmoid. In training they are averaged over the
    batch, and a running mean of them is kept, which is what a prediction takes: then the layer does
    not depend on its batch, and folds into a plain one. At the start all gates are 1/m, so that the
    layer is that of the mean of the models.

    Args:
        layer: whose geometry and bias are taken.
        weights: of each model, of the shape of the layer's own.
        generator: of the gate's first weights.
    """

    gates: torch.Tensor
    layer: Layer

    def __init__(
        self, layer: Layer, weights: Sequence[torch.Tensor], generator: torch.Generator
    ) -> None:
        super().__init__()
        m, n_out = len(weights), len(weights[0])
        n_in = layer.in_channels if isinstance(layer, _CONVOLUTIONS) else layer.in_features
        n_hidden = max(1, n_in // 4)
        layer.register_parameter("weight", None)
        self.layer = layer
        self.weights = nn.Parameter(torch.stack(list(weights)))
        self.transforms = nn.Parameter(torch.eye(n_out).repeat(m, 1, 1))
        hidden = torch.empty(n_hidden, n_in)
        nn.init.kaiming_uniform_(hidden, a=math.sqrt(5), generator=generator)
        self.hidden = nn.Parameter(hidden)
        self.hidden_bias = nn.Parameter(torch.zeros(n_hidden))
        # Zero weights leave the bias alone, whose sigmoid is 1/m.
        self.gate = nn.Parameter(torch.zeros(m, n_hidden))
        self.gate_bias = nn.Parameter(torch.full((m,), -math.log(m - 1)))
        self.register_buffer("gates", torch.full((m,), 1 / m))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer gives with the weight of this batch's gates, or of the running ones."""
        gates = self.gates
        if self.training:
            gates = self._gates_of(x)
            with torch.no_grad():
                self.gates.lerp_(gates.detach().to(self.gates.dtype), MOMENTUM)
        weight = self.weight(gates)
        if isinstance(self.layer, _CONVOLUTIONS):
            found: torch.Tensor = self.layer._conv_forward(x, weight, self.layer.bias)
            return found
        return functional.linear(x, weight, self.layer.bias)

    def _gates_of(self, x: torch.Tensor) -> torch.Tensor:
        """The mean over the batch of the gates of each example: (m,)."""
        is_convolution = isinstance(self.layer, _CONVOLUTIONS)
        pooled = x.flatten(2).mean(2) if is_convolution else x.reshape(len(x), -1, x.shape[-1])
        pooled = pooled if is_convolution else pooled.mean(1)
        hidden = functional.linear(pooled, self.hidden, self.hidden_bias).relu()
        return functional.linear(hidden, self.gate, self.gate_bias).sigmoid().mean(0)

    def weight(self, gates: torch.Tensor) -> torch.Tensor:
        """Σᵢ aᵢ·TᵢWᵢ."""
        return torch.einsum("i,ipo,io...->p...", gates, self.transforms, self.weights)


def unfolded(
    model: nn.Module, states: Sequence[Mapping[str, torch.Tensor]], *, seed: int = 0
) -> tuple[nn.Module, list[str]]:
    """`model` with the weights of several, and the names of what none of them could give.

    Every convolution and linear layer of which all have the weight becomes a `ZooLayer`. All else
    (norms, biases, embeddings) starts from the mean. What one of them lacks, or has in another
    shape, such as the head of another task, keeps the model's own values. Linear layers within
    `nn.MultiheadAttention`, and weights that are tied to others, start from the mean too.

    Args:
        model: is changed.
        states: name → values, of two models or more.
        seed: of the gates.

    Raises:
        MismatchError: they share no layer with the model.
    """
    own = model.state_dict()
    shared = {
        name
        for name, value in own.items()
        if all(name in state and state[name].shape == value.shape for state in states)
    }
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(own[name].dtype)
        if own[name].is_floating_point()
        else own[name]
        for name in shared
    }
    model.load_state_dict({**own, **mean})
    generator = torch.Generator().manual_seed(seed)
    names = [name for name in _layers(model) if f"{name}.weight" in shared]
    if not names:
        raise MismatchError(
            "the models share no convolution or linear layer with the network of the task: they "
            "have to be of its architecture"
        )
    for name in names:
        parent, _, last = name.rpartition(".")
        place = model.get_submodule(parent)
        weights = [state[f"{name}.weight"].float() for state in states]
        setattr(place, last, ZooLayer(getattr(place, last), weights, generator))
    return model, sorted(own.keys() - shared)


def _layers(model: nn.Module) -> list[str]:
    """Names of the layers whose weight nothing else uses."""
    users: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        users[id(parameter)] = users.get(id(parameter), 0) + 1
    kinds = (nn.Linear, *_CONVOLUTIONS)
    return [
        name
        for name, layer in model.named_modules()
        # Exactly these classes: subclasses use their weight in ways of their own.
        if name and type(layer) in kinds and users[id(layer.weight)] == 1
    ]


def folded(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the plain model that predicts as the unfolded one does."""
    zoo = {name: layer for name, layer in model.named_modules() if isinstance(layer, ZooLayer)}
    inside = tuple(f"{name}." for name in zoo)
    found = {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if not name.startswith(inside)
    }
    for name, layer in zoo.items():
        found[f"{name}.weight"] = layer.weight(layer.gates).detach().clone()
        if layer.layer.bias is not None:
            found[f"{name}.bias"] = layer.layer.bias.detach().clone()
    return found

"""Coefficient gradients against autograd through all ingredients in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call

from stockpot.errors import RecipeError
from stockpot.formats.memory import from_state_dict
from stockpot.mixing.blocks import IngredientBlocks
from stockpot.mixing.coefficients import group_names
from stockpot.mixing.device_blocks import DeviceBlocks, ingredient_blocks
from stockpot.mixing.host_blocks import HostBlocks


class TiedNet(nn.Module):
    """Embedding tied to the output layer, a convolution with BatchNorm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 24)
        self.conv = nn.Conv1d(24, 24, 3, padding=1)
        self.norm = nn.BatchNorm1d(24)
        self.mix = nn.Linear(24, 24)
        self.head = nn.Linear(24, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, T) tokens to (N, 11) logits."""
        x = self.norm(self.conv(self.embed(tokens).transpose(1, 2))).relu().mean(dim=2)
        return self.head(torch.tanh(self.mix(x)))


def make_states(k: int, spread: float, dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    """k state dicts about one initialisation, `spread` apart relative to its size."""
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(3)
    base = {
        name: value.to(dtype)
        for name, value in TiedNet().state_dict().items()
        if value.is_floating_point()
    }
    states = []
    for _ in range(k):
        state = {}
        for name, value in base.items():
            if name == "head.weight":
                continue
            scale = spread * value.std() if value.numel() > 1 and value.std() > 0 else spread
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            state[name] = (value + scale * noise).to(dtype)
        state["norm.running_var"] = state["norm.running_var"].abs() + 0.5
        states.append(state)
    return states


def reference(
    states: list[dict[str, torch.Tensor]],
    groups: dict[str, str],
    coefficients: dict[str, torch.Tensor],
    loss: Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """∂L/∂c in float64 by autograd through the mixture of all states."""
    model = TiedNet().double().eval()
    mixed = {}
    for name in states[0]:
        stack = torch.stack([state[name].double() for state in states])
        value = torch.einsum("k,k...->...", coefficients[groups[name]], stack)
        mixed[name] = value.detach() if "running" in name else value
    loss(model, mixed).backward()
    return {group: c.grad for group, c in coefficients.items() if c.grad is not None}


def on_host(checkpoints, names, *, block_elements=None, **options) -> IngredientBlocks:
    """The passes of the processor, whose blocks have one size."""
    return HostBlocks(checkpoints, names, **options)


def on_device(checkpoints, names, **options) -> IngredientBlocks:
    """The passes of accelerators, which work on the CPU too."""
    return DeviceBlocks(checkpoints, names, device=torch.device("cpu"), **options)


WAYS = pytest.mark.parametrize("make", [on_host, on_device])


@WAYS
@pytest.mark.parametrize("by", ["model", "layer", "tensor"])
@pytest.mark.parametrize("spread", [0.3, 0.003])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_streamed_gradient_equals_autograd_through_all_ingredients(
    make, by: str, spread: float, dtype: torch.dtype, bound: float
) -> None:
    k = 5
    states = make_states(k, spread, dtype)
    names = list(states[0])
    groups = group_names(names, by, tied=[("embed.weight", "head.weight")])
    index = {group: row for row, group in enumerate(dict.fromkeys(groups.values()))}
    generator = torch.Generator().manual_seed(1)
    rows = torch.rand(len(index), k, generator=generator, dtype=torch.float64)
    rows /= rows.sum(dim=1, keepdim=True)
    tokens = torch.randint(0, 11, (64, 7), generator=generator)
    labels = torch.randint(0, 11, (64,), generator=generator)

    expected = reference(
        states,
        groups,
        {group: rows[row].clone().requires_grad_() for group, row in index.items()},
        lambda model, mixed: nn.functional.cross_entropy(
            functional_call(model, mixed, (tokens,)), labels
        ),
    )

    blocks = make(
        [from_state_dict(state) for state in states], names, dtype=dtype, block_elements=2048
    )
    model = TiedNet().to(dtype).eval()
    live = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    row_of = {name: index[groups[name]] for name in names}
    blocks.rebuild(rows, row_of, {name: live[name] for name in names})
    nn.functional.cross_entropy(model(tokens), labels).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    products = blocks.inner_products(gradients, row_of, len(index))
    actual = products.centred + products.mean[:, None]

    # What a softmax passes on is the part that does not move all coefficients alike.
    for group, gradient in expected.items():
        got, want = actual[index[group]], gradient
        assert torch.linalg.vector_norm(got - want) <= bound * torch.linalg.vector_norm(want)
        want = want - want.mean()
        centred = products.centred[index[group]]
        centred = centred - centred.mean()
        error = torch.linalg.vector_norm(centred - want) / torch.linalg.vector_norm(want)
        assert error <= bound, (group, float(error))


@WAYS
def test_rebuild_is_the_weighted_sum_whatever_the_blocks_and_the_held_ingredients(make) -> None:
    states = make_states(4, 0.3, torch.float64)
    names = list(states[0])
    rows = torch.tensor([[0.1, 0.2, 0.0, 0.7]], dtype=torch.float64)
    checkpoints = [from_state_dict(state) for state in states]
    for options in ({}, {"block_elements": 1024}, {"max_memory": 10**8}):
        blocks = make(checkpoints, names, dtype=torch.float64, **options)
        for _ in range(2):  # forwards, then backwards
            targets = {name: torch.zeros_like(states[0][name]) for name in names}
            blocks.rebuild(rows, dict.fromkeys(names, 0), targets)
            for name in names:
                want = sum(c * state[name] for c, state in zip(rows[0], states, strict=True))
                torch.testing.assert_close(targets[name], want, rtol=1e-14, atol=1e-14)


@WAYS
def test_free_coefficients_that_do_not_sum_to_one_scale_the_mean_too(make) -> None:
    states = make_states(3, 0.3, torch.float64)
    name = "mix.weight"
    blocks = make([from_state_dict(s) for s in states], [name], dtype=torch.float64)
    target = {name: torch.zeros_like(states[0][name])}
    blocks.rebuild(torch.tensor([[0.5, 0.5, 0.5]], dtype=torch.float64), {name: 0}, target)
    torch.testing.assert_close(target[name], 0.5 * sum(state[name] for state in states))


@WAYS
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_ingredients_in_sixteen_bits_are_widened_and_not_rounded_again(make, stored) -> None:
    states = [
        {name: value.to(stored) for name, value in state.items()}
        for state in make_states(3, 0.3, torch.float32)
    ]
    rows = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        blocks = make([from_state_dict(s) for s in states], ["conv.weight"], dtype=dtype)
        target = {"conv.weight": torch.zeros_like(states[0]["conv.weight"], dtype=dtype)}
        blocks.rebuild(rows, {"conv.weight": 0}, target)
        want = sum(
            c * state["conv.weight"].double() for c, state in zip(rows[0], states, strict=True)
        )
        error = (target["conv.weight"].double() - want).abs().max()
        assert float(error) < tolerance


@WAYS
def test_parameters_and_gradients_whose_memory_is_in_another_order_are_served(make) -> None:
    states = make_states(3, 0.3, torch.float64)
    name = "mix.weight"
    blocks = make([from_state_dict(s) for s in states], [name], dtype=torch.float64)
    rows = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    target = {name: torch.zeros_like(states[0][name]).t()}
    blocks.rebuild(rows, {name: 0}, target)
    torch.testing.assert_close(target[name], sum(state[name] for state in states) / 3)
    gradient = torch.randn(24, 24, dtype=torch.float64).t()
    products = blocks.inner_products({name: gradient}, {name: 0}, 1)
    want = torch.stack([(gradient * state[name]).sum() for state in states])
    torch.testing.assert_close(products.centred[0] + products.mean[0], want)


def test_neither_threads_nor_the_direction_of_a_pass_change_a_bit(monkeypatch) -> None:
    # What makes a resumed fit the uninterrupted one: its passes run the other way round.
    monkeypatch.setattr("stockpot.mixing.host_blocks._SPAN", 200)
    checkpoints = [from_state_dict(state) for state in make_states(5, 0.3, torch.float32)]
    names = list(checkpoints[0])
    gradients = {name: torch.randn(checkpoints[0][name].shape) for name in names}
    rows = dict.fromkeys(names, 0)
    found = []
    for n_threads in (1, 3):
        blocks = on_host(checkpoints, names, dtype=torch.float32, n_threads=n_threads)
        for _ in range(2):
            products = blocks.inner_products(gradients, rows, 1)
            found.append((products.centred, products.mean, blocks.spreads(rows, 1)))
            blocks.inner_products(gradients, rows, 1)  # so that the next one runs backwards
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@WAYS
def test_memory_decides_how_many_ingredients_are_held(make) -> None:
    states = make_states(4, 0.3, torch.float32)
    checkpoints = [from_state_dict(state) for state in states]
    names = list(checkpoints[0])
    size = sum(checkpoints[0][name].nbytes for name in names)
    options = {"dtype": torch.float32, "block_elements": 1024}
    buffers = make(checkpoints, names, **options).buffer_bytes
    counts = [
        make(checkpoints, names, max_memory=m, **options).n_held
        for m in (buffers, buffers + 2 * size, buffers + 100 * size)
    ]
    assert counts == [0, 2, 4]
    with pytest.raises(RecipeError, match="at least"):
        make(checkpoints, names, max_memory=buffers - 1, **options)


def test_the_device_decides_which_passes_are_used() -> None:
    checkpoints = [from_state_dict(state) for state in make_states(2, 0.3, torch.float32)]
    assert isinstance(ingredient_blocks(checkpoints, ["mix.weight"]), HostBlocks)
    meta = ingredient_blocks(checkpoints, ["mix.weight"], device="meta")
    assert isinstance(meta, DeviceBlocks)
    assert meta.n_bytes == 2 * 24 * 24 * 4


@WAYS
def test_spreads_are_distances_from_the_mean_by_group(make) -> None:
    states = make_states(3, 0.3, torch.float64)
    names = ["conv.weight", "mix.weight"]
    blocks = make([from_state_dict(state) for state in states], names, dtype=torch.float64)
    spreads = blocks.spreads({"conv.weight": 0, "mix.weight": 1}, 2)
    for row, name in enumerate(names):
        stack = torch.stack([state[name] for state in states])
        want = (stack - stack.mean(dim=0)).flatten(1).norm(dim=1)
        torch.testing.assert_close(spreads[row], want)

"""The network that reads digits."""

from __future__ import annotations

import torch

from stockpot.tasks.handwriting.network import initial_weights, make_network


def test_it_gives_one_logit_per_digit() -> None:
    assert make_network()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_mixture_of_it_needs_no_recalibration() -> None:
    assert list(make_network().buffers()) == []


def test_the_seed_fixes_the_initial_weights_and_nothing_else_is_drawn() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (initial_weights(s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
